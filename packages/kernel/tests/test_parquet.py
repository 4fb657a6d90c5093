"""Parquet files of other people's: rows a batch at a time, and one line for what cannot be read."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.data.parquet import ROWS, column_of, open_parquet, parquet_rows
from stillhouse.errors import BadData, MissingData


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.parquet"
    numbers = list(range(ROWS + 3))
    pq.write_table(pa.table({"n": numbers, "text": [str(n) for n in numbers]}), path)
    return path


def test_rows_come_in_order_with_the_columns_that_are_named(file: Path) -> None:
    assert list(parquet_rows(file, ("n",))) == [{"n": n} for n in range(ROWS + 3)]
    assert next(iter(parquet_rows(open_parquet(file)))) == {"n": 0, "text": "0"}


def test_the_first_of_several_names_is_the_column(file: Path) -> None:
    assert column_of(open_parquet(file), ("words", "text", "n"), file) == "text"
    with pytest.raises(BadData, match="here: no column img or image; it has n, text"):
        column_of(open_parquet(file), ("img", "image"), "here")


def test_what_cannot_be_read_is_one_line(file: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="none.parquet not found; get the data set again"):
        open_parquet(tmp_path / "none.parquet")
    with pytest.raises(BadData, match="a.parquet: no column label; it has n, text"):
        open_parquet(file, ("n", "label"))
    whole = file.read_bytes()
    for content in (b"no parquet", b"", whole[:-20]):
        file.write_bytes(content)
        with pytest.raises(BadData, match="a.parquet: cannot be read as parquet") as found:
            list(parquet_rows(file))
        assert "\n" not in str(found.value)
