"""What KITTI's AP could be at most on the boxes that there are, and how many these are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stillhouse.data.data import Data, row_of
from stillhouse.errors import BadData
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.detectors.found import Area, Found
from stillhouse_pointcloud.metrics import LEVELS, KittiAp, Scene, scene_of

SHOWN = "_3d_moderate_"  # of the ceilings; those from above are the same
COUNTS = tuple(
    Score(name=f"{name.lower()}_{level}_boxes", better="neither")
    for name in CLASSES
    for level in LEVELS
)


@dataclass(frozen=True, kw_only=True)
class BoxCounts(Metric):
    """How many true boxes a score of KITTI's is over: "car_moderate_boxes" and so on, of each class
    and level; those whose middle is outside `within` do not count. Reads no role.
    """

    within: Area | None = None
    batch: int = 8

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        return counted(truths(data, self.within, self.batch))

    def scores(self) -> Sequence[Score]:
        return COUNTS


@dataclass(frozen=True, kw_only=True)
class KittiCeiling(Metric):
    """The scores "<class>_3d_moderate_ap" and their mean that `ap` gives to a detector which finds
    every true box exactly and nothing else; and `BoxCounts`. Reads no role.

    KITTI's curve has no more thresholds than right boxes, so fewer than 41 boxes of a class leave
    the perfect detector below 1: n of them at (n - 1) / 40.
    """

    ap: KittiAp

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        scenes = truths(data, self.ap.within, self.ap.batch)
        most = {name: value for name, value in self.ap.of(scenes).items() if SHOWN in name}
        return most | counted(scenes)

    def scores(self) -> Sequence[Score]:
        return (*(score for score in self.ap.scores() if SHOWN in score.name), *COUNTS)


def truths(data: Data, within: Area | None, batch: int) -> list[Scene]:
    """The scenes of `data` as a perfect detector finds them."""
    if len(data) == 0:
        raise BadData("the evaluation data hold no cloud")
    scenes: list[Scene] = []
    for rows in data.batches(batch, rng=None):
        for row in range(len(rows["id"])):
            boxes, labels = row_of(rows, "boxes", row), row_of(rows, "labels", row)
            found = Found(boxes=boxes, scores=torch.ones(len(boxes)), labels=labels)
            scenes.append(scene_of(rows, row, found, within))
    return scenes


def counted(scenes: Sequence[Scene]) -> dict[str, float]:
    """True boxes of each class at each level: those of at most that difficulty."""
    labels = np.concatenate([scene.labels for scene in scenes])
    levels = np.concatenate([scene.difficulty for scene in scenes])
    return {
        f"{name.lower()}_{level}_boxes": float(
            ((labels == label) & (levels >= 0) & (levels <= number)).sum()
        )
        for label, name in enumerate(CLASSES)
        for number, level in enumerate(LEVELS)
    }
