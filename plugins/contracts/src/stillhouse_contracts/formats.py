"""Labelled functions in the forms in which they come: parquet tables, folders of .sol files with a
file of labels, text files of snippets, and arrays.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from stillhouse.data.notes import note
from stillhouse.data.parquet import open_parquet, parquet_rows
from stillhouse.errors import BadData, MissingData
from stillhouse_contracts.labelled import Labelled
from stillhouse_contracts.snippets import TEXT, read_snippets
from stillhouse_contracts.solidity import Parsed, parse

SOLIDITY = ".sol"
FUNCTIONS, LABELS, SMARTBUGS = "functions.parquet", "labels.csv", "vulnerabilities.json"
HEADS = ("file", "line", "type")
FORMS = (
    f"a folder with {FUNCTIONS}, a .parquet file with the columns code and labels, a folder of "
    f"{SOLIDITY} files with {LABELS} ({','.join(HEADS)}) or {SMARTBUGS}, or {TEXT} files of "
    "ReChecker's form"
)
# of arrays: texts of files, and of each label the number of its file, its line and its type
ARRAYS = ("sources", "label_file", "label_line", "label_type")


@dataclass(frozen=True, kw_only=True)
class Label:
    """A type of vulnerability at a line of a file, from 1 on."""

    file: str
    line: int
    type: str


def labelled_functions(source: Path | Mapping[str, Any]) -> list[Labelled]:
    """All functions of a source in one of `FORMS`, or of arrays (see `ARRAYS`). Raises MissingData
    or BadData naming the file. Any: arrays of numbers or texts.
    """
    if isinstance(source, Mapping):
        found = _of_arrays(source)
    elif source.is_dir() and (source / FUNCTIONS).is_file():
        found = _of_table(source / FUNCTIONS)
    elif source.is_dir():
        found = _of_folder(source)
    elif source.suffix == ".parquet":
        found = _of_table(source)
    elif source.suffix == TEXT and source.is_file():
        found = read_snippets(source)
    else:
        raise BadData(f"{source}: no contracts; give {FORMS}")
    if not found:
        raise BadData(f"{source}: holds no function")
    return found


def read_solidity(file: Path) -> str:
    """The text of a .sol file. Raises BadData naming it where it is empty, or no text."""
    raw = file.read_bytes()
    if not raw.strip():
        raise BadData(f"{file}: empty; give a Solidity source")
    if b"\0" in raw:
        raise BadData(f"{file}: binary, no Solidity source")
    # comments may be in any encoding; whatever is no UTF-8 stays one character
    return raw.decode(errors="replace")


def _of_table(file: Path) -> list[Labelled]:
    opened = open_parquet(file, ("code", "labels"))
    found: list[Labelled] = []
    for number, row in enumerate(parquet_rows(opened)):
        code, types = row["code"], row["labels"]
        if not isinstance(code, str) or not isinstance(types, list):
            raise BadData(f"{file}: row {number}: code must be a text and labels a list of texts")
        contract = str(row.get("contract_id") or row.get("contract") or number)
        found.append(
            Labelled(
                code=code,
                types=frozenset(map(str, cast("list[Any]", types))),
                contract=contract,
                file=contract,
                function=str(row.get("function") or ""),
                line=int(row.get("start_line") or 1),
            )
        )
    return found


def _of_folder(folder: Path) -> list[Labelled]:
    files = sorted(folder.rglob(f"*{SOLIDITY}"))
    if not files and (texts := sorted(folder.glob(f"*{TEXT}"))):
        return [each for text in texts for each in read_snippets(text)]
    if not files:
        raise MissingData(f"{folder}: no {SOLIDITY} file in it; give {FORMS}")
    if (folder / LABELS).is_file():
        labels, where = _csv_labels(folder / LABELS), folder / LABELS
    elif (folder / SMARTBUGS).is_file():
        labels, where = _smartbugs_labels(folder / SMARTBUGS), folder / SMARTBUGS
    else:
        raise MissingData(f"{folder}: neither {LABELS} nor {SMARTBUGS} beside the contracts")
    sources = {file.relative_to(folder).as_posix(): read_solidity(file) for file in files}
    return of_sources(sources, labels, where=str(where))


def _csv_labels(file: Path) -> list[Label]:
    with file.open(newline="", encoding="utf-8") as opened:
        reader = csv.DictReader(opened)
        if tuple(reader.fieldnames or ()) != HEADS:
            raise BadData(f"{file}: the first line must be {','.join(HEADS)}")
        found: list[Label] = []
        for number, row in enumerate(reader, 2):
            if None in row or None in row.values() or not row["line"].strip().isdigit():
                raise BadData(f"{file}: line {number}: expected a file, a line and a type")
            line = int(row["line"])
            found.append(Label(file=row["file"].strip(), line=line, type=row["type"].strip()))
    return found


def _smartbugs_labels(file: Path) -> list[Label]:
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
        return [
            Label(file=record["path"], line=int(line), type=each["category"])
            for record in records
            for each in record["vulnerabilities"]
            for line in each["lines"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{file}: not in the form of smartbugs-curated ({error!r})") from error


def _of_arrays(arrays: Mapping[str, Any]) -> list[Labelled]:  # Any: arrays
    for name in ARRAYS:
        if name not in arrays:
            raise BadData(f"contracts: no array '{name}' (there are {', '.join(arrays)})")
    lengths = {name: len(arrays[name]) for name in ARRAYS[1:]}
    if len(set(lengths.values())) > 1:
        raise BadData(f"contracts: arrays of labels differ in length: {lengths}")
    names = [f"{number:04d}{SOLIDITY}" for number in range(len(arrays["sources"]))]
    sources = dict(zip(names, map(str, arrays["sources"]), strict=True))
    columns = (arrays[name].tolist() for name in ARRAYS[1:])
    if wrong := [n for n in arrays["label_file"].tolist() if not 0 <= n < len(names)]:
        raise BadData(f"contracts: a label of file {wrong[0]}; there are {len(names)}")
    labels = [
        Label(file=names[number], line=line, type=str(kind))
        for number, line, kind in zip(*columns, strict=True)
    ]
    return of_sources(sources, labels, where="contracts")


def of_sources(
    sources: Mapping[str, str], labels: Iterable[Label], *, where: str
) -> list[Labelled]:
    """The functions of files by name, each with the types at its lines. A label outside of any
    function (of a state variable, say) is counted in a note. Raises BadData for a label of a file
    that is missing, or of a line behind its end.
    """
    by_file: dict[str, list[Label]] = {}
    for label in labels:
        if label.file not in sources:
            raise BadData(f"{where}: {label.file}: labelled, and no such file is there")
        lines = sources[label.file].count("\n") + 1
        if not 1 <= label.line <= lines:
            raise BadData(
                f"{where}: {label.file}: a label of line {label.line}; the file has {lines}"
            )
        by_file.setdefault(label.file, []).append(label)
    found: list[Labelled] = []
    outside, broken = 0, list[str]()
    for name, source in sources.items():
        parsed, own = parse(source), by_file.get(name, [])
        if parsed.error_lines:
            broken.append(f"{name}:{parsed.error_lines[0]}")
        found += _functions(name, parsed, own)
        outside += sum(not _inside(label, parsed) for label in own)
    if broken:
        note(f"{len(broken)} file(s) that the grammar knows in part, the first {broken[0]}")
    if outside:
        note(f"{outside} label(s) stand outside of any function")
    return found


def _functions(name: str, parsed: Parsed, labels: Sequence[Label]) -> list[Labelled]:
    return [
        Labelled(
            code=each.code,
            types=frozenset(x.type for x in labels if each.start_line <= x.line <= each.end_line),
            contract=name,
            file=name,
            function=f"{each.contract}.{each.function}" if each.contract else each.function,
            line=each.start_line,
        )
        for each in parsed.fragments
    ]


def _inside(label: Label, parsed: Parsed) -> bool:
    return any(each.start_line <= label.line <= each.end_line for each in parsed.fragments)
