"""How the scores of a table rank what they should predict: a study of search methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stillhouse.data.data import Data, RowData
from stillhouse.errors import BadData, BadSetting
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models
from stillhouse.search.ranking import bootstrap, kendall_tau, partial_kendall_tau, spearman_rho
from stillhouse.work import Work

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# a partial correlation is not defined where one is (almost) a function of the other
SAME = 1 - 1e-6
TAU, RHO, PARTIAL = "kendall_tau", "spearman_rho", "partial_tau"
WIDE = 1000  # a column that spans more than this factor is drawn on a logarithmic axis


@dataclass(frozen=True, kw_only=True)
class RankCorrelations(Metric):
    """Rank correlations of each column of `lines` with the column `target`, with 95 % bootstrap
    intervals over the rows.

    A row a line, the column's name: kendall_tau and spearman_rho; partial_tau, Kendall's given the
    column `given`, but for that column itself and for one that orders the rows as it does.
    <score>_low and <score>_high are the interval's ends. A column that is the same in all rows
    (a proxy to which every network is dead) ranks nothing and is left out.
    """

    target: str = "accuracy"
    lines: tuple[str, ...]
    given: str = "parameters"
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lines or self.resamples < 1:
            raise BadSetting(
                "rank correlations need a line and resamples >= 1 "
                f"(got {len(self.lines)} and {self.resamples})"
            )

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        target, given = column_of(data, self.target), column_of(data, self.given)
        found: dict[tuple[str, str], float] = {}
        apart = abs(kendall_tau(target, given)) < SAME
        for line in self.lines:
            score = column_of(data, line)
            if bool((score == score[0]).all()):
                continue
            found |= self._interval(line, TAU, kendall_tau, score, target)
            found |= self._interval(line, RHO, spearman_rho, score, target)
            if apart and line != self.given and abs(kendall_tau(score, given)) < SAME:
                found |= self._interval(line, PARTIAL, partial_kendall_tau, score, target, given)
        return found

    def scores(self) -> Sequence[Score]:
        return [
            score
            for name in (TAU, RHO, PARTIAL)
            for score in (
                Score(name=name, better="higher", ends=_ends(name)),
                *(Score(name=end, better="higher") for end in _ends(name)),
            )
        ]

    def _interval(
        self, line: str, name: str, statistic: Callable[..., float], *columns: Tensor
    ) -> dict[tuple[str, str], float]:
        found = bootstrap(statistic, *columns, resamples=self.resamples, seed=self.seed)
        low, high = _ends(name)
        return {(line, name): found.value, (line, low): found.low, (line, high): found.high}


def _ends(name: str) -> tuple[str, str]:
    return f"{name}_low", f"{name}_high"


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Each of the columns `lines` against the column `target`, a point a row, with its tau."""

    name: str = "scatter"
    target: str = "accuracy"
    lines: tuple[str, ...]
    columns: int = 4

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        from matplotlib.figure import Figure  # not pyplot: no global state, no window

        target = column_of(data, self.target)
        across = min(self.columns, len(self.lines))
        down = -(-len(self.lines) // across)
        figure = Figure(figsize=(3.2 * across, 2.9 * down), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).flatten()
        for axis in axes[len(self.lines) :]:
            axis.set_axis_off()
        for axis, line in zip(axes, self.lines, strict=False):
            self._draw(axis, line, column_of(data, line), target)
        return figure

    def _draw(self, axis: "Axes", line: str, score: Tensor, target: Tensor) -> None:
        axis.scatter(score.tolist(), target.tolist(), s=14, color="#2457a7", alpha=0.75)
        tau = kendall_tau(score, target)
        axis.set_title(f"{line}: tau {tau:.2f}, n = {len(score)}", fontsize=9)
        axis.set_xlabel(line, fontsize=8)
        axis.set_ylabel(self.target, fontsize=8)
        axis.tick_params(labelsize=7)
        above = score[score > 0]
        if score.min() >= 0 and len(above) > 0 and score.max() > WIDE * above.min():
            axis.set_xscale("symlog", linthresh=float(above.min()))  # 0 has a place on it
            ticks: Any = axis.xaxis.get_major_locator()  # Any: symlog's own, which takes numticks
            ticks.set_params(numticks=5)
        else:
            axis.locator_params(axis="x", nbins=4)


def column_of(data: Data, name: str) -> Tensor:
    """A column of numbers, [N] float64; raises UnknownName or BadData."""
    if not isinstance(data, RowData):
        raise BadData("rank correlations are of a table's columns")
    column = named(data.columns, name, what="column", where="rank correlations")
    if not isinstance(column, Tensor) or column.ndim != 1:
        raise BadData(f"rank correlations: column '{name}' holds no single numbers")
    return column.double()
