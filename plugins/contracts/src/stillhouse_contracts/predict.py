"""What a detector finds in files of Solidity: rows, and a file that code scanners read."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillhouse.artifact import Built
from stillhouse.data.notes import note
from stillhouse.errors import BadData, BadSetting
from stillhouse.files import each_file, write_text
from stillhouse_contracts.excerpts import distinct, rows_of_tokens
from stillhouse_contracts.formats import SOLIDITY, read_solidity
from stillhouse_contracts.sarif import Finding, Trouble, sarif_log
from stillhouse_contracts.solidity import Fragment, parse
from stillhouse_contracts.usage import detected_by

READ = 16_384  # functions that are read before the network sees each distinct one of them
BATCH = 32  # distinct ones that go through it at a time: what fits a processor's cache
EVERY = 200  # files between two lines of progress
KNOWN = re.compile(r"0\.[4-8](?:\.|\D|$)")  # versions that the grammar was made for


def predict(
    model: Built, inputs: Sequence[Path], *, sarif: Path | None = None, threshold: float = 0.5
) -> Sequence[Mapping[str, Any]]:
    """A row a finding: file, lines, function, type and probability, where that is at least
    `threshold`; in the order of files and lines. A folder stands for all .sol files below it.

    A file that is empty or binary, that the grammar knows in part, or whose pragma names another
    version than 0.4 to 0.8, is named in a line, and the rest goes on. `sarif`: a file to write the
    findings into as SARIF 2.1.0. Raises BadData for a model of another kind and where no file can
    be read, BadSetting for a threshold outside of 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise BadSetting(f"--threshold must be between 0 and 1 (got {threshold})")
    detected = detected_by(model.spec)
    if detected is None:
        name = model.spec.build.__qualname__
        raise BadData(f"{name}: no detector of vulnerabilities in contracts")
    types, length = detected
    read = _Reader(files=list(each_file(inputs, {SOLIDITY}, kind="contract")))
    findings: list[Finding] = []
    for places in read.batches():
        rows = rows_of_tokens([each.code for _, each in places], length)
        findings += _found(places, shares(model, rows), types, threshold)
    if read.functions == 0 and len(read.unreadable) == len(read.files):
        raise BadData(f"{read.files[0]}: {read.unreadable[0].reason}; no file could be read")
    note(f"{len(findings)} finding(s) in {read.functions} functions of {len(read.files)} file(s)")
    if sarif is not None:
        log = sarif_log(findings, read.troubles, types)
        write_text(sarif, json.dumps(log, indent=1, ensure_ascii=False) + "\n")
    return [_row(each) for each in findings]


Places = list[tuple[Path, Fragment]]


@dataclass(kw_only=True)
class _Reader:
    """Functions of files, many at a time; what is wrong with a file is kept and noted."""

    files: Sequence[Path]
    functions: int = 0
    troubles: list[Trouble] = field(default_factory=list[Trouble])
    unreadable: list[Trouble] = field(default_factory=list[Trouble])

    def batches(self) -> Iterator[Places]:
        waiting: Places = []
        for done, file in enumerate(self.files, 1):
            waiting += [(file, each) for each in self._fragments(file)]
            while len(waiting) >= READ:
                yield waiting[:READ]
                waiting = waiting[READ:]
            if done % EVERY == 0 and done < len(self.files):
                note(f"{done} of {len(self.files)} files read")
        if waiting:
            yield waiting

    def _fragments(self, file: Path) -> Sequence[Fragment]:
        try:
            parsed = parse(read_solidity(file))
        except (BadData, OSError) as error:
            reason = str(error).removeprefix(f"{file}: ")
            self.unreadable.append(self._trouble(file, reason))
            return ()
        if parsed.error_lines:
            line = parsed.error_lines[0]
            self._trouble(
                file, f"the grammar knows it in part; an error begins at line {line}", line=line
            )
        if parsed.pragma and not KNOWN.search(parsed.pragma):
            self._trouble(file, f"pragma solidity {parsed.pragma}: no version from 0.4 to 0.8")
        self.functions += len(parsed.fragments)
        return parsed.fragments

    def _trouble(self, file: Path, reason: str, *, line: int = 0) -> Trouble:
        trouble = Trouble(file=file, reason=reason, line=line)
        self.troubles.append(trouble)
        note(f"{file}: {reason}")
        return trouble


def shares(model: Built, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Probabilities [N, C] of rows of tokens [N, L]; of copies once."""
    rows, places = distinct(tokens)
    with torch.no_grad():
        parts = torch.from_numpy(rows).split(BATCH)
        logits = torch.cat([model.module({"tokens": part})["logits"] for part in parts])
    return logits.float().sigmoid().numpy()[places]


def _found(
    places: Places, found: NDArray[np.float32], types: Sequence[str], threshold: float
) -> list[Finding]:
    return [
        Finding(
            file=file,
            line=each.start_line,
            end_line=each.end_line,
            function=f"{each.contract}.{each.function}" if each.contract else each.function,
            type=types[column],
            probability=float(found[row, column]),
        )
        for row, column in np.argwhere(found >= threshold).tolist()
        for file, each in (places[row],)
    ]


def _row(finding: Finding) -> Mapping[str, Any]:  # Any: what a cell shows
    return {
        "file": str(finding.file),
        "line": finding.line,
        "end_line": finding.end_line,
        "function": finding.function,
        "type": finding.type,
        "probability": round(finding.probability, 4),
    }
