"""A pretrained detector tried on the training frames, before anything learns from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillhouse.artifact import load_model
from stillhouse.class_order import check_names, class_names
from stillhouse.data.data import Data
from stillhouse.errors import BadData
from stillhouse.stages.convert import Converter
from stillhouse.weights import checkpoint_file
from stillhouse.work import Work
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.detectors.found import PICKING, Area, detector
from stillhouse_pointcloud.metrics import OVERLAPS, Scene, scene_of
from stillhouse_pointcloud.mmdet.clouds import ALIASES
from stillhouse_pointcloud.overlaps import bev_iou

BATCH, FRAMES = 8, 64  # a batch of clouds, and how many are looked at
LEAST = 0.05  # of the true boxes, that a detector worth learning from finds
GO_ON = "set check_teacher=false to go on with it as it is"


@dataclass(frozen=True, kw_only=True)
class TriedDetector:
    """A `convert`: as `load`, and, where the port "data" is given, BadData for a checkpoint whose
    meta names other classes than `classes`, in this order, and for a detector that finds less than
    `LEAST` of the true boxes of its first `FRAMES` frames (from above, sharing `overlaps`): its
    classes may be in another order, or its clouds other ones.
    """

    load: Converter
    classes: tuple[str, ...] = CLASSES
    overlaps: tuple[float, float, float] = OVERLAPS
    within: Area | None = None

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built or Path; Data
        out: Path,
        *,
        work: Work,
    ) -> None:
        source = inputs["checkpoint"]
        if "data" in inputs and isinstance(source, Path):
            self._check_names(source)
        self.load({"checkpoint": source}, out, work=work)
        if "data" not in inputs:
            return
        models = {"teacher": load_model(out).module.requires_grad_(False)}
        scenes = _scenes(models, inputs["data"], self.within)
        check(found_as(scenes, self.overlaps))

    def _check_names(self, checkpoint: Path) -> None:
        given = class_names(checkpoint_file(checkpoint))
        reorder = f"give one whose classes are {', '.join(self.classes)}"
        check_names(_known(given), _known(self.classes), reorder=reorder, go_on=GO_ON)


def _known(names: Sequence[str]) -> list[str]:
    """Other data sets' names for our classes as ours."""
    return [ALIASES.get(name.lower(), name) for name in names]


def _scenes(models: Mapping[str, Any], data: Data, within: Area | None) -> list[Scene]:
    module, scenes = detector(models, "teacher"), list[Scene]()
    with torch.no_grad():
        for rows in islice(data.batches(BATCH, rng=None), FRAMES // BATCH):
            found = module.boxes(module(rows), PICKING)
            scenes += [scene_of(rows, row, one, within) for row, one in enumerate(found)]
    return scenes


def found_as(scenes: Sequence[Scene], overlaps: tuple[float, float, float]) -> np.ndarray:
    """[classes, classes + 1]: of each class's true boxes that count, how many are found as each
    class (by the nearest box), and how many there are.
    """
    counts = np.zeros((len(CLASSES), len(CLASSES) + 1), dtype=np.int64)
    for scene in scenes:
        shares = bev_iou(scene.boxes, scene.found)
        for share, label, level in zip(shares, scene.labels, scene.difficulty, strict=True):
            if level < 0:
                continue
            counts[label, -1] += 1
            if len(share) and share.max() > overlaps[label]:
                counts[label, scene.predicted[share.argmax()]] += 1
    return counts


def check(counts: np.ndarray) -> None:
    """Raises BadData where too few boxes are found as what they are."""
    total, right = int(counts[:, -1].sum()), int(np.trace(counts[:, :-1]))
    if total == 0 or right >= LEAST * total:
        return
    found = int(counts[:, :-1].sum()) - right
    start = f"the given teacher finds {right} of the {total} boxes in {FRAMES} training frames"
    if found >= LEAST * total:
        label, other = np.unravel_index(counts[:, :-1].argmax(), counts[:, :-1].shape)
        raise BadData(
            f"{start}, and {found} as another class ({CLASSES[label]} as {CLASSES[other]}): its "
            f"classes are in another order than {', '.join(CLASSES)}; give one with these, or "
            f"{GO_ON}"
        )
    raise BadData(
        f"{start}: was it trained on other clouds (x to the front, z from a sensor 1.73 m above "
        f"the road, reflectance 0..1), another range, or other classes than {', '.join(CLASSES)}? "
        f"Give one that finds them, or {GO_ON}"
    )
