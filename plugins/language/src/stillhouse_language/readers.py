"""Text and rows of other people's files: plain text, JSON Lines, TSV and CSV, parquet; each also as
.gz where it is text. Each refusal names the file, and the line where there is one.
"""

import csv
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from stillhouse.data.parquet import parquet_rows
from stillhouse.errors import BadData, MissingData, UnknownName

Row = Mapping[str, Any]  # Any: JSON values, or texts
TEXT, LINES, TABLES = (".txt", ".md", ".text"), (".jsonl", ".ndjson", ".json"), (".tsv", ".csv")
KINDS = (*TEXT, *LINES, *TABLES, ".parquet")


def kind_of(file: Path) -> str:
    """The ending that says how a file is read, ".gz" left out."""
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def files_of(source: Path) -> list[Path]:
    """The file itself, or all below a folder that are read here, by name. Raises MissingData."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise MissingData(f"{source} not found; give a file or a folder of text")
    found = sorted(f for f in source.rglob("*") if f.is_file() and kind_of(f) in KINDS)
    if not found:
        raise MissingData(f"{source}: holds no file that ends in {', '.join(KINDS)}")
    return found


def read_rows(file: Path, *, heads: Sequence[str] = ()) -> Iterator[Row]:
    """Rows of a JSON Lines, TSV, CSV or parquet file, one after the other; `heads` are the columns
    of a table that does not name them itself. Raises BadData, MissingData.
    """
    if not file.is_file():
        raise MissingData(f"{file} not found")
    match kind_of(file):
        case kind if kind in LINES:
            return _json_lines(file)
        case kind if kind in TABLES:
            return _table(file, "\t" if kind == ".tsv" else ",", heads)
        case ".parquet":
            return parquet_rows(file)
        case _:
            known = ", ".join((*LINES, *TABLES, ".parquet"))
            raise BadData(f"{file}: holds no rows; rows are read from files that end in {known}")


def first_cells(file: Path) -> list[str]:
    """What stands in the first line of a TSV or CSV file; nothing of another one."""
    kind = kind_of(file)
    if kind not in TABLES:
        return []
    return _text(file).partition("\n")[0].rstrip("\r").split("\t" if kind == ".tsv" else ",")


def read_texts(source: Path, *, column: str = "text") -> Iterator[str]:
    """Paragraphs of plain text (blank lines part them; a line of its own is one where there are
    none), and the `column` of rows, of a file or of all files below a folder; empty ones are left
    out. Raises BadData, MissingData, UnknownName for a missing column.
    """
    for file in files_of(source):
        texts = _paragraphs(file) if kind_of(file) in TEXT else _column(file, column)
        yield from (text for text in texts if text)


def _paragraphs(file: Path) -> Iterator[str]:
    whole = _text(file)
    blocks = whole.split("\n\n") if "\n\n" in whole else whole.split("\n")
    return (" ".join(block.split()) for block in blocks)


def _column(file: Path, column: str) -> Iterator[str]:
    for number, row in enumerate(read_rows(file), 1):
        if column not in row:
            raise UnknownName("column", column, row, where=f"{file}: row {number}")
        value = row[column]
        if not isinstance(value, str):
            raise BadData(f"{file}: row {number}: '{column}' is no text (got {value!r:.40})")
        yield value


def _text(file: Path) -> str:
    try:
        raw = file.read_bytes()
        return (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode()
    except (OSError, EOFError) as error:
        raise BadData(f"{file}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise BadData(f"{file}: no UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _json_lines(file: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadData(f"{file}: line {number} is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise BadData(f'{file}: line {number} is no object, as {{"text": ...}}')
        yield cast("dict[str, Any]", row)


def _table(file: Path, between: str, heads: Sequence[str]) -> Iterator[Row]:
    """A tab-separated file has no quotes, as GLUE's: a quotation mark is a character of its own."""
    lines = _text(file).replace("\r\n", "\n").removesuffix("\n").split("\n")
    rows = (line.split(between) for line in lines) if between == "\t" else csv.reader(lines)
    names = list(heads) or next(iter(rows), [])
    for number, cells in enumerate(rows, 1 if heads else 2):
        if len(cells) != len(names):
            raise BadData(
                f"{file}: line {number} has {len(cells)} columns, and there are {len(names)} "
                f"({', '.join(names)})"
            )
        yield dict(zip(names, cells, strict=True))
