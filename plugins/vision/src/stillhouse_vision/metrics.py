"""Scores and figure of what a selection of web images kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from stillhouse.batching import each_batch
from stillhouse.data.data import Data
from stillhouse.errors import BadData
from stillhouse.metrics import Metric, Score
from stillhouse.metrics.known import AGREEMENT
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work
from stillhouse_vision.objectives.kd3 import IN_VOCABULARY, VOCABULARY
from stillhouse_vision.objectives.selection import select_instances

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class _Predicted:
    """Both networks' classes on the whole pool, and which of it is kept."""

    teacher: Tensor  # [M]
    student: Tensor  # [M]
    kept: Tensor  # bool [M]
    vocabulary: Tensor | None  # bool [M]


@dataclass(frozen=True, kw_only=True)
class Kept(Metric):
    """KD3's selection on the images themselves, at the teacher's weight `alpha`, as the rows kept
    and dropped: their share of the pool, the share of them in the target's
    vocabulary where the data have it, and how often both networks predict one class.
    """

    alpha: float
    cutoff: float
    batch: int = 250

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        predictions = _predicted(models, data, self.alpha, self.cutoff, self.batch)
        scores: dict[tuple[str, str], float] = {}
        for line, mask in (("kept", predictions.kept), ("dropped", ~predictions.kept)):
            scores[line, "pool_rate"] = float(mask.float().mean())
            if not mask.any():
                continue
            if predictions.vocabulary is not None:
                scores[line, IN_VOCABULARY.name] = float(
                    predictions.vocabulary[mask].float().mean()
                )
            agree = predictions.teacher[mask] == predictions.student[mask]
            scores[line, AGREEMENT.name] = float(agree.float().mean())
        return scores

    def scores(self) -> Sequence[Score]:
        pool = Score(name="pool_rate", better="neither", unit="%", label="Of the pool")
        return (pool, IN_VOCABULARY, AGREEMENT)


@dataclass(frozen=True, kw_only=True)
class KeptImages:
    """Images drawn by `seed` from those KD3's selection keeps, above, and drops, below, each with
    the teacher's and the student's class.
    """

    alpha: float
    cutoff: float
    names: tuple[str, ...] = ()
    name: str = "kept-and-dropped"
    columns: int = 8
    rows: int = 3  # of each kind
    seed: int = 0
    batch: int = 250

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        from matplotlib.figure import Figure  # not pyplot: no global state, no window

        predictions = _predicted(models, data, self.alpha, self.cutoff, self.batch)
        rng = Generator().manual_seed(self.seed)
        figure = Figure(figsize=(1.35 * self.columns, 3.6 * self.rows), layout="constrained")
        grid = figure.add_gridspec(2, 1)
        for place, (title, mask) in enumerate(
            (("Kept", predictions.kept), ("Dropped", ~predictions.kept))
        ):
            part = figure.add_subfigure(grid[place])
            found = mask.nonzero()[:, 0]
            part.suptitle(f"{title}: {len(found)} of {len(mask)}", fontsize=11)
            drawn = torch.randperm(len(found), generator=rng)[: self.rows * self.columns]
            chosen = found[drawn].tolist()
            images = self._images(data, chosen)
            axes = part.subplots(self.rows, self.columns, squeeze=False).flatten()
            for axis in axes:
                axis.set_axis_off()
            for axis, row in zip(axes, chosen, strict=False):
                self._show(
                    axis, images[row], int(predictions.teacher[row]), int(predictions.student[row])
                )
        return figure

    def _images(self, data: Data, rows: Sequence[int]) -> Mapping[int, Tensor]:
        """The images of these rows, without holding those of all."""
        found: dict[int, Tensor] = {}
        for number, batch in enumerate(data.batches(self.batch, rng=None)):
            first = number * self.batch
            images = batch["images"]
            found |= {r: images[r - first].clone() for r in rows if 0 <= r - first < len(images)}
        return found

    def _show(self, axis: "Axes", image: Tensor, teacher: int, student: int) -> None:
        axis.imshow(image.expand(3, -1, -1).permute(1, 2, 0).numpy(), interpolation="nearest")
        text = f"teacher: {self._word(teacher)}\nstudent: {self._word(student)}"
        axis.text(*(0.5, -0.04, text), fontsize=7, ha="center", va="top", transform=axis.transAxes)

    def _word(self, number: int) -> str:
        return self.names[number] if self.names else str(number)


def _predicted(models: Models, data: Data, alpha: float, cutoff: float, batch: int) -> _Predicted:
    device = next(models["student"].parameters()).device

    def outputs(given: Tensors) -> dict[str, Tensor]:
        images = {"images": given["images"].to(device)}
        found = {role: models[role](images)["logits"].cpu() for role in ("teacher", "student")}
        return found | ({VOCABULARY: given[VOCABULARY]} if VOCABULARY in given else {})

    parts = list(each_batch(data, outputs, most=batch, device=device))
    if not parts:
        raise BadData("the pool holds no image")
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    teacher, student = whole["teacher"], whole["student"]
    kept = torch.zeros(len(teacher), dtype=torch.bool)
    kept[select_instances(teacher, student, alpha=alpha, cutoff=cutoff)] = True
    return _Predicted(
        teacher=teacher.argmax(1),
        student=student.argmax(1),
        kept=kept,
        vocabulary=whole.get(VOCABULARY),
    )
