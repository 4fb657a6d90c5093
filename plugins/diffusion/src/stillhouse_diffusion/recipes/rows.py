"""Rows of the report by name: how many students, which part each owns, how they are trained.

A name is "k<students>" and any of these words, joined by "-": "x<times>" (times the steps),
"random" or "kmeans" (how labels are split), "half" (the narrower student), "notsm" (without stage
0), "pairs" (with the regression on teacher pairs: one update of the fake score a generator's),
"adm" (stage 2 on top). "k4-random-half-adm" is one.
"""

import re
from dataclasses import dataclass, replace

from stillhouse.errors import BadSetting
from stillhouse_diffusion.making import Split

WORDS = ("x<times>", "random", "kmeans", "half", "notsm", "pairs", "adm")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a row's students are; `name` is as it was given."""

    name: str
    students: int
    times: int = 1
    by: Split = "blocks"
    half: bool = False
    tsm: bool = True
    pairs: bool = False
    adm: bool = False

    @property
    def base(self) -> "Row":
        """The row whose stage-1 students a stage 2 restarts from; itself without one."""
        if not self.adm:
            return self
        words = [word for word in self.name.split("-") if word != "adm"]
        return replace(self, name="-".join(words), adm=False)

    @property
    def title(self) -> str:
        """The row's title in a report."""
        parts = [f"{self.students} student{'s' if self.students > 1 else ''}"]
        parts += [f"{self.times}x steps each"] if self.times > 1 else []
        parts += (
            [{"random": "random split", "kmeans": "k-means split"}[self.by]]
            if (self.by != "blocks")
            else []
        )
        parts += ["narrow", "TSM" if self.tsm else "no TSM"] if self.half else []
        parts += ["regression"] if self.pairs else []
        return ", ".join([*parts, "DM + ADM" if self.adm else "DM"])


def parse_row(name: str) -> Row:
    """The row of a name; raises BadSetting naming the word that is none."""
    first, *words = name.split("-")
    if not re.fullmatch(r"k[1-9]\d{0,4}", first):
        raise BadSetting(f"rows: '{name}' begins with no number of students, as k4 does")
    row = Row(name=name, students=int(first[1:]))
    for word in words:
        if re.fullmatch(r"x[1-9]\d{0,4}", word):
            row = replace(row, times=int(word[1:]))
        elif word in ("random", "kmeans"):
            row = replace(row, by=word)
        elif word == "notsm":
            row = replace(row, tsm=False)
        elif word in ("half", "pairs", "adm"):
            row = replace(row, **{word: True})
        else:
            raise BadSetting(f"rows: '{name}': unknown word '{word}' (known: {', '.join(WORDS)})")
    if not row.tsm and not row.half:
        raise BadSetting(
            f"rows: '{name}': students as wide as the teacher have no TSM to leave out"
        )
    if len(set(words)) < len(words):
        raise BadSetting(f"rows: '{name}': a word stands twice")
    return row
