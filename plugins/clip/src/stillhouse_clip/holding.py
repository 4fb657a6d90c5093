"""Training data in two: what a network learns from, and what its settings are chosen on.

A recipe with a `grid` trains on the first and scores on the second, and opens no test data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillhouse.data.data import Columns, RowData
from stillhouse.errors import BadData, BadSetting
from stillhouse.training import mix
from stillhouse.work import Work

SHARE = 0.2  # that is held out
HELD = 15_485_863  # of a seed that nothing else has


@dataclass(frozen=True, kw_only=True)
class HoldOutImages:
    """A `make`: the port "data" to "train" and "held_out", `share` of the rows of each label,
    rounded, drawn by the stage's seed. Raises BadData where that leaves a label without a row on
    either side.
    """

    share: float = SHARE

    def __post_init__(self) -> None:
        _check(self.share)

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        data: RowData = inputs["data"]
        labels = label_column(data)
        order = torch.randperm(len(labels), generator=work.rng)
        held = torch.zeros(len(labels), dtype=torch.bool)
        for label in labels.unique().tolist():
            rows = order[labels[order] == label]
            count = round(self.share * len(rows))
            if not 0 < count < len(rows):
                raise BadData(
                    f"label {label} has {len(rows)} images, too few to hold {self.share:.0%} out"
                )
            held[rows[:count]] = True
        places = {
            "train": torch.nonzero(~held).flatten(),
            "held_out": torch.nonzero(held).flatten(),
        }
        return {name: data.select(place) for name, place in places.items()}


@dataclass(frozen=True, kw_only=True)
class HoldOutLabels:
    """A `make`: the ports "images" and "texts" to "images", "texts", "test_images" and
    "test_texts", of which the last two hold `share` of the labels, whole: each by its own number,
    so that images and texts agree. Raises BadData where one side has none.
    """

    share: float = SHARE

    def __post_init__(self) -> None:
        _check(self.share)

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        found: dict[str, Columns] = {}
        for name in ("images", "texts"):
            data: RowData = inputs[name]
            held = self.held(label_column(data))
            if bool(held.all()) or not bool(held.any()):
                raise BadData(f"{len(held)} {name}: too few labels to hold {self.share:.0%} out")
            found[name] = data.select(torch.nonzero(~held).flatten())
            found[f"test_{name}"] = data.select(torch.nonzero(held).flatten())
        return found

    def held(self, labels: Tensor) -> Tensor:
        """Which rows are held out."""
        numbers = [mix(HELD, label) % 1000 for label in labels.tolist()]
        return torch.tensor(numbers, dtype=torch.int64) < round(1000 * self.share)


def label_column(data: RowData) -> Tensor:
    """The column "labels"; raises BadData without one."""
    labels = data.columns.get("labels")
    if not isinstance(labels, Tensor):
        raise BadData("the data have no column 'labels' of numbers")
    return labels


def _check(share: float) -> None:
    if not 0 < share < 1:
        raise BadSetting(f"share must be > 0 and < 1, a fraction (got {share})")


def cell(rate: float) -> str:
    """A rate as part of a stage's name."""
    return f"{rate:g}".replace(".", "_").replace("+", "")
