"""Few labels: images kept apart to choose settings on, and a draw of labelled images whose rest
loses its labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillhouse.data.data import Columns, RowData
from stillhouse.data.taking import Take
from stillhouse.errors import BadData
from stillhouse.work import Work

LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class KeepApart:
    """A `make`: `rows` labelled images of the port "data", each class alike, to the port
    "validation", the others to "pool", of which `most` are kept (0: all), whatever their classes;
    drawn by the stage's seed. Raises BadData where a class has too few.
    """

    rows: int
    most: int = 0

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        # Any: what each input's opener returns
        data: RowData = inputs["data"]
        taken = _taken(data, self.rows, work)
        others = _others(data, taken)
        if self.most:
            drawn = torch.randperm(len(others), generator=work.rng)[: self.most]
            others = others[drawn.sort().values]
        return {"validation": data.select(taken), "pool": data.select(others)}


@dataclass(frozen=True, kw_only=True)
class DrawLabels:
    """A `make`: `rows` images of the port "data", each class alike, with their labels to the port
    "labelled"; with `rest` all others without labels to "unlabelled". Drawn by the stage's seed;
    as many rows as there are images are all of them, as they stand.

    What "unlabelled" holds has no label column: whoever reads it cannot reach one. Raises BadData
    where a class has too few images, or where none is left without a label.
    """

    rows: int
    rest: bool = True

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        # Any: what each input's opener returns
        data: RowData = inputs["data"]
        every = self.rows == len(data)
        taken = torch.arange(len(data)) if every else _taken(data, self.rows, work)
        labelled = {"labelled": data.select(taken)}
        if not self.rest:
            return labelled
        if every:
            raise BadData(
                f"labels={self.rows}: all of the {len(data)} images would be labelled; set fewer, "
                "or rows that need no others (labels, kd)"
            )
        others = data.select(_others(data, taken))
        return {
            **labelled,
            "unlabelled": {name: column for name, column in others.items() if name != LABELS},
        }


def _taken(data: RowData, rows: int, work: Work) -> Tensor:
    """Places of `rows` rows, each class alike."""
    columns = Take(rows=rows, by=LABELS)({"data": data}, work=work)["train"]
    taken, ids = columns["id"], data.columns["id"]
    assert isinstance(taken, Tensor)
    assert isinstance(ids, Tensor)
    return torch.isin(ids, taken).nonzero().flatten()


def _others(data: RowData, taken: Tensor) -> Tensor:
    mask = torch.ones(len(data), dtype=torch.bool)
    mask[taken] = False
    return mask.nonzero().flatten()
