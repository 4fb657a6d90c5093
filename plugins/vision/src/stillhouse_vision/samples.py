"""Built-in data: scikit-learn's handwritten digits, real scans that come with the package."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

TRAIN_A_CLASS = (
    40  # few on purpose: with all of them the smallest student learns the task without a teacher
)
SPLIT_SEED = 0


def digits() -> Mapping[str, NDArray[np.uint8] | NDArray[np.int64]]:
    """uint8 images [N, 1, 8, 8] and labels 0..9; `TRAIN_A_CLASS` of each class are for training,
    the rest for testing.
    """
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    images = np.rint(scans.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    shuffled = labels[order]
    chosen = np.concatenate([order[shuffled == digit][:TRAIN_A_CLASS] for digit in range(10)])
    train = np.zeros(len(labels), dtype=bool)
    train[chosen] = True
    return {  # pyright: ignore[reportReturnType]  scikit-learn's stubs know of tables, where pandas is
        "train_images": images[train],
        "train_labels": labels[train].astype(np.int64),
        "test_images": images[~train],
        "test_labels": labels[~train].astype(np.int64),
    }
