"""What a run leaves in Prefect's UI: progress of a training stage, a table a stage, the report.

Keys are the same for every run of a variant, so that the UI shows each as a history. Images in a
report's Markdown are its charts; images of data are in the HTML page alone, which stays here.
"""

import base64
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from stillhouse_flows.runs.run import Run
from stillhouse_flows.stages.child import StageResult

UPDATE_SECONDS = 2.0
LARGEST = 400_000  # bytes of one chart; Prefect keeps artifacts in its database
COUNT = re.compile(r"\b(\d+)/(\d+)\b")
IMAGE = re.compile(r"!\[(?P<alt>(?:[^\]\\]|\\.)*)\]\((?P<path>figures/[^)]+\.svg)\)")
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def key(*words: str) -> str:
    """An artifact's key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


class Progress:
    """A bar for a stage whose lines count ("step 52/312"); made at the first such line."""

    def __init__(self, ref: str, stage: str) -> None:
        self.ref, self.stage = ref, stage
        self.artifact: UUID | None = None
        self.shown = 0.0

    def __call__(self, line: str) -> None:
        found = COUNT.search(line)
        now = time.monotonic()
        if found is None or int(found[2]) == 0:
            return
        percent = min(100.0, 100 * int(found[1]) / int(found[2]))
        if percent < 100 and now - self.shown < UPDATE_SECONDS:
            return
        self.shown = now
        self._show(percent, line)

    def _show(self, percent: float, line: str) -> None:
        words: Any = {"progress": percent, "description": f"`{line}`"}  # Any: keyword arguments
        if self.artifact is None:
            made: Any = create_progress_artifact(key=key(self.ref, self.stage, "progress"), **words)
            self.artifact = made
        else:
            update_progress_artifact(self.artifact, **words)


def stage_table(ref: str, result: StageResult, *, resumed: str = "", device: str = "") -> None:
    """The outputs of one stage with hash and size; how it ended."""
    rows: list[dict[str, Any]] = [  # Any: cells
        {"output": out.path, "hash": out.hash, "MiB": round(out.size / 2**20, 3)}
        for out in result.outs
    ]
    ended = " ".join(filter(None, (result.status, resumed)))
    create_table_artifact(
        rows,
        key=key(ref, result.name, "outputs"),
        description=(
            f"**{ref} {result.name}**: {ended}, {result.seconds:.1f} s"
            f"{f', on {device}' if device else ''}. Input key `{result.key[:12]}`"
        ),
    )


def run_summary(
    run: Run, results: Sequence[StageResult], seconds: dict[str, float], commit: str
) -> None:
    """One table of the whole run: each stage's state, time, and input key."""
    rows: list[dict[str, Any]] = [  # Any: cells
        {
            "stage": result.name,
            "status": result.status,
            "seconds": round(seconds.get(result.name, result.seconds), 1),
            "input key": result.key[:12],
        }
        for result in results
    ]
    where = f"branch `{run.space.branch}`, commit `{commit[:12]}`" if commit else "not in git"
    create_table_artifact(
        rows, key=key(run.prepared.ref, "run"), description=f"**{run.prepared.ref}**: {where}"
    )


def report(ref: str, page: Path) -> None:
    """The report as Markdown with its charts inside, and a link to the page."""
    create_markdown_artifact(
        embedded(page.with_suffix(".md")),
        key=key(ref, "report"),
        description=f"Report of {ref}",
    )
    create_link_artifact(
        page.as_uri(),
        key=key(ref, "report-page"),
        link_text=f"{ref}: report.html",
        description=f"On the machine that ran it: {page}",
    )


def embedded(markdown: Path) -> str:
    """The text with every chart it names inside as a data URI."""

    def inline(found: re.Match[str]) -> str:
        chart = markdown.parent / found["path"]
        kind = TYPES.get(chart.suffix)
        if kind is None or not chart.is_file() or chart.stat().st_size > LARGEST:
            return f"*{found['alt']}*"
        body = base64.b64encode(chart.read_bytes()).decode()
        return f"![{found['alt']}](data:{kind};base64,{body})"

    return IMAGE.sub(inline, markdown.read_text())
