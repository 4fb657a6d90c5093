"""What a few seeds say: mean, spread, 95 % interval, and differences with their intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


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

    def beyond_noise(self) -> bool:
        """Whether the 95 % interval leaves out zero; without an interval, False."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def summarize(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation (n - 1) and Student's t interval of the mean."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(values=tuple(values), mean=mean, sd=None, low=None, high=None)
    sd = statistics.stdev(values)
    half = _t(len(values) - 1) * sd / math.sqrt(len(values))
    return Summary(values=tuple(values), mean=mean, sd=sd, low=mean - half, high=mean + half)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """`values` minus `baseline`, seed by seed; both hold the same seeds in the same order."""
    gaps = summarize([a - b for a, b in zip(values, baseline, strict=True)])
    return Difference(
        how="paired", n=len(gaps.values), mean=gaps.mean, low=gaps.low, high=gaps.high
    )


def unpaired(values: Sequence[float], other: Sequence[float]) -> Difference:
    """Difference of the means of unrelated seeds; Welch's interval needs two on each side."""
    a, b = summarize(values), summarize(other)
    gap, n = a.mean - b.mean, min(len(values), len(other))
    if a.sd is None or b.sd is None:
        return Difference(how="means", n=n, mean=gap, low=None, high=None)
    va, vb = a.sd**2 / len(values), b.sd**2 / len(other)
    if va + vb == 0:
        return Difference(how="welch", n=n, mean=gap, low=gap, high=gap)
    freedom = (va + vb) ** 2 / (va**2 / (len(values) - 1) + vb**2 / (len(other) - 1))
    half = _t(freedom) * math.sqrt(va + vb)
    return Difference(how="welch", n=n, mean=gap, low=gap - half, high=gap + half)


def _t(freedom: float) -> float:
    from scipy.stats import t  # slow to import

    return float(t.ppf((1 + LEVEL) / 2, freedom))
