"""Images made smaller, and a part of them held out: data for trainings that must be cheap."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.data.data import Columns, RowData
from stillhouse.errors import BadData, BadSetting
from stillhouse.work import Work


@dataclass(frozen=True, kw_only=True)
class Reduce:
    """A `make`: of the port "source" (images uint8 [N, C, H, W], labels) `train` and `validation`
    different rows, drawn at random, as ports of these names; images of `size` x `size` pixels,
    each the mean of the area it covers.
    """

    size: int
    train: int
    validation: int

    def __post_init__(self) -> None:
        if min(self.size, self.train, self.validation) < 1:
            raise BadSetting(
                "size, train and validation must be >= 1 "
                f"(got {self.size}, {self.train} and {self.validation})"
            )

    def __call__(
        self, inputs: Mapping[str, Any], *, work: Work
    ) -> Mapping[str, Columns]:  # Any: what each input's opener returns
        source: RowData = inputs["source"]
        wanted = self.train + self.validation
        if len(source) < wanted:
            raise BadData(
                f"{self.train} + {self.validation} images are wanted, there are {len(source)}; "
                "set fewer"
            )
        order = torch.randperm(len(source), generator=work.rng)[:wanted]
        parts = {"train": order[: self.train], "validation": order[self.train :]}
        return {name: self._columns(source.rows(index)) for name, index in parts.items()}

    def _columns(self, batch: Mapping[str, Tensor]) -> Columns:
        images = batch["images"]
        if images.shape[-1] < self.size:
            raise BadData(f"images of {images.shape[-1]} pixels cannot be reduced to {self.size}")
        small = F.interpolate(images.float(), size=(self.size, self.size), mode="area")
        return {"images": small.round().to(torch.uint8), "labels": batch["labels"]}
