"""How much boxes share, from above and in space, exactly and for any heading.

M, N: boxes, as in `boxes`.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from stillhouse_pointcloud.standalone import bev_areas, bev_iou, shared_areas

__all__ = ["bev_areas", "bev_iou", "iou_3d", "shared_areas"]


def iou_3d(a: Float[ndarray, "M 7"], b: Float[ndarray, "N 7"]) -> Float[ndarray, "M N"]:
    """Intersection over union of the volumes; boxes stand upright."""
    top = np.minimum((a[:, 2] + a[:, 5] / 2)[:, None], b[:, 2] + b[:, 5] / 2)
    bottom = np.maximum((a[:, 2] - a[:, 5] / 2)[:, None], b[:, 2] - b[:, 5] / 2)
    inner = bev_areas(a, b) * (top - bottom).clip(0)
    whole = a[:, 3:6].prod(axis=1)[:, None] + b[:, 3:6].prod(axis=1) - inner
    return inner / np.maximum(whole, 1e-12)
