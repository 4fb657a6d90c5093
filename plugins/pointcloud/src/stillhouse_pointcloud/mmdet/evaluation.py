"""KITTI's average precision by mmdetection3d's own code, to check ours against.

It runs in a separate process: that code counts overlaps by numba.cuda, which only a variable of
the environment, read when numba is imported, turns into plain Python (NUMBA_ENABLE_CUDASIM=1).
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.data import row_of
from stillhouse.errors import MissingExtra, StillhouseError
from stillhouse.objectives.objective import Tensors
from stillhouse_pointcloud.boxes import CLASSES, image_heights
from stillhouse_pointcloud.formats import NEIGHBOURS
from stillhouse_pointcloud.mmdet.library import EXTRA, imported, missing

LEVELS = ("easy", "moderate", "hard")
VIEWS = {"bev": "BEV", "3d": "3D"}
Array = NDArray[np.float64]


def kitti_ap(batch: Tensors, found: Sequence[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """AP at 40 recalls, a fraction, by "<class>_<view>_<level>_ap" ("car_3d_moderate_ap"), of boxes
    [M, 7], scores [M] and labels [M] a frame, against the truth of a batch of `data.ReadKitti`.

    mmdetection3d's kitti_eval at its strict overlaps (0.7 Car, 0.5 others). A true box counts at
    the levels of its difficulty; found boxes that are lower than a level's limit in the
    image do not count, by `boxes.image_heights`. A class without a true box that counts has 0.
    """
    if package := missing():
        raise MissingExtra("mmdetection3d's KITTI evaluation", package, install=EXTRA)
    frames = [_frame(batch, row, found[row]) for row in range(len(batch["projection"]))]
    run = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(frames),
        capture_output=True,
        text=True,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        check=False,
    )
    if run.returncode:
        lines = run.stderr.strip().splitlines() or ["no message"]
        raise StillhouseError(f"mmdetection3d's KITTI evaluation failed: {lines[-1]}")
    return json.loads(run.stdout.splitlines()[-1])


def _frame(
    batch: Tensors, row: int, found: tuple[Tensor, Tensor, Tensor]
) -> dict[str, dict[str, Any]]:  # Any: lists of numbers and of names
    """The annotations of a frame, true ("gt") and found ("dt")."""

    def part(name: str) -> Array:
        return row_of(batch, name, row).double().numpy()

    boxes = np.concatenate([part("boxes"), part("ignored")])
    beside = {CLASSES.index(of): name for name, of in NEIGHBOURS.items() if of in CLASSES}
    names = [CLASSES[int(label)] for label in part("labels")]
    names += [beside[int(label)] for label in part("ignored_labels")]
    # what is beside the classes is left out whatever its difficulty
    levels = [int(level) for level in part("difficulty")] + [0] * len(part("ignored"))
    # heights and occlusions that have these difficulties: over 40 pixels, and 0, 1, 2 or none
    occluded = [level if level >= 0 else len(LEVELS) for level in levels]
    high = np.full(len(boxes), 100.0)
    image = float(batch["image_size"][row, 1])
    there, scores, labels = (tensor.double().numpy() for tensor in found)
    low = image_heights(there, batch["projection"][row].double().numpy(), image)
    return {
        "gt": {**_camera(boxes, high), "name": names, "occluded": occluded},
        "dt": {
            **_camera(there, low),
            "name": [CLASSES[int(label)] for label in labels],
            "score": scores.tolist(),
        },
    }


def _camera(boxes: Array, heights: Array) -> Mapping[str, Any]:  # Any: lists of numbers
    """Boxes in a camera's axes (x right, y down, z ahead) that stands where the LiDAR does, their
    place at the bottom; overlaps do not depend on where it stands.
    """
    x, y, z, long, wide, high, yaw = boxes.T
    outline = np.stack([0 * x, 0 * x, 0 * x + 50, heights], axis=1)
    return {
        "location": np.stack([-y, -(z - high / 2), x], axis=1).tolist(),
        "dimensions": np.stack([long, high, wide], axis=1).tolist(),
        "rotation_y": (-yaw - np.pi / 2).tolist(),
        "bbox": outline.tolist(),
    }


def _annotation(given: Mapping[str, Any]) -> dict[str, Any]:  # Any: arrays
    count = len(given["name"])
    made: dict[str, Any] = {
        "name": np.array(given["name"], dtype="<U16"),
        "location": np.array(given["location"], dtype=np.float64).reshape(count, 3),
        "dimensions": np.array(given["dimensions"], dtype=np.float64).reshape(count, 3),
        "rotation_y": np.array(given["rotation_y"], dtype=np.float64),
        "bbox": np.array(given["bbox"], dtype=np.float64).reshape(count, 4),
        "alpha": np.full(count, -10.0),  # none: orientation is not scored
        "truncated": np.zeros(count),
    }
    if "score" in given:
        return made | {"score": np.array(given["score"], dtype=np.float64)}
    return made | {"occluded": np.array(given["occluded"], dtype=np.int64)}


def main() -> None:
    """Frames as JSON from the standard input, scores as JSON to the standard output."""
    frames = json.load(sys.stdin)
    kitti = imported("mmdet3d.evaluation.functional.kitti_utils.eval")
    truth = [_annotation(frame["gt"]) for frame in frames]
    found = [_annotation(frame["dt"]) for frame in frames]
    _, scores = kitti.kitti_eval(truth, found, list(CLASSES), eval_types=list(VIEWS))
    named = {
        f"{name.lower()}_{view}_{level}_ap": (
            float(scores[f"KITTI/{name}_{theirs}_AP40_{level}_strict"]) / 100
        )
        for view, theirs in VIEWS.items()
        for name in CLASSES
        for level in LEVELS
    }
    sys.stdout.write(json.dumps(named) + "\n")


if __name__ == "__main__":
    main()
