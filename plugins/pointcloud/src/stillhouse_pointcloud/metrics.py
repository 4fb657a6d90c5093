"""KITTI's average precision of boxes, from above and in space, on a CPU.

M: true boxes of a scene. D: boxes found in it. The rules are those of KITTI's development kit for
3D objects (Geiger et al. 2012); fractions, where papers print percent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Integer
from numpy import ndarray

from stillhouse.batching import each_batch
from stillhouse.data.data import Data, row_of
from stillhouse.errors import BadData, BadSetting
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work
from stillhouse_pointcloud.boxes import CLASSES, image_heights
from stillhouse_pointcloud.detectors.found import PICKING, Area, Found, Picking, detector
from stillhouse_pointcloud.formats import MIN_HEIGHT
from stillhouse_pointcloud.overlaps import bev_iou, iou_3d

LEVELS = ("easy", "moderate", "hard")
KINDS = {"bev": bev_iou, "3d": iou_3d}
OVERLAPS = (0.7, 0.5, 0.5)  # what a box must share with the truth: car, pedestrian, cyclist
SAMPLES = 41  # recalls of KITTI's precision curve, 0 to 1
COUNTED, IGNORED, OTHER = 0, 1, -1  # of a box: for or against, neither, not of this class
TRUTH = ("boxes", "labels", "difficulty", "ignored", "ignored_labels")
LABELS = {
    "mean_3d_moderate_ap": "3D mAP, moderate",
    "mean_bev_moderate_ap": "BEV mAP, moderate",
}
SAMPLINGS = ("kitti", "exact")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The truth of one cloud and what was found in it; arrays as `data.ReadKitti` has them.

    `ignored`: neighbouring classes (Van, Person_sitting), which count neither for nor against.
    `heights`: of the found boxes in the image, in pixels.
    """

    boxes: Float[ndarray, "M 7"]
    labels: Integer[ndarray, " M"]
    difficulty: Integer[ndarray, " M"]
    ignored: Float[ndarray, "S 7"]
    ignored_labels: Integer[ndarray, " S"]
    found: Float[ndarray, "D 7"]
    scores: Float[ndarray, " D"]
    predicted: Integer[ndarray, " D"]
    heights: Float[ndarray, " D"]


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """A scene's boxes of one class, and those found too small to count: who may be whose."""

    states: Sequence[int]  # of the truths: COUNTED or IGNORED
    candidates: Sequence[Sequence[tuple[int, float]]]  # of each truth: found boxes, their overlap
    scores: Sequence[float]
    counted: Sequence[bool]  # of the found boxes; the rest are too small to count


def average_precision(
    scenes: Sequence[Scene],
    label: int,
    level: int,
    *,
    kind: str = "3d",
    overlap: float | None = None,
    points: int = 40,
    sampling: str = "kitti",
) -> float | None:
    """AP of a class at a level (0 easy, 1 moderate, 2 hard), a fraction; None without a true box
    that counts.

    A true box counts if its difficulty is at most `level`; harder ones and neighbouring classes
    take a found box away without counting. A found box lower than the level's least height in the
    image is no mistake, and of whatever class may take a true box away. DontCare regions have no
    place in space: as in the development kit, they excuse nothing here. Truths pick, in their
    order, of the boxes that share more than `overlap` (default: `OVERLAPS`): to choose the
    thresholds the most confident, to count the nearest.

    sampling="kitti" chooses at most 41 of the scores of right boxes as thresholds, near recalls 0,
    1/40, ..., 1, and means the precisions of the last 40 (with `points` 11, of each fourth), made
    not to rise. A curve has no more thresholds than right boxes: fewer than 41 true boxes give less
    than 1 even when all are found (n of them (n - 1) / 40). "exact" means, over the same recalls,
    the best precision at that recall or above, with a threshold at every right box.
    """
    least = OVERLAPS[label] if overlap is None else overlap
    pairs = [_pairs(scene, label, level, kind, least) for scene in scenes]
    return _precision(pairs, points, sampling)


def _precision(pairs: Sequence[_Pairs], points: int, sampling: str) -> float | None:
    total = sum(state == COUNTED for one in pairs for state in one.states)
    if total == 0:
        return None
    right = sorted((score for one in pairs for score in _most_confident(one)), reverse=True)
    thresholds = _chosen(right, total) if sampling == "kitti" else sorted({*right}, reverse=True)
    curve = [_counts(pairs, threshold) for threshold in thresholds]
    precision = np.array([hit / max(hit + wrong, 1) for hit, wrong in curve])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.arange(SAMPLES)[1:] if points == 40 else np.arange(SAMPLES)[::4]
    if sampling == "kitti":
        padded = np.zeros(SAMPLES)
        padded[: len(precision)] = precision
        return float(padded[steps].mean())
    recalls = np.array([hit for hit, _ in curve]) / total
    best = [precision[recalls >= step / (SAMPLES - 1) - 1e-9].max(initial=0.0) for step in steps]
    return float(np.mean(best))


def _pairs(scene: Scene, label: int, level: int, kind: str, least: float) -> _Pairs:
    mine, near = scene.labels == label, scene.ignored_labels == label
    truth = np.concatenate([scene.boxes[mine], scene.ignored[near]])
    hard = scene.difficulty[mine]
    counts = (hard >= 0) & (hard <= level)
    states = [COUNTED if ok else IGNORED for ok in counts] + [IGNORED] * int(near.sum())
    low = scene.heights < MIN_HEIGHT[level]
    seen = (scene.predicted == label) | low  # a low box is ignored, whatever its class
    shared = KINDS[kind](truth, scene.found[seen])
    candidates = [[(int(i), float(row[i])) for i in np.flatnonzero(row > least)] for row in shared]
    return _Pairs(
        states=states,
        candidates=candidates,
        scores=scene.scores[seen].tolist(),
        counted=(~low[seen]).tolist(),
    )


def _most_confident(pairs: _Pairs) -> list[float]:
    """The scores of the boxes that are right when every box found is taken."""
    taken: set[int] = set()
    right: list[float] = []
    for state, candidates in zip(pairs.states, pairs.candidates, strict=True):
        free = [i for i, _ in candidates if i not in taken]
        if not free:
            continue
        best = max(free, key=lambda i: pairs.scores[i])
        taken.add(best)
        if state == COUNTED and pairs.counted[best]:
            right.append(pairs.scores[best])
    return right


def _chosen(scores: Sequence[float], total: int) -> list[float]:
    """The thresholds nearest to recalls 0, 1/40, ..., 1, of falling scores of right boxes."""
    chosen: list[float] = []
    recall = 0.0
    for i, score in enumerate(scores):
        here, last = (i + 1) / total, i + 1 == len(scores)
        after = here if last else (i + 2) / total
        if after - recall < recall - here and not last:
            continue
        chosen.append(score)
        recall += 1 / (SAMPLES - 1)
    return chosen[:SAMPLES]


def _counts(pairs: Sequence[_Pairs], threshold: float) -> tuple[int, int]:
    """Right and wrong boxes with at least this score."""
    hits = wrong = 0
    for one in pairs:
        taken: set[int] = set()
        for state, candidates in zip(one.states, one.candidates, strict=True):
            free = [
                (i, share)
                for i, share in candidates
                if i not in taken and one.scores[i] >= threshold
            ]
            if not free:
                continue
            # the nearest of those that count, else the first too small to count
            nearest = max(
                (pair for pair in free if one.counted[pair[0]]),
                key=lambda pair: pair[1],
                default=free[0],
            )
            best = nearest[0]
            taken.add(best)
            hits += state == COUNTED and one.counted[best]
        rest = zip(one.scores, one.counted, strict=True)
        wrong += sum(
            counts and score >= threshold and i not in taken
            for i, (score, counts) in enumerate(rest)
        )
    return hits, wrong


def found_scenes(
    models: Models,
    data: Data,
    *,
    role: str = "student",
    picking: Picking = PICKING,
    batch: int = 8,
    within: Area | None = None,
) -> list[Scene]:
    """The scenes of `data`, in its order, with what `role` finds; truths whose middle is outside
    `within` are ignored.
    """
    named(models, role, what="role", where="AP")
    if len(data) == 0:
        raise BadData("the evaluation data hold no cloud")
    module = detector(models, role)
    device = next(models[role].parameters()).device

    def scenes(rows: Tensors) -> list[Scene]:
        moved = {name: value.to(device) for name, value in rows.items()}
        found = module.boxes(module(moved), picking)
        return [scene_of(rows, row, one, within) for row, one in enumerate(found)]

    return list(chain.from_iterable(each_batch(data, scenes, most=batch, device=device)))


def scene_of(batch: Tensors, row: int, found: Found, within: Area | None) -> Scene:
    """The scene of a row of a batch with what was found in it; truths whose middle is outside
    `within` are ignored.
    """
    for name in TRUTH:
        named(batch, name, what="column", where="AP")
    columns = {name: row_of(batch, name, row).numpy() for name in TRUTH}
    if within is not None:
        x, y = columns["boxes"][:, 0], columns["boxes"][:, 1]
        inside = (x >= within.x[0]) & (x < within.x[1]) & (y >= within.y[0]) & (y < within.y[1])
        columns["difficulty"] = np.where(inside, columns["difficulty"], -1)
    boxes = found.boxes.double().numpy()
    projection = named(batch, "projection", what="column", where="AP")[row].double().numpy()
    high = int(named(batch, "image_size", what="column", where="AP")[row, 1])
    return Scene(
        boxes=columns["boxes"].astype(np.float64),
        labels=columns["labels"],
        difficulty=columns["difficulty"],
        ignored=columns["ignored"].astype(np.float64),
        ignored_labels=columns["ignored_labels"],
        found=boxes,
        scores=found.scores.double().numpy(),
        predicted=found.labels.numpy(),
        heights=image_heights(boxes, projection, high),
    )


@dataclass(frozen=True, kw_only=True)
class KittiAp(Metric):
    """KITTI's AP of what `role` finds, fractions: "car_3d_moderate_ap" and so on for car,
    pedestrian, cyclist; 3d, bev; easy, moderate, hard; and "mean_3d_moderate_ap", the mean of the
    classes, papers' mAP. See `average_precision`.

    A class without a true box that counts has no score and no part in the mean. Names end in _ap11
    with `points` = 11, in _exact_ap with `sampling` = "exact". A found box's height in the image
    is cut at that of its frame. Truths whose middle is outside
    `within` are ignored; by default all count, whatever the detector's range.
    """

    role: str = "student"
    picking: Picking = PICKING
    overlaps: tuple[float, float, float] = OVERLAPS
    points: int = 40
    sampling: str = "kitti"
    within: Area | None = None
    batch: int = 8

    def __post_init__(self) -> None:
        if not all(0 < overlap < 1 for overlap in self.overlaps):
            raise BadSetting(f"overlaps must be > 0 and < 1 (got {self.overlaps})")
        if self.points not in (11, 40):
            raise BadSetting(f"points must be 40 or 11 (got {self.points})")
        if self.sampling not in SAMPLINGS:
            raise BadSetting(f"sampling must be kitti or exact (got '{self.sampling}')")

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        with torch.no_grad():
            scenes = found_scenes(
                models,
                data,
                role=self.role,
                picking=self.picking,
                batch=self.batch,
                within=self.within,
            )
        return self.of(scenes)

    def scores(self) -> Sequence[Score]:
        end = self._end()
        return [
            Score(name=name, better="higher", unit="%", label=LABELS.get(name, ""))
            for kind in KINDS
            for level in LEVELS
            for name in (f"{one.lower()}_{kind}_{level}_{end}" for one in (*CLASSES, "mean"))
        ]

    def _end(self) -> str:
        return "exact_" * (self.sampling == "exact") + ("ap" if self.points == 40 else "ap11")

    def of(self, scenes: Sequence[Scene]) -> Mapping[str, float]:
        """The scores of scenes."""
        end = self._end()
        scores: dict[str, float] = {}
        for kind in KINDS:
            for level, difficulty in enumerate(LEVELS):
                values: list[float] = []
                for label, name in enumerate(CLASSES):
                    value = average_precision(
                        scenes,
                        label,
                        level,
                        kind=kind,
                        overlap=self.overlaps[label],
                        points=self.points,
                        sampling=self.sampling,
                    )
                    if value is not None:
                        values.append(value)
                        scores[f"{name.lower()}_{kind}_{difficulty}_{end}"] = value
                if values:
                    scores[f"mean_{kind}_{difficulty}_{end}"] = float(np.mean(values))
        if not scores:
            raise BadData("the evaluation data hold no true box that counts at any difficulty")
        first = f"mean_3d_moderate_{end}"  # a report's main score is the first
        return ({first: scores[first]} if first in scores else {}) | scores
