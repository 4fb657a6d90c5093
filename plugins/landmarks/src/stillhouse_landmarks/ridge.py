"""Ridge regression whose strength is chosen by faces that each fit has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import BadData

# L2 of scikit-learn's ridge regression on standardized features, weakest first
STRENGTHS = (1e1, 1e2, 1e3, 1e4)

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """weight [C, D] and bias [C] of a map of features [N, D] as they are."""

    weight: Array
    bias: Array

    def __call__(self, features: Array) -> Array:
        return features @ self.weight.T + self.bias


def cross_fitted(
    features: Array, targets: Array, fold: NDArray[np.int64], *, folds: int, where: str
) -> tuple[Linear, Sequence[Linear]]:
    """The fit to all rows of features [N, D] and targets [N, C], and those without the rows of each
    fold 0 to folds - 1. Their strength is the one of the least squared error on the rows left out.
    Raises BadData where a fold is empty, or is all there is.
    """
    counts = np.bincount(fold, minlength=folds)
    if folds < 2 or len(counts) > folds or counts.min() < 1:
        raise BadData(
            f"{where}: {len(np.unique(fold))} folds of labelled faces, {folds} are fitted; set "
            "more labels or fewer folds"
        )
    tried: list[tuple[float, float, list[Linear]]] = []
    for strength in STRENGTHS:
        parts = [fitted(features[fold != k], targets[fold != k], strength) for k in range(folds)]
        error = sum(
            float(((part(features[fold == k]) - targets[fold == k]) ** 2).sum())
            for k, part in enumerate(parts)
        )
        tried.append((error, strength, parts))
    _, strength, parts = min(tried, key=lambda one: one[:2])
    return fitted(features, targets, strength), parts


def fitted(features: Array, targets: Array, strength: float) -> Linear:
    """Ridge regression on standardized features, as a map of those that are not."""
    from sklearn.linear_model import Ridge  # takes seconds to import

    mean, spread = features.mean(0), features.std(0)
    scale = np.where(spread > 0, spread, 1).astype(features.dtype)
    ridge = Ridge(alpha=strength).fit((features - mean) / scale, targets)
    weight = np.asarray(ridge.coef_, dtype=features.dtype) / scale
    bias = np.asarray(ridge.intercept_, dtype=features.dtype) - weight @ mean
    return Linear(weight=weight, bias=bias)
