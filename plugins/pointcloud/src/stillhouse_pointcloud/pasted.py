"""Objects of other training frames pasted into a scene (GT sampling): Yan et al. 2018, SECOND
(Sensors 18, 3337), sec. 3.4.

Each training frame carries ground-truth samples of the others, `spare_*`, out of which a view
draws: so a view is a function of its frame alone, and no frame of validation or test is ever cut
up.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from stillhouse.data.data import Columns, Ragged, TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Tensors
from stillhouse.stages.make import Maker
from stillhouse.training import mix
from stillhouse.work import Work
from stillhouse_pointcloud.augment import SceneAugment
from stillhouse_pointcloud.boxes import CLASSES, inside
from stillhouse_pointcloud.overlaps import bev_areas

SAMPLE = "spare_"  # begins the columns of ground-truth samples, in data on disk too
ROWS = ("boxes", "labels", "difficulty")  # of an object: a row each
MIN_POINTS = 5  # of an object worth pasting, as in SECOND
PASTE = 2  # of a view's draws: another purpose than moving the scene


@dataclass(frozen=True, kw_only=True)
class WithGroundTruthSamples:
    """A `make`: as `make`, and the port train with `samples` ground-truth samples of each class a
    frame.

    They are of other training frames, hold `MIN_POINTS` points and are easy, moderate or hard.
    Ragged columns: spare_boxes, spare_labels, spare_difficulty; spare_counts, points of each; and
    spare_points, those of one after those of the other.
    """

    make: Maker
    samples: int

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: as of `make`
        *,
        work: Work,
    ) -> Mapping[str, Any]:  # Any: columns, as `make` gives them
        made = self.make(inputs, work=work)
        train = cast(Columns, made["train"])
        return {**made, "train": with_samples(train, self.samples, work.rng)}


def with_samples(columns: Columns, samples: int, rng: Generator) -> Columns:
    """The columns, and those of `WithGroundTruthSamples` with `samples` objects of each class a
    frame. Raises BadData where no object is worth pasting.
    """
    names = [json.loads(text)["name"] for text in cast(list[str], columns["frames"])]
    objects = _objects(columns, names)
    if not objects:
        raise BadData(
            f"train: no object holds {MIN_POINTS} points; pasting needs some (gt_sampling=0: none)"
        )
    classes = [[o for o in objects if int(o.rows["labels"]) == c] for c in range(len(CLASSES))]
    drawn = [_drawn(classes, name, samples, rng) for name in names]
    chosen = [one for row in drawn for one in row]
    offsets = _offsets(map(len, drawn))
    made = dict(columns)
    for name in ROWS:
        none = objects[0].rows[name][None][:0]
        values = torch.cat([none, *(one.rows[name][None] for one in chosen)])
        made[SAMPLE + name] = Ragged(values=values, offsets=offsets)
    counts = torch.tensor([len(one.points) for one in chosen], dtype=torch.int64)
    made[f"{SAMPLE}counts"] = Ragged(values=counts, offsets=offsets)
    made[f"{SAMPLE}points"] = Ragged(
        values=torch.cat([objects[0].points[:0], *(one.points for one in chosen)]),
        offsets=_offsets(sum(len(one.points) for one in row) for row in drawn),
    )
    return made


@dataclass(frozen=True, kw_only=True)
class _Object:
    """What was cut out of a frame: its points [n, 4] and its value in each column of `ROWS`."""

    frame: str
    points: Tensor
    rows: Mapping[str, Tensor]


def _objects(columns: Columns, names: list[str]) -> list[_Object]:
    """The objects that are worth pasting, of each frame once however often it is there."""
    data, found = TensorData(columns), list[_Object]()
    firsts = {name: row for row, name in reversed(list(enumerate(names)))}
    for name, row in firsts.items():
        one = data.rows(torch.tensor([row]))
        points = one["points"].double().numpy()
        for i, box in enumerate(one["boxes"].double().numpy()):
            held = inside(points, box)
            if held.sum() >= MIN_POINTS and int(one["difficulty"][i]) >= 0:
                cut = one["points"][torch.as_tensor(held)]
                rows = {column: one[column][i] for column in ROWS}
                found.append(_Object(frame=name, points=cut, rows=rows))
    return found


def _drawn(
    classes: Sequence[Sequence[_Object]], name: str, samples: int, rng: Generator
) -> list[_Object]:
    """Up to `samples` objects of each class, none of the frame `name`."""
    found: list[_Object] = []
    for objects in classes:
        order = torch.randperm(len(objects), generator=rng).tolist()
        others = (objects[i] for i in order if objects[i].frame != name)
        found += islice(others, samples)
    return found


def _offsets(lengths: Iterable[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def _ragged(parts: list[Tensor]) -> Ragged:
    return Ragged(values=torch.cat(parts), offsets=_offsets(map(len, parts)))


@dataclass(frozen=True, kw_only=True)
class ObjectSampling:
    """Fills a scene up to `objects` of each class with its ground-truth samples, then moves it by
    `then`.

    Of a class, objects minus those that are there are drawn. One that would touch, seen from above,
    a box of the scene (also an ignored one) or one that was pasted before it stays out; the scene's
    points inside a pasted box go. Pasted points come first. View 0 is the scene as it is.
    Differs from SECOND: draws are from the frame's samples, not from all objects.
    """

    objects: int
    then: SceneAugment
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objects < 1:
            raise BadSetting(f"objects must be >= 1 (got {self.objects})")

    def __call__(self, batch: Tensors) -> Tensors:
        pairs = enumerate(zip(batch["id"].tolist(), batch["view"].tolist(), strict=True))
        rows = [self._row(sampled_row(batch, row), number, view) for row, (number, view) in pairs]
        return self.then(repacked(batch, rows))

    def _row(self, row: Tensors, number: int, view: int) -> Tensors:
        if view == 0:
            return row
        rng = Generator().manual_seed(mix(self.seed, number, view, PASTE))
        there = torch.cat([row["boxes"], row["ignored"]]).double().numpy()
        samples = row[f"{SAMPLE}boxes"].double().numpy()
        taken: list[int] = []
        for label in range(len(CLASSES)):
            missing = max(0, self.objects - int((row["labels"] == label).sum()))
            of = (row[f"{SAMPLE}labels"] == label).nonzero()[:, 0]
            for i in of[torch.randperm(len(of), generator=rng)[:missing]].tolist():
                if not bev_areas(samples[i : i + 1], np.concatenate([there, samples[taken]])).any():
                    taken.append(i)
        return pasted(row, taken)


def sampled_row(batch: Tensors, row: int, *, pasting: bool = True) -> dict[str, Tensor]:
    """The columns of a frame that are changed, and those that pasting reads."""
    names = ("points", *ROWS, "ignored")
    found: dict[str, Tensor] = {}
    for name in (*names, *((SAMPLE + s for s in ("counts", "points", *ROWS)) if pasting else ())):
        bounds = named(batch, f"{name}_offsets", what="column", where="pasting objects")
        start, stop = bounds[row : row + 2].tolist()
        found[name] = batch[name][start:stop]
    return found


def pasted(row: Tensors, taken: list[int]) -> Tensors:
    """A frame with these of its ground-truth samples."""
    points = row["points"]
    at: NDArray[np.float64] = points.double().numpy()
    free = np.ones(len(points), dtype=np.bool_)
    for box in row[f"{SAMPLE}boxes"][taken].double().numpy():
        # most points are far away: to test these costs more than all the rest
        near = np.flatnonzero(np.abs(at[:, 0] - box[0]) <= np.hypot(box[3], box[4]) / 2 + 1e-3)
        free[near] &= ~inside(at[near], box)
    parts = sample_points(row)
    return {
        "points": torch.cat([*(parts[i] for i in taken), points[torch.as_tensor(free)]]),
        **{name: torch.cat([row[name], row[SAMPLE + name][taken]]) for name in ROWS},
    }


def sample_points(row: Tensors) -> list[Tensor]:
    """The points of each ground-truth sample of a frame."""
    bounds = [0, *row[f"{SAMPLE}counts"].cumsum(0).tolist()]
    return [row[f"{SAMPLE}points"][start:stop] for start, stop in pairwise(bounds)]


def repacked(batch: Tensors, rows: list[Tensors]) -> dict[str, Tensor]:
    """The batch without its samples and with the columns of `rows` in place of those it had."""
    made = {name: value for name, value in batch.items() if not name.startswith(SAMPLE)}
    for name in rows[0]:
        if name in made:
            column = _ragged([row[name] for row in rows])
            made[name], made[f"{name}_offsets"] = column.values, column.offsets
    return made
