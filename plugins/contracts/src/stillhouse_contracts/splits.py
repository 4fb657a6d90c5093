"""Parts of labelled rows that keep groups together and types spread: by scikit-learn."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import BadData, BadSetting

# whose rows stay together; "random" lets copies of a text be in two parts: named as leaking
Split = Literal["text", "contract", "random"]
Numbers = NDArray[np.int64]


def strata(labels: NDArray[np.float32]) -> Numbers:
    """For each row of labels [N, C] one class to spread evenly: its rarest type + 1, or 0."""
    rarest_first = np.argsort(labels.sum(0), kind="stable")
    found = np.zeros(len(labels), dtype=np.int64)
    for kind in rarest_first[::-1]:  # the rarest last, over what is there
        found[labels[:, kind] > 0] = kind + 1
    return found


def fold_numbers(
    labels: NDArray[np.float32], groups: Numbers | None, *, folds: int, seed: int
) -> Numbers:
    """The fold of each row, [N], 0 ... folds - 1; rows of a group are in one. Raises BadSetting for
    fewer than two folds, BadData for fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if folds < 2:
        raise BadSetting(f"folds: two at least (got {folds})")
    count = len(labels) if groups is None else len(np.unique(groups))
    if count < folds:
        raise BadData(f"{count} group(s) of functions cannot be split into {folds} folds")
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(n_splits=folds, shuffle=True, random_state=seed % 2**32)
    found = np.zeros(len(labels), dtype=np.int64)
    classes = strata(labels)
    # a stratum of fewer rows than folds is spread as the rest is
    numbers, sizes = np.unique(classes, return_counts=True)
    classes[np.isin(classes, numbers[sizes < folds])] = 0
    for fold, (_, held_out) in enumerate(splitter.split(classes, classes, groups)):
        found[held_out] = fold
    return found


def check_members(
    labels: NDArray[np.float32], groups: Numbers, types: tuple[str, ...], *, folds: int
) -> None:
    """Raises BadData naming a type with fewer groups of positive rows than folds: a fold would have
    none of it.
    """
    for number, name in enumerate(types):
        have = len(np.unique(groups[labels[:, number] > 0]))
        if have < folds:
            raise BadData(
                f"type '{name}': {have} distinct functions have it, and {folds} folds need as many "
                "at least; use fewer folds, or leave the type out"
            )
