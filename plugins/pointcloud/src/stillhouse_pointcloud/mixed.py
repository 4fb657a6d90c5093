"""Training volume: rendered street scenes beside the real frames, each kept apart for scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from stillhouse.data.data import Columns, Ragged
from stillhouse.errors import BadSetting
from stillhouse.work import Work
from stillhouse_pointcloud.data import ReadKitti, from_arrays
from stillhouse_pointcloud.samples import Lidar, Street, render

TRAIN, VALIDATION, TEST = 1, 2, 3  # of a scene's seed: no scene is in two ports


@dataclass(frozen=True, kw_only=True)
class ReadMixed:
    """A `make`: as `ReadKitti`, with `scenes` rendered training scenes.

    Ports: train, each real frame `copies` times and then the scenes; validation, the real frames
    that `read` keeps and a fraction `read.validation` as many further scenes as there are in train;
    test, `held_out` scenes; real, the source's own test frames. All scenes are of one `lidar` and
    `street`; none is in two ports.
    """

    read: ReadKitti
    scenes: int
    held_out: int
    copies: int = 1
    lidar: Lidar = field(default_factory=Lidar)
    street: Street = field(default_factory=Street)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.scenes, self.held_out, self.copies) < 1:
            given = f"{self.scenes}, {self.held_out}, {self.copies}"
            raise BadSetting(f"scenes, held_out and copies must be >= 1 (got {given})")

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: as of ReadKitti
        *,
        work: Work,
    ) -> Mapping[str, Columns]:
        real = self.read(inputs, work=work)
        kept = max(1, round(self.read.validation * self.scenes))
        return {
            "train": joined([*[real["train"]] * self.copies, self._drawn(self.scenes, TRAIN)]),
            "validation": joined([real["validation"], self._drawn(kept, VALIDATION)]),
            "test": self._drawn(self.held_out, TEST),
            "real": real["test"],
        }

    def _drawn(self, count: int, part: int) -> Columns:
        arrays = render(count, seed=4 * self.seed + part, lidar=self.lidar, street=self.street)
        return from_arrays({f"scene_{name}": array for name, array in arrays.items()}, "scene")


def joined(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts, which have the same columns."""
    whole: dict[str, Tensor | Ragged | list[str]] = {}
    for name, first in parts[0].items():
        columns = [part[name] for part in parts]
        if isinstance(first, Ragged):
            ragged = cast(list[Ragged], columns)
            lengths = torch.cat([column.offsets.diff() for column in ragged])
            whole[name] = Ragged(
                values=torch.cat([column.values for column in ragged]),
                offsets=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
            )
        elif isinstance(first, Tensor):
            whole[name] = torch.cat(cast(list[Tensor], columns))
        else:
            whole[name] = [text for column in cast(list[list[str]], columns) for text in column]
    return whole
