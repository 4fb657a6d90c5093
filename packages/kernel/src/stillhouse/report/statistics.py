"""What a few seeds say: mean, spread, 95 % interval, and differences with their intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

LEVEL = 0.95
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Values of one score over seeds. With one value there is no spread and no interval: None."""

    values: tuple[float, ...]
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row minus another: paired by seed, of unrelated seeds (welch), or of means alone."""

    how: str  # "paired", "welch" or "means"
    n: int  # pairs, or seeds of the smaller side
    mean: float
    low: float | None
    high: float | None
    p: float | None = None  # two-sided; None without an interval
    corrected: float | None = None  # p by Holm's correction for the rows tested beside this one
    apart: int = 0  # of a paired one: seeds that only one of the rows has

    def beyond_noise(self) -> bool:
        """Whether the 95 % interval leaves out zero, and the corrected p says so too where there is
        one; without an interval, False.
        """
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return False
        return self.corrected is None or self.corrected < 1 - LEVEL


def summarize(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation (n - 1) and Student's t interval of the mean."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(values=tuple(values), mean=mean, sd=None, low=None, high=None)
    sd = statistics.stdev(values)
    half = _t(len(values) - 1) * sd / math.sqrt(len(values))
    return Summary(values=tuple(values), mean=mean, sd=sd, low=mean - half, high=mean + half)


def paired(values: Sequence[float], baseline: Sequence[float], *, apart: int = 0) -> Difference:
    """`values` minus `baseline`, seed by seed; both hold the same seeds in the same order, and
    `apart` more are in one of the rows alone.
    """
    gaps = summarize([a - b for a, b in zip(values, baseline, strict=True)])
    n = len(gaps.values)
    if gaps.sd is None:
        return Difference(how="paired", n=n, mean=gaps.mean, low=None, high=None, apart=apart)
    return replace(_tested("paired", n, gaps.mean, gaps.sd / math.sqrt(n), n - 1), apart=apart)


def unpaired(values: Sequence[float], other: Sequence[float]) -> Difference:
    """Difference of the means of unrelated seeds; Welch's interval needs two on each side."""
    a, b = summarize(values), summarize(other)
    gap, n = a.mean - b.mean, min(len(values), len(other))
    if a.sd is None or b.sd is None:
        return Difference(how="means", n=n, mean=gap, low=None, high=None)
    va, vb = a.sd**2 / len(values), b.sd**2 / len(other)
    parts = va**2 / (len(values) - 1) + vb**2 / (len(other) - 1)
    freedom = (va + vb) ** 2 / parts if parts else n - 1
    return _tested("welch", n, gap, math.sqrt(va + vb), freedom)


def seeds_needed(gain: float, sd: float, *, most: int = 10_000) -> int:
    """How many pairs of seeds a t test needs (two-sided, 5 %) to find a gain in four of five
    studies, where the pairs' differences have the standard deviation `sd`; 0 for more than `most`.
    """
    from scipy.stats import nct, t  # slow to import

    def power(n: int) -> float:
        bound = float(t.ppf((1 + LEVEL) / 2, n - 1))
        return float(nct.sf(bound, n - 1, math.sqrt(n) * gain / sd))

    if sd <= 0:
        return 2
    if gain <= 0 or power(most) < POWER:
        return 0
    low, high = 1, most  # power grows with n; `low` is too few
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def holm(gaps: Sequence[Difference]) -> tuple[Difference, ...]:
    """The differences with p corrected for their number (Holm 1979: step-down, valid for any
    dependence); those without p are not counted.
    """
    tested = sorted((gap.p, i) for i, gap in enumerate(gaps) if gap.p is not None)
    corrected: dict[int, float] = {}
    least = 0.0
    for rank, (p, i) in enumerate(tested):
        least = max(least, min(1.0, p * (len(tested) - rank)))
        corrected[i] = least
    return tuple(replace(gap, corrected=corrected.get(i)) for i, gap in enumerate(gaps))


def _tested(how: str, n: int, gap: float, error: float, freedom: float) -> Difference:
    """Student's t interval and two-sided p of a difference with the standard error `error`."""
    from scipy.stats import t  # slow to import

    half = _t(freedom) * error
    p = float(2 * t.sf(abs(gap) / error, freedom)) if error else float(gap == 0)
    return Difference(how=how, n=n, mean=gap, low=gap - half, high=gap + half, p=p)


def _t(freedom: float) -> float:
    from scipy.stats import t  # slow to import

    return float(t.ppf((1 + LEVEL) / 2, freedom))
