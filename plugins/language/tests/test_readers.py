import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.errors import BadData, MissingData, UnknownName
from stillhouse_language.readers import read_rows, read_texts

ROWS = [{"text": "one two", "label": "a"}, {"text": 'said "no"', "label": "b"}]


def written(folder: Path, name: str) -> Path:
    file = folder / name
    match name.partition(".")[2]:
        case "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        case "jsonl.gz":
            file.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in ROWS).encode()))
        case "tsv":
            lines = ["text\tlabel", *(f"{r['text']}\t{r['label']}" for r in ROWS)]
            file.write_text("\n".join(lines) + "\n")
        case "csv":
            file.write_text('text,label\none two,a\n"said ""no""",b\n')
        case _:
            pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.tsv", "x.csv", "x.parquet"])
def test_rows_of_each_format_are_the_same(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, name)
    assert list(read_rows(file)) == ROWS
    assert list(read_texts(tmp_path)) == ["one two", 'said "no"']


def test_text_comes_in_paragraphs_or_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    (tmp_path / "b.txt").write_text("four\nfive\n")
    (tmp_path / "c.png").write_bytes(b"no text")
    assert list(read_texts(tmp_path)) == ["one two", "three", "four", "five"]


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\nno\n', BadData, "line 2 is no JSON"),
        ("x.jsonl", b"[1]\n", BadData, "line 1 is no object"),
        ("x.jsonl", b'{"words": "a"}\n', UnknownName, "row 1: unknown column 'text'"),
        ("x.jsonl", b'{"text": 3}\n', BadData, "row 1: 'text' is no text"),
        ("x.tsv", b"text\tlabel\na\n", BadData, "line 2 has 1 columns, and there are 2"),
        ("x.txt", b"caf\xe9", BadData, "no UTF-8 text .byte 3."),
        ("x.txt.gz", b"plain", BadData, "cannot be read"),
        ("x.parquet", b"PAR1", BadData, "cannot be read as parquet"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(
    tmp_path: Path, name: str, content: bytes, kind: type[Exception], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=message) as error:
        list(read_texts(tmp_path))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_text_is_missing_data(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="holds no file that ends in .txt"):
        list(read_texts(tmp_path))
    with pytest.raises(MissingData, match="not found"):
        list(read_texts(tmp_path / "nowhere"))
