"""How well a score ranks: rank correlations, and their bootstrap intervals.

N: what was scored. A column is N numbers; only their order counts, so that a score of -inf (a
network that is dead) is the lowest rank, shared by all that have it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from stillhouse.errors import BadData

Column = Sequence[float] | Tensor  # [N]
FEWEST = 3  # two pairs are always in perfect order or in perfect disorder
COVERAGE = 0.95
TRIES = 20  # draws a resample, before a column counts as too uniform


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """A correlation of n pairs with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    n: int


def kendall_tau(x: Column, y: Column) -> float:
    """Kendall's tau-b (1945), -1 to 1: concordant minus discordant pairs, over the geometric mean
    of the pairs not tied in x and those not tied in y.

    Raises BadData for fewer than 3 pairs, columns of two lengths, NaN, or a constant column.
    """
    x, y = _checked(x=x, y=y)
    return _tau_b(_ranks(x), _ranks(y))


def spearman_rho(x: Column, y: Column) -> float:
    """Spearman's rho, -1 to 1: Pearson's correlation of the ranks, equal values sharing their mean
    rank. Raises BadData as `kendall_tau`.
    """
    x, y = _checked(x=x, y=y)
    a, b = (r - r.mean() for r in (_ranks(x), _ranks(y)))
    return float((a @ b) / ((a @ a) * (b @ b)).sqrt())


def partial_kendall_tau(x: Column, y: Column, given: Column) -> float:
    """Kendall's partial rank correlation (1942) of x and y with z = `given` held fixed, -1 to 1:

    (t_xy - t_xz t_yz) / sqrt((1 - t_xz^2) (1 - t_yz^2)), each t a tau-b.

    Of a score and accuracy given parameters: what the score explains that size does not. Not a
    test: a score that is size and noise leaves a remainder above 0 (1/9 where x and y are z plus
    normal noise as large as z); `kendall_tau_within` leaves none. Raises BadData as `kendall_tau`,
    and where z orders as x or as y does, which leaves nothing to explain.
    """
    x, y, z = map(_ranks, _checked(x=x, y=y, given=given))
    xy, xz, yz = _tau_b(x, y), _tau_b(x, z), _tau_b(y, z)
    left = (1 - xz**2) * (1 - yz**2)
    if left < 1e-12:
        same = "x" if abs(xz) > abs(yz) else "y"
        raise BadData(f"partial tau: 'given' orders as {same} does (tau {xz:.3g}, {yz:.3g})")
    return (xy - xz * yz) / left**0.5


def kendall_tau_within(x: Column, y: Column, groups: Column) -> float:
    """tau-b over the pairs of one group alone, -1 to 1: how x orders y among equals.

    Of groups of equal size, what no function of size explains. Ours: the sums of `kendall_tau`
    (concordant minus discordant, not tied in x, not tied in y) go over all groups before the
    division. Raises BadData as `kendall_tau`, and where no group has a pair that
    differs in x, or none that differs in y.
    """
    x, y, groups = _checked(x=x, y=y, groups=groups)
    x, y = _ranks(x), _ranks(y)  # infinite values have no difference
    order, *untied = (sum(parts) for parts in zip(*_group_sums(x, y, groups), strict=True))
    if min(untied) == 0:
        column = "x" if untied[0] == 0 else "y"
        raise BadData(f"tau within groups: no group has two values of {column} that differ")
    return order / (untied[0] * untied[1]) ** 0.5


def _group_sums(x: Tensor, y: Tensor, groups: Tensor) -> Iterator[tuple[float, float, float]]:
    """Of each group, over ordered pairs: concordant minus discordant, not tied in x, in y."""
    for value in groups.unique():
        inside = groups == value
        a, b = ((c[inside, None] - c[inside]).sign() for c in (x, y))
        yield float((a * b).sum()), float(a.abs().sum()), float(b.abs().sum())


def bootstrap(
    statistic: Callable[..., float], *columns: Column, resamples: int = 1000, seed: int = 0
) -> Correlation:
    """`statistic` of the columns, with the percentile interval (2.5 to 97.5 %) of its values for
    `resamples` draws of N rows with replacement.

    A draw for which the statistic raises BadData (a column that became constant) is drawn again;
    the interval is therefore of the draws that have a value. Raises BadData when most have none,
    and whatever the statistic raises for the columns themselves.
    """
    if resamples < 1:
        raise BadData(f"a bootstrap needs resamples >= 1 (got {resamples})")
    full = [_tensor(column) for column in columns]
    value = statistic(*full)
    rng = Generator().manual_seed(seed)
    found = torch.tensor(
        [_resampled(statistic, full, rng) for _ in range(resamples)], dtype=torch.float64
    )
    tail = (1 - COVERAGE) / 2
    low, high = torch.quantile(found, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Correlation(value=value, low=low, high=high, n=len(full[0]))


def _resampled(statistic: Callable[..., float], columns: Sequence[Tensor], rng: Generator) -> float:
    count = len(columns[0])
    for _ in range(TRIES):
        rows = torch.randint(count, (count,), generator=rng)
        try:
            return statistic(*(column[rows] for column in columns))
        except BadData:
            continue
    raise BadData(
        f"bootstrap of {count} rows: {TRIES} draws in a row have no value; "
        "more rows, or rows that differ more, are needed"
    )


def ranked_last(column: Tensor) -> Tensor:
    """-inf (a dead network) as the lowest finite value minus 1, and 0 - 1 where there is none: the
    last rank still, in a column that can be stored, which must be finite.
    """
    dead = column == -math.inf
    if not bool(dead.any()):
        return column
    lowest = column[~dead].min() if not bool(dead.all()) else torch.zeros(())
    return torch.where(dead, lowest.double() - 1, column)


def _checked(**columns: Column) -> list[Tensor]:
    found = {name: _tensor(column) for name, column in columns.items()}
    lengths = {name: len(column) for name, column in found.items()}
    if len(set(lengths.values())) > 1:
        raise BadData(f"a rank correlation needs columns of one length (got {lengths})")
    if min(lengths.values()) < FEWEST:
        raise BadData(
            f"a rank correlation needs at least {FEWEST} pairs (got {min(lengths.values())})"
        )
    for name, column in found.items():
        if column.isnan().any():
            raise BadData(
                f"rank correlation: value {int(column.isnan().int().argmax())} of {name} is NaN"
            )
        if (column == column[0]).all():
            raise BadData(
                f"rank correlation: all {len(column)} values of {name} are {column[0]:.6g}; "
                "equal values have no order"
            )
    return list(found.values())


def _tensor(column: Column) -> Tensor:
    return torch.as_tensor(column, dtype=torch.float64).detach().cpu()


def _tau_b(x: Tensor, y: Tensor) -> float:
    from scipy.stats import kendalltau  # slow to import

    # its p-value is not used: the asymptotic one costs nothing
    result: Any = kendalltau(x, y, method="asymptotic")  # Any: scipy has no types
    return float(result.statistic)


def _ranks(column: Tensor) -> Tensor:
    """Ranks from 1, equal values sharing their mean rank; infinite values have one too."""
    from scipy.stats import rankdata  # slow to import

    ranks: Any = rankdata(column)  # Any: scipy has no types
    return torch.as_tensor(ranks)
