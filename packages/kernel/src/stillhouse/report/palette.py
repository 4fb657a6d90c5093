"""Colours, the same in tables and figures; series after Okabe and Ito, for colour-blind readers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from stillhouse.report.document import Row

Mode = Literal["light", "dark"]
MODES: tuple[Mode, ...] = ("light", "dark")
# a second channel beside colour: rows past the palette repeat colours, never the pair
MARKERS = ("o", "s", "D", "^", "v", "P", "X")


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of a figure's furniture and of the rows by kind."""

    ink: str
    muted: str
    grid: str
    paper: str
    teacher: str
    baseline: str
    series: tuple[str, ...]


THEMES: Mapping[Mode, Theme] = {
    "light": Theme(
        ink="#16202c",
        muted="#566273",
        grid="#e3e8ee",
        paper="#ffffff",
        teacher="#16202c",
        baseline="#7b8796",
        series=("#0069a8", "#c8500a", "#00805c", "#a8457f", "#7a6200", "#4b4fb8", "#a3302f"),
    ),
    "dark": Theme(
        ink="#e9eef5",
        muted="#a3afbf",
        grid="#2a3442",
        paper="#161d27",
        teacher="#e9eef5",
        baseline="#8492a3",
        series=("#56b4e9", "#f0913f", "#35c99a", "#e28fc0", "#d9c545", "#9aa0ff", "#f08682"),
    ),
}


def pairs() -> dict[str, str]:
    """The colour of the dark mode for each of the light one."""
    light, dark = (THEMES[mode] for mode in MODES)
    named = {getattr(light, f.name): getattr(dark, f.name) for f in fields(Theme)}
    named.pop(light.series)
    return named | dict(zip(light.series, dark.series, strict=True))


def colours(rows: Sequence[Row], theme: Theme) -> tuple[str, ...]:
    """A colour a row: ink for teachers, grey for the baseline, the series for the others."""
    students = [row.name for row in rows if row.compared]
    fixed = {"teacher": theme.teacher, "baseline": theme.baseline}
    return tuple(
        fixed.get(row.kind) or theme.series[students.index(row.name) % len(theme.series)]
        for row in rows
    )


def markers(rows: Sequence[Row]) -> tuple[str, ...]:
    """A marker a row."""
    return tuple(MARKERS[i % len(MARKERS)] for i in range(len(rows)))
