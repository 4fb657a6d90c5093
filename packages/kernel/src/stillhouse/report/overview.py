"""One page of finished reports: what each method gained over its baseline, and at what cost."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from stillhouse.errors import MissingData
from stillhouse.files import write_text, writing
from stillhouse.metrics import units
from stillhouse.metrics.known import COMPUTE
from stillhouse.metrics.scores import Score
from stillhouse.report.cards import best_row, method_row
from stillhouse.report.document import FILE, Document, Row, load
from stillhouse.report.drawing import Plot, adaptive, band, ladder, marked
from stillhouse.report.pages import TEXT, write_figures
from stillhouse.report.palette import Theme
from stillhouse.report.render import overview_markdown
from stillhouse.report.statistics import Difference
from stillhouse.report.tables import (
    NONE,
    Cell,
    Column,
    Line,
    Table,
    gap_cell,
    spread,
    starred,
    total_seconds,
)

PAGE, FIGURES = "README.md", "overview"
LINEAR = 10  # percent; beyond it the axis is logarithmic


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A report on the page."""

    name: str
    link: str  # of its text, relative to the page
    document: Document


def overview(reports: Sequence[Path], *, page: Path | None = None) -> Table:
    """What each report's method reaches beside its teacher and its baseline; written to `page`,
    a folder, as README.md with a plot where one is given.

    `reports` are report.json files, or folders that hold some. Raises MissingData where there is
    none, CorruptArtifact for one that cannot be read.
    """
    found = sorted({file for path in reports for file in _records(path)})
    if not found:
        looked = ", ".join(map(str, reports))
        raise MissingData(
            f"no {FILE} below {looked}. Publish one with: stillhouse report RECIPE --publish DIR"
        )
    entries = _entries(found, Path() if page is None else page)
    table = _table(entries)
    if page is not None:
        plot = _plot(entries)
        with writing(page / FIGURES) as out:
            write_figures((plot,), out)
        write_text(page / PAGE, overview_markdown(table, entries, plot, FIGURES))
    return table


def _records(path: Path) -> list[Path]:
    if path.is_dir():
        return list(path.rglob(FILE))
    return [path] if path.is_file() else []


def _entries(files: Sequence[Path], page: Path) -> list[Entry]:
    documents = [load(file) for file in files]
    titles = [document.title for document in documents]
    return [
        Entry(
            name=document.title
            if titles.count(document.title) == 1
            else f"{document.title} ({file.parent.name})",
            link=os.path.relpath(file.with_name(TEXT), page),
            document=document,
        )
        for file, document in zip(files, documents, strict=True)
    ]


def _table(entries: Sequence[Entry]) -> Table:
    heads = ("Score", "Teacher", "Baseline", "Method", "Difference", "Of the teacher's", "Took")
    return Table(
        title="What each method gained",
        first="Report",
        columns=tuple(Column(label=head, number=head != "Score") for head in heads),
        lines=tuple(Line(head=entry.name, cells=_cells(entry.document)) for entry in entries),
    )


def _cells(document: Document) -> tuple[Cell, ...]:
    score, method = document.score(document.primary or ""), method_row(document)
    took = Cell(text=units.duration(total_seconds(document.stages)))
    if score is None:
        return (*[Cell(text=NONE, quiet=True)] * 6, took)
    rows = (best_row(document, "teacher"), document.row(document.baseline), method)
    better = f"{score.better} is better" if score.directed else ""
    gap = gain(document)
    return (
        Cell(text=units.headed(score), note=better),
        *(_score(row, score) for row in rows),
        Cell(text=NONE, quiet=True) if gap is None else starred(gap_cell(gap, score)),
        _share(method, rows[0]),
        took,
    )


def _score(row: Row | None, score: Score) -> Cell:
    if row is None or score.name not in row.scores:
        return Cell(text=NONE, quiet=True)
    cell = spread(row.scores[score.name], score)
    return Cell(text=cell.text, note=row.name)


def _share(method: Row | None, teacher: Row | None) -> Cell:
    """The method's part of the teacher's first cost that both have."""
    for cost in COMPUTE:
        if method and teacher and cost.name in method.scores and cost.name in teacher.scores:
            ours, theirs = method.scores[cost.name].mean, teacher.scores[cost.name].mean
            if min(ours, theirs) > 0:
                text = f"{units.significant(100 * ours / theirs, 2)} %"
                return Cell(text=text, note=units.inside(cost.label))
    return Cell(text=NONE, quiet=True)


def gain(document: Document) -> Difference | None:
    """The method's difference to the baseline; None where there is none, or where the headline
    withholds it.
    """
    method = method_row(document)
    if method is None or document.headline.withheld or method.name == document.baseline:
        return None
    return method.differences.get(document.primary or "")


def _plot(entries: Sequence[Entry]) -> Plot:
    gains = {entry.name: found for entry in entries if (found := _relative(entry.document))}
    facts = [f"{name} {_percent(found[0])}" for name, found in gains.items()]

    def draw(theme: Theme) -> Figure:
        figure, axes = ladder(list(gains))
        axes.axvline(0, color=theme.baseline, lw=1.2)
        for y, (mean, low, high) in enumerate(gains.values()):
            colour = theme.baseline
            if low is not None and high is not None:
                if not low <= 0 <= high:
                    colour = theme.series[0] if mean > 0 else theme.series[1]
                band(axes, y, low, high, colour)
            marked(axes, mean, y, _percent(mean), marker="o", colour=colour, theme=theme)
        axes.set_xscale("symlog", linthresh=LINEAR)  # one large loss must not hide the others
        axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.12)
        axes.set_xlabel("% of the baseline's score; right is better")
        return figure

    return Plot(
        name="gains",
        title="Gain over the baseline",
        caption="Bands are 95 % intervals over seeds. What is grey is not distinguished from "
        "chance: its interval crosses zero, or one seed gives none. Reports whose headline "
        "is withheld are left out.",
        alt=f"Method against baseline, percent of the baseline's score: {'; '.join(facts)}.",
        svg=adaptive(draw),
    )


def _relative(document: Document) -> tuple[float, float | None, float | None] | None:
    """The gain and its interval in percent of the baseline's score; more is better."""
    gap, score = gain(document), document.score(document.primary or "")
    baseline = document.row(document.baseline)
    if gap is None or score is None or baseline is None or score.name not in baseline.scores:
        return None
    per = 100 * (-1 if score.lower_is_better else 1) / abs(baseline.scores[score.name].mean)
    if gap.low is None or gap.high is None:
        return per * gap.mean, None, None
    low, high = sorted((per * gap.low, per * gap.high))
    return per * gap.mean, low, high


def _percent(value: float) -> str:
    return f"{value:+.1f} %".replace("-", "\N{MINUS SIGN}")
