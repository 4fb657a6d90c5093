"""Rows of parquet files with images as {bytes, path}."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import BadData, MissingData


def parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Each row as a mapping, a batch of rows in memory at a time. Raises MissingData or BadData.

    Any: what the columns hold.
    """
    if not file.is_file():
        raise MissingData(f"{file} is not there; get the data set again")
    try:
        opened = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise BadData(f"{file}: cannot be read as parquet ({reason}); get it again") from error
    names = opened.schema_arrow.names
    if missing := [name for name in columns if name not in names]:
        raise BadData(f"{file}: no column {missing[0]}; it has {', '.join(names)}")
    for batch in opened.iter_batches(256, columns=list(columns)):
        yield from batch.to_pylist()
