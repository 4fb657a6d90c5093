"""The tables of a report as cells of text: the same for HTML, Markdown and the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stillhouse.metrics import units
from stillhouse.metrics.known import AGREEMENT
from stillhouse.metrics.scores import Score
from stillhouse.recipe import OUTSIDE
from stillhouse.report.document import Document, Row, StageEntry
from stillhouse.report.statistics import Difference, Summary

NONE = "\N{EN DASH}"
STAR = "*"  # of a difference beyond noise


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A text, a smaller note below it, and how both are set; `bar` is a share of 1."""

    text: str
    note: str = ""
    strong: bool = False
    quiet: bool = False
    code: bool = False
    bar: float | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column's head; `number` columns are right-aligned."""

    label: str
    unit: str = ""
    number: bool = True


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line: its head, the cells, and the row of the report whose colour it has, if any."""

    head: str
    cells: tuple[Cell, ...]
    row: int | None = None
    code: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; `first` heads the column of line heads."""

    title: str
    first: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def head(self) -> tuple[str, ...]:
        """The column heads as plain text."""
        named = (f"{c.label}, {c.unit}" if c.unit else c.label for c in self.columns)
        return (self.first, *named)

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """The lines as plain text."""
        return tuple((line.head, *map(_plain, line.cells)) for line in self.lines)


def filled(table: Table) -> Table:
    """The table without the columns in which no line has a value."""
    kept = [
        i
        for i in range(len(table.columns))
        if any(not line.cells[i].quiet and line.cells[i].text for line in table.lines)
    ]
    lines = [replace(line, cells=tuple(line.cells[i] for i in kept)) for line in table.lines]
    return replace(table, columns=tuple(table.columns[i] for i in kept), lines=tuple(lines))


def _plain(cell: Cell) -> str:
    return f"{cell.text} ({cell.note})" if cell.note else cell.text


def nothing(text: str = NONE) -> Cell:
    """A cell without a value."""
    return Cell(text=text, quiet=True)


def results(document: Document) -> Table:
    """The main table: a line a row, the primary score, its difference, and what the model costs."""
    primary = document.score(document.primary or "")
    others = [s for s in document.scores if s.cost or s.name == AGREEMENT.name]
    others.sort(key=lambda s: s.name != AGREEMENT.name)
    head = _primary_columns(primary) + tuple(_column(s) for s in others)
    lines = [
        Line(
            head=row.name,
            row=i,
            note="the method" if row.name == document.method else "",
            cells=_primary_cells(row, primary) + tuple(_mean(row, s) for s in others),
        )
        for i, row in enumerate(document.rows)
    ]
    return filled(Table(title="Results", first="Model", columns=head, lines=tuple(lines)))


def _column(score: Score) -> Column:
    return Column(label=score.label, unit=score.symbol)


def _primary_columns(primary: Score | None) -> tuple[Column, ...]:
    if primary is None:
        return ()
    return (
        _column(primary),
        Column(label="95 % interval"),
        Column(label="Difference", unit=primary.points),
        Column(label="p"),
    )


def _primary_cells(row: Row, primary: Score | None) -> tuple[Cell, ...]:
    if primary is None:
        return ()
    summary = row.scores.get(primary.name)
    if summary is None:
        return (nothing("not run"), nothing(), nothing(), nothing())
    count = units.seeds(len(summary.values))
    span = (
        nothing(count)
        if summary.low is None or summary.high is None
        else Cell(text=units.interval(summary.low, summary.high, primary), note=count)
    )
    gap = row.differences.get(primary.name)
    p = nothing() if gap is None or row.kind == "baseline" else _p(gap)
    return (spread(summary, primary, strong=True), span, _gap(row, primary), p)


def spread(summary: Summary, score: Score, *, strong: bool = False) -> Cell:
    """The mean, with the standard deviation as its note where there is one."""
    note = "" if summary.sd is None else f"\N{PLUS-MINUS SIGN}{units.number(summary.sd, score)} sd"
    return Cell(text=units.number(summary.mean, score), note=note, strong=strong)


def _gap(row: Row, primary: Score) -> Cell:
    if row.kind == "baseline":
        return nothing("baseline")
    gap = row.differences.get(primary.name)
    if gap is None:
        return nothing()
    return starred(gap_cell(gap, primary))


def starred(cell: Cell) -> Cell:
    """The cell of a difference, starred where it is beyond noise."""
    return replace(cell, text=f"{cell.text} {STAR}") if cell.strong else cell


def gap_cell(gap: Difference, score: Score) -> Cell:
    """A difference with its interval; strong where it is beyond noise."""
    text = units.signed(gap.mean, score)
    if gap.low is None or gap.high is None:
        note = units.seeds(gap.n) if gap.how == "paired" else "not paired"
        return Cell(text=text, note=note)
    span = units.interval(gap.low, gap.high, score, sign=True)
    return Cell(text=text, note=span, strong=gap.beyond_noise())


def _p(gap: Difference) -> Cell:
    """The p that counts: after Holm's correction where other rows were tested beside this one."""
    if gap.corrected is not None:
        return Cell(text=units.probability(gap.corrected), note="Holm")
    return nothing() if gap.p is None else Cell(text=units.probability(gap.p))


def _mean(row: Row, score: Score) -> Cell:
    summary = row.scores.get(score.name)
    return nothing() if summary is None else Cell(text=units.number(summary.mean, score))


def other_scores(document: Document) -> Table:
    """The scores that are neither the primary one nor costs: mean and standard deviation."""
    shown = [
        s
        for s in document.scores
        if not s.cost and s.name not in (document.primary, AGREEMENT.name)
        if any(s.name in row.scores for row in document.rows)
    ]
    lines = [
        Line(
            head=row.name,
            row=i,
            cells=tuple(
                spread(row.scores[s.name], s) if s.name in row.scores else nothing() for s in shown
            ),
        )
        for i, row in enumerate(document.rows)
    ]
    lines = [line for line in lines if not all(cell.quiet for cell in line.cells)]
    columns = tuple(
        Column(
            label=f"{s.label} {'(lower is better)' if s.lower_is_better else ''}".strip(),
            unit=s.symbol,
        )
        for s in shown
    )
    return Table(title="Other scores", first="Model", columns=columns, lines=tuple(lines))


def by_seed(document: Document) -> Table:
    """The primary score of every evaluation."""
    primary = document.score(document.primary or "")
    count = max((len(row.stages) for row in document.rows), default=0)
    label = primary.symbol if primary else ""
    return Table(
        title="Seed by seed",
        first="Model",
        columns=tuple(Column(label=f"Seed {i + 1}", unit=label) for i in range(count)),
        lines=tuple(
            Line(head=row.name, row=i, cells=_seed_cells(row, primary, count))
            for i, row in enumerate(document.rows)
        ),
    )


def _seed_cells(row: Row, primary: Score | None, count: int) -> tuple[Cell, ...]:
    given = {seed.stage: seed.scores for seed in row.seeds}
    cells = [
        Cell(text=units.number(given[stage][primary.name], primary), note=stage)
        if primary is not None and primary.name in given.get(stage, {})
        else Cell(text="not run", note=stage, quiet=True)
        for stage in row.stages
    ]
    return tuple(cells + [nothing()] * (count - len(cells)))


def costs(document: Document) -> Table:
    """What each stage took."""
    names = ("Time", "Device", "Steps", "Batch", "Step", "Samples/s", "Memory", "Notes")
    unit = {"Step": "ms", "Memory": "MiB"}
    longest = max((s.seconds or 0.0 for s in document.stages), default=0.0)
    table = Table(
        title="Cost",
        first="Stage",
        columns=tuple(
            Column(label=n, unit=unit.get(n, ""), number=n not in ("Device", "Notes"))
            for n in names
        ),
        lines=tuple(Line(head=s.name, cells=_cost(s, longest)) for s in document.stages),
    )
    return filled(table)


def _cost(stage: StageEntry, longest: float) -> tuple[Cell, ...]:
    if stage.seconds is None:
        return (nothing("not recorded"), *[nothing()] * 7)
    device = str(stage.device) + (
        f" \N{MULTIPLICATION SIGN} {stage.nproc}" if (stage.nproc or 1) > 1 else ""
    )
    share = stage.seconds / longest if longest else 0.0
    return (
        Cell(text=units.duration(stage.seconds), bar=share),
        Cell(text=device),
        _measured(stage, "steps", 1, "{:.0f}"),
        _measured(stage, "batch", 1, "{:.0f}"),
        _measured(stage, "seconds_per_step", 1000, "{:.1f}"),
        _measured(stage, "samples_per_second", 1, "{:.0f}"),
        _measured(stage, "peak_memory_mib", 1, "{:.0f}"),
        Cell(text=_cost_notes(stage)),
    )


def _measured(stage: StageEntry, name: str, factor: float, form: str) -> Cell:
    value = stage.measured.get(name)
    return nothing() if value is None else Cell(text=form.format(factor * value))


def _cost_notes(stage: StageEntry) -> str:
    notes = [f"resumed at step {stage.resumed_at}"] if stage.resumed_at is not None else []
    cache = stage.measured.get("teacher_cache") or {}
    for role, record in cache.items():
        made, reused = record.get("computed_rows"), record.get("reused_rows")
        notes.append(f"{role} outputs cached: {made} rows computed, {reused} reused")
        for output, kept in (record.get("kept") or {}).items():
            notes.append(
                f"of {role}.{output} {kept['k']} of {kept['classes']} classes kept: "
                f"KL errs by {100 * kept['kl_error']:+.2g} %"
            )
    for score, names in (stage.measured.get("uncounted") or {}).items():
        notes.append(f"{score} without {', '.join(names)}, which cannot be counted")
    return "; ".join(notes)


def sources(document: Document) -> Table:
    """What came from outside the recipe."""
    used: dict[tuple[str, str], list[str]] = {}
    for stage in document.stages:
        for source in stage.inputs.values():
            if source.ref.startswith(OUTSIDE):
                used.setdefault((source.ref, source.digest), []).append(stage.name)
    return Table(
        title="Inputs from outside",
        first="Input",
        columns=(Column(label="Used by", number=False), Column(label="sha256", number=False)),
        lines=tuple(
            Line(
                head=ref,
                code=True,
                cells=(Cell(text=", ".join(dict.fromkeys(stages))), Cell(text=digest, code=True)),
            )
            for (ref, digest), stages in used.items()
        ),
    )


def artifacts(document: Document) -> Table:
    """Every artifact with what it was made from."""
    return Table(
        title="Artifacts",
        first="Artifact",
        columns=tuple(
            Column(label=n, number=False) for n in ("Kind", "Stage", "Made from", "sha256")
        ),
        lines=tuple(
            Line(
                head=f"{stage.name}.{port}",
                code=True,
                cells=(
                    Cell(text=made.kind),
                    Cell(text=stage.kind),
                    Cell(text=", ".join(dict.fromkeys(s.ref for s in stage.inputs.values()))),
                    Cell(text=made.digest, code=True),
                ),
            )
            for stage in document.stages
            for port, made in stage.outputs.items()
        ),
    )


def exported(document: Document) -> Table:
    """The files of converted and exported models."""
    return Table(
        title="Exported files",
        first="File",
        columns=(Column(label="Size"),),
        lines=tuple(
            Line(
                head=f"{item.stage}/{item.port}/{name}",
                code=True,
                cells=(Cell(text=units.file_size(amount)),),
            )
            for item in document.exported
            for name, amount in item.files.items()
        ),
    )


def total_seconds(stages: Sequence[StageEntry]) -> float:
    """Seconds of all recorded stages together."""
    return sum(stage.seconds or 0.0 for stage in stages)
