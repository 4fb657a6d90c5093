"""Findings as SARIF 2.1.0, which code scanners show beside the lines of a repository."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

VERSION = "2.1.0"
SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A function that has a type of vulnerability, by a detector; lines count from 1."""

    file: Path
    line: int
    end_line: int
    function: str
    type: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What is wrong with a file, whole (line 0) or at a line."""

    file: Path
    reason: str
    line: int = 0


def sarif_log(
    findings: Sequence[Finding], troubles: Sequence[Trouble], types: Sequence[str]
) -> Mapping[str, Any]:  # Any: JSON values
    """One run: a rule a type, a result a finding, whose rank is its probability in percent, and a
    notification a trouble. Files are named relative to the working folder, where they lie in it.
    """
    driver = {
        "name": "stillhouse",
        "version": importlib.metadata.version("stillhouse-contracts"),
        "rules": [
            {
                "id": name,
                "shortDescription": {"text": f"A function that may have: {name}"},
                "defaultConfiguration": {"level": "warning"},
            }
            for name in types
        ],
    }
    run: dict[str, Any] = {  # Any: JSON values
        "tool": {"driver": driver},
        "columnKind": "utf16CodeUnits",
        "results": [_result(each, types) for each in findings],
        "invocations": [
            {
                "executionSuccessful": True,
                "toolExecutionNotifications": [_notification(each) for each in troubles],
            }
        ],
    }
    return {"$schema": SCHEMA, "version": VERSION, "runs": [run]}


def _result(finding: Finding, types: Sequence[str]) -> Mapping[str, Any]:  # Any: JSON values
    where = _location(finding.file, finding.line, finding.end_line)
    return {
        "ruleId": finding.type,
        "ruleIndex": list(types).index(finding.type),
        "level": "warning",
        "rank": round(100 * finding.probability, 2),
        "message": {
            "text": f"{finding.function}: {finding.type}, probability {finding.probability:.2f}"
        },
        "locations": [where],
    }


def _notification(trouble: Trouble) -> Mapping[str, Any]:  # Any: JSON values
    return {
        "level": "warning",
        "message": {"text": trouble.reason},
        "locations": [_location(trouble.file, trouble.line, trouble.line)],
    }


def _location(file: Path, line: int, end_line: int) -> Mapping[str, Any]:  # Any: JSON values
    region = {"region": {"startLine": line, "endLine": end_line}} if line else {}
    return {"physicalLocation": {"artifactLocation": {"uri": _uri(file)}, **region}}


def _uri(file: Path) -> str:
    here, absolute = Path.cwd(), file.absolute()
    if absolute.is_relative_to(here):
        return quote(absolute.relative_to(here).as_posix())
    return absolute.as_uri()
