"""Labelled snippets in the text form of ReChecker and of CBGRU: one file a type of vulnerability.

    1 0x23a9.sol
    function pay() public {
        msg.sender.call.value(1)();
    }
    1
    ---------------------------------

A number and the file that a snippet comes from, its code, its label (1: it has the type, 0: not), a
line of dashes; and so on (github.com/Messi-Q/ReChecker, train_data/*.txt).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from stillhouse.errors import BadData
from stillhouse_contracts.labelled import Labelled

TEXT = ".txt"
RULER = re.compile(r"-{5,}\s*")
HEAD = re.compile(r"\s*\d+\s+(\S.*?)\s*")
# reentrancy_code_snippets_2000, infinite_loop_1317, dataset_Integeroverflow
STEM = re.compile(r"(?:dataset_)?(.+?)(?:_code_snippets)?(?:_\d+)?")
# names that the published files have, as recipes call these types
ALIASES = {"integeroverflow": "overflow", "delegate": "delegatecall"}
SHORTEST = 3  # lines of a snippet: its head, code and label


def type_of(file: Path) -> str:
    """The type that the labels of a file are of, read off its name: "reentrancy" of
    reentrancy_code_snippets_2000.txt.
    """
    found = STEM.fullmatch(file.stem)
    name = (found[1] if found else file.stem).lower()
    return ALIASES.get(name, name)


def read_snippets(file: Path) -> list[Labelled]:
    """The snippets of a file. Raises BadData naming the file and the line of one that has not the
    form.
    """
    raw = file.read_bytes()
    if not raw.strip():
        raise BadData(f"{file}: empty; give labelled snippets")
    if b"\0" in raw:
        raise BadData(f"{file}: binary, no labelled snippets")
    kind = type_of(file)
    return [
        _labelled(file, kind, first, lines)
        for first, lines in _blocks(raw.decode(errors="replace").splitlines())
    ]


def _blocks(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Lines between rulers without blank ones around them, with the number of the first."""
    first, own = 1, list[str]()
    for number, line in enumerate([*lines, "-----"], 1):
        if not RULER.fullmatch(line):
            if own or line.strip():
                first = first if own else number
                own.append(line)
            continue
        while own and not own[-1].strip():
            own.pop()
        if own:
            yield first, own
        own = []


def _labelled(file: Path, kind: str, first: int, lines: list[str]) -> Labelled:
    head, label = HEAD.fullmatch(lines[0]), lines[-1].strip()
    if head is None or len(lines) < SHORTEST or label not in ("0", "1"):
        raise BadData(
            f"{file}: line {first}: expected a number and a file, code, a label 0 or 1, and a line "
            "of dashes"
        )
    return Labelled(
        code="\n".join(lines[1:-1]),
        types=frozenset([kind] if label == "1" else []),
        contract=head[1],
        file=file.name,
        function="",
        line=first,
    )
