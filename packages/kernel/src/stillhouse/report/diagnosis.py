"""Why a student may be no better than alone: checks of what a finished run recorded, each with the
figure behind it and what to try. A check that finds nothing says nothing.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.metrics.scores import FRACTION, Score
from stillhouse.metrics.units import (
    capital,
    difference,
    inside,
    number,
    quantity,
    seeds,
    significant,
)
from stillhouse.probe import composed_of
from stillhouse.recipe import OUTSIDE, Recipe
from stillhouse.report.document import Curve, Document, Finding, Row
from stillhouse.report.statistics import Difference, seeds_needed
from stillhouse.report.timings import evaluated_model
from stillhouse.stages.train import Train

PART = 10  # a training's first and last tenth
LOGGED = 40  # values of a curve below which its parts say nothing
FALLING = 0.03  # of the whole fall, within the last tenth
CERTAIN = 3.0  # standard errors
SMALL = 0.05  # of the loss


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The row that is held against the baseline, the best teacher and what all three are scored
    by.
    """

    document: Document
    recipe: Recipe
    primary: Score
    method: Row
    baseline: Row
    teacher: Row | None

    def lead(self, row: Row, over: Row) -> float:
        """By how much a row's mean is better; below 0 where it is worse."""
        gap = row.scores[self.primary.name].mean - over.scores[self.primary.name].mean
        return -gap if self.primary.lower_is_better else gap

    def score(self, row: Row) -> str:
        return quantity(row.scores[self.primary.name].mean, self.primary)

    def error(self, row: Row) -> float:
        """The standard error of a row's mean; 0 of one seed. Student's interval of two or three is
        so wide that no lead would be beyond it.
        """
        summary = row.scores[self.primary.name]
        return 0.0 if summary.sd is None else summary.sd / math.sqrt(len(summary.values))

    @property
    def trained(self) -> Mapping[str, Train]:
        """The trainings of the method's row by name, behind conversions."""
        return trainings(self.recipe, self.method)

    @property
    def curves(self) -> Sequence[Curve]:
        return [curve for curve in self.document.curves if curve.stage in self.trained]


Check = Callable[[Subject], Iterator[Finding]]


def diagnose(document: Document, recipe: Recipe) -> tuple[Finding, ...]:
    """What the checks find about the recipe's own row, or else its best student; () where it or the
    baseline has no score yet.
    """
    subject = subject_of(document, recipe)
    return () if subject is None else tuple(f for check in CHECKS for f in check(subject))


def subject_of(document: Document, recipe: Recipe) -> Subject | None:
    primary, baseline = document.score(document.primary or ""), document.row(document.baseline)
    if primary is None or baseline is None or primary.name not in baseline.scores:
        return None
    sign = -1 if primary.lower_is_better else 1

    def best(rows: Sequence[Row]) -> Row | None:
        scored = [row for row in rows if primary.name in row.scores]
        return max(scored, key=lambda r: sign * r.scores[primary.name].mean, default=None)

    own = [row for row in document.rows if row.name == document.method]
    method = best(own or [row for row in document.rows if row.kind == "student"])
    if method is None:
        return None
    return Subject(
        document=document,
        recipe=recipe,
        primary=primary,
        method=method,
        baseline=baseline,
        teacher=best([row for row in document.rows if row.kind == "teacher"]),
    )


def trainings(recipe: Recipe, row: Row) -> dict[str, Train]:
    """The trainings of the models that a row's evaluations are about, behind conversions."""
    found: dict[str, Train] = {}
    for name in row.stages:
        ref = evaluated_model(recipe.stage(name))
        while ref and not ref.startswith(OUTSIDE):
            stage = recipe.stage(ref.partition(".")[0])
            if isinstance(stage, Train):
                found[stage.name] = stage
                break
            ref = stage.inputs.get("student", "")
    return found


def teacher_not_ahead(s: Subject) -> Iterator[Finding]:
    if s.teacher is None:
        return
    noise = 2 * math.hypot(s.error(s.baseline), s.error(s.teacher))
    if s.lead(s.teacher, s.baseline) > noise:
        return
    amount = f"{number(noise, s.primary)} {s.primary.points}".rstrip()
    yield Finding(
        check="teacher not ahead",
        figure=f"{capital(s.teacher.name)} has {s.score(s.teacher)} {inside(s.primary.label)}, "
        f"{s.baseline.name} alone {s.score(s.baseline)}"
        f"{f' (two standard errors: {amount})' if noise else ''}: there is nothing to learn from "
        "it.",
        remedy="Take a better teacher (pretrained, larger, trained for longer), a smaller student, "
        "or fewer labels beside unlabelled data that the teacher answers.",
    )


def teacher_near_control(s: Subject) -> Iterator[Finding]:
    control = s.document.control
    if s.teacher is None or control is None:
        return
    mean = s.teacher.scores[s.primary.name].mean
    ahead = control.value - mean if s.primary.lower_is_better else mean - control.value
    if ahead > 2 * s.error(s.teacher):
        return
    yield Finding(
        check="teacher near the trivial control",
        figure=f"{capital(s.teacher.name)} has {s.score(s.teacher)}, {control.name} "
        f"{quantity(control.value, s.primary)}.",
        remedy="Look at the teacher before anything else: the order of its classes, its "
        "preprocessing, then its training.",
    )


def no_certain_gain(s: Subject) -> Iterator[Finding]:
    gap = s.method.differences.get(s.primary.name)
    if gap is None or gap.beyond_noise():
        return
    if gap.low is None or gap.high is None:
        yield Finding(
            check="too few seeds",
            figure=f"{seeds(gap.n)}: no interval can be given, and chance is not ruled out.",
            remedy="Train more seeds, as in --set seeds=5.",
        )
        return
    spread = _spread(gap)
    figure = (
        f"{seeds(gap.n)} differ by {difference(gap.mean, s.primary)} with a standard deviation of "
        f"{number(spread, s.primary)} {s.primary.points}".rstrip()
    )
    if count := seeds_needed(abs(gap.mean), spread):
        figure += f": a gain of that size is distinguished from noise by about {count:,} seeds"
    point = 0.01  # of a fraction
    if s.primary.unit == FRACTION and abs(gap.mean) < point:
        figure += f", one of {number(point, s.primary)} points by about "
        figure += f"{seeds_needed(point, spread):,}"
    yield Finding(
        check="too few seeds",
        figure=f"{figure} (80 % power).",
        remedy="Train as many seeds as the gain that you hope for needs, or look for a larger gain "
        "below.",
    )


def loss_still_falling(s: Subject) -> Iterator[Finding]:
    for curve in s.curves:
        values = _values(curve, "loss")
        if len(values) < LOGGED:
            continue
        size = len(values) // PART
        first, before, last = values[:size], values[-2 * size : -size], values[-size:]
        fall = statistics.fmean(first) - statistics.fmean(last)
        late = statistics.fmean(before) - statistics.fmean(last)
        error = math.sqrt((_variance(before) + _variance(last)) / size)
        if fall > 0 and late > FALLING * fall and late > CERTAIN * error:
            yield Finding(
                check="loss still falling",
                figure=f"Over the last tenth of {curve.stage}'s steps its loss fell from "
                f"{significant(statistics.fmean(before), 3)} to "
                f"{significant(statistics.fmean(last), 3)}, {late / fall:.0%} of its whole fall.",
                remedy="Train for longer: more steps, the baseline's too.",
            )
            return  # the other seeds say the same


def distillation_too_small(s: Subject) -> Iterator[Finding]:
    for curve in s.curves:
        names = distilling(s.trained[curve.stage])
        terms = [name for name in curve.columns if name not in ("step", "loss")]
        kept = [name for name in names if name in terms]
        if not kept or len(kept) == len(terms):
            continue
        shares = _shares(curve, kept, terms)
        if shares is None or max(shares) >= SMALL:
            continue
        yield Finding(
            check="distillation term too small",
            figure=f"{', '.join(kept)} make {significant(100 * shares[0], 2)} % of {curve.stage}'s "
            f"loss at its start and {significant(100 * shares[1], 2)} % at its end.",
            remedy="Raise the weight of what is distilled, or lower that of the labels.",
        )
        return


def distillation_not_learned(s: Subject) -> Iterator[Finding]:
    for curve in s.curves:
        for name in distilling(s.trained[curve.stage]):
            values = _values(curve, name)
            if len(values) < LOGGED:
                continue
            size = len(values) // PART
            first, last = values[:size], values[-size:]
            error = math.sqrt((_variance(first) + _variance(last)) / size)
            if statistics.fmean(first) - statistics.fmean(last) <= error:
                yield Finding(
                    check="distillation term not learned",
                    figure=f"'{name}' of {curve.stage} went from "
                    f"{significant(statistics.fmean(first), 3)} to "
                    f"{significant(statistics.fmean(last), 3)}.",
                    remedy="Another learning rate, an earlier or later layer, or a higher "
                    "temperature: as it is the student does not follow the teacher.",
                )
                return


def trained_otherwise(s: Subject) -> Iterator[Finding]:
    ours = next(iter(s.trained.values()), None)
    theirs = next(iter(trainings(s.recipe, s.baseline).values()), None)
    if ours is None or theirs is None:
        return
    mine, other = _effort(ours), _effort(theirs)
    if unlike := [name for name in mine if mine[name] != other[name]]:
        listed = (f"{name} {mine[name]} and {other[name]}" for name in unlike)
        yield Finding(
            check="rows trained unlike one another",
            figure=f"{capital(s.method.name)} and {s.baseline.name} have {', '.join(listed)}.",
            remedy="Give both rows the same effort, or the difference is that of the effort.",
        )


def student_costs_as_much(s: Subject) -> Iterator[Finding]:
    for sentence in s.document.costlier:
        yield Finding(
            check="student costs as much as its teacher",
            figure=sentence,
            remedy="Take a smaller student, or the teacher itself.",
        )


CHECKS: Sequence[Check] = (
    teacher_not_ahead,
    teacher_near_control,
    trained_otherwise,
    distillation_too_small,
    distillation_not_learned,
    loss_still_falling,
    no_certain_gain,
    student_costs_as_much,
)


def distilling(stage: Train) -> tuple[str, ...]:
    """The names of the terms that read a role which no phase trains, as a teacher is; () for an
    objective that is not composed of terms.
    """
    composed = composed_of(stage)
    if composed is None:
        return ()
    trained = {role for phase in composed.phases.values() for role in phase.trains}
    frozen = {role for role in composed.roles if role not in trained}
    return tuple(
        name
        for name, loss in composed.losses.items()
        if any(read.partition(".")[0] in frozen for read in loss.term.names)
    )


def _effort(stage: Train) -> dict[str, Any]:  # Any: values of a training's settings
    return {
        "steps": stage.steps,
        "batch": stage.batch,
        "precision": stage.precision,
        "augmentation": type(stage.augment).__name__ if stage.augment else "none",
    }


def _spread(gap: Difference) -> float:
    """The standard deviation between the seeds of a difference, from its interval."""
    from scipy.stats import t  # slow to import

    assert gap.high is not None
    return (gap.high - gap.mean) / float(t.ppf(0.975, gap.n - 1)) * math.sqrt(gap.n)


def _shares(curve: Curve, kept: Sequence[str], terms: Sequence[str]) -> tuple[float, float] | None:
    """The share of some terms in all, over the first and the last tenth; None of a short curve."""
    columns = {name: _values(curve, name) for name in terms}
    count = min(map(len, columns.values()))
    if count < LOGGED:
        return None
    size = count // PART

    def share(part: slice) -> float:
        sizes = {n: abs(statistics.fmean(values[part])) for n, values in columns.items()}
        whole = sum(sizes.values())
        return sum(sizes[name] for name in kept) / whole if whole else 0.0

    return share(slice(size)), share(slice(-size, None))


def _values(curve: Curve, name: str) -> list[float]:
    return [v for v in curve.columns.get(name, ()) if v is not None and math.isfinite(v)]


def _variance(values: Sequence[float]) -> float:
    return statistics.variance(values) if len(values) > 1 else 0.0
