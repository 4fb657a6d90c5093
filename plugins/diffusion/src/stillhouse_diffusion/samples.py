"""Built-in data: scikit-learn's handwritten digits, and a mixture of Gaussians in the plane."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 0
TRAIN_DIGITS = 1297  # of 1797; the rest are held out
MODES = 8  # of each class of the mixture, on a circle
OUTER, INNER, STD = 0.5, 0.1, 0.02
POINTS = 2000  # of each class


def digits() -> Mapping[str, NDArray[np.uint8] | NDArray[np.int64]]:
    """uint8 images [N, 1, 8, 8] and labels 0..9 of scikit-learn's scans, shuffled once."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()  # Any: scikit-learn types none of it
    pixels, labels = bunch.data, bunch.target
    order = np.random.default_rng(SEED).permutation(len(labels))
    images = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)[order]
    labels = labels[order].astype(np.int64)
    return {
        "train_images": images[:TRAIN_DIGITS],
        "train_labels": labels[:TRAIN_DIGITS],
        "test_images": images[TRAIN_DIGITS:],
        "test_labels": labels[TRAIN_DIGITS:],
    }


def mixture() -> Mapping[str, NDArray[np.float32] | NDArray[np.int64]]:
    """Points of a plane as float32 "images" [N, 2, 1, 1] of eight classes: class c is eight
    Gaussians on a circle of radius `INNER` around a centre, the centres on one of radius `OUTER`.

    The layout of MSD's two-dimensional experiment, whose numbers are from memory; there the
    standard deviation is 0.005, here `STD`, which a small network learns in minutes.
    """
    rng = np.random.default_rng(SEED)
    return {
        f"{part}_{name}": values
        for part in ("train", "test")
        for name, values in _points(rng).items()
    }


def _points(rng: np.random.Generator) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
    labels = np.repeat(np.arange(8), POINTS)
    modes = rng.integers(MODES, size=len(labels))
    centre, mode = 2 * math.pi * labels / 8, 2 * math.pi * modes / MODES
    where = OUTER * np.stack([np.cos(centre), np.sin(centre)], axis=1)
    where = where + INNER * np.stack([np.cos(mode), np.sin(mode)], axis=1)
    points = where + STD * rng.standard_normal(where.shape)
    return {"images": points.astype(np.float32)[:, :, None, None], "labels": labels}
