"""The camera's images of a few frames, kept in their data, where the drawing finds them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from stillhouse.data import Columns, Ragged, read_image
from stillhouse.errors import BadSetting
from stillhouse.files import storage
from stillhouse.stages.make import Maker
from stillhouse.work import Work
from stillhouse_pointcloud.infos import folder_of

CAMERA_IMAGE = "picture"


@dataclass(frozen=True, kw_only=True)
class WithCameraImages:
    """A `make`: as `make` of a KITTI folder, and the `port` with the images of its first `count`
    frames that "frames" names and that are there.

    Ragged column: image uint8 [total], each file's bytes; of other frames none. Raises BadData
    for a file that is no image. Arrays in place of a folder stay as they are.
    """

    make: Maker
    port: str
    count: int = 2

    def __post_init__(self) -> None:
        if self.count < 1:
            raise BadSetting(f"images: count must be >= 1 (got {self.count})")

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: as of `make`
        *,
        work: Work,
    ) -> Mapping[str, Any]:  # Any: columns, as `make` gives them
        made, source = self.make(inputs, work=work), inputs["source"]
        if not isinstance(source, Path):
            return made
        columns = cast(Columns, made[self.port])
        frames = cast(list[str], columns["frames"])
        folder = folder_of(source)
        parts = [_bytes(folder, json.loads(text)) for text in frames[: self.count]]
        lengths = torch.zeros(len(frames) + 1, dtype=torch.int64)
        lengths[1 : len(parts) + 1] = torch.tensor([len(part) for part in parts])
        none = torch.zeros(0, dtype=torch.uint8)
        image = Ragged(values=torch.cat([none, *parts]), offsets=lengths.cumsum(0))
        return {**made, self.port: {**columns, CAMERA_IMAGE: image}}


def _bytes(folder: Path, frame: Mapping[str, Any]) -> Tensor:  # Any: JSON values
    file = folder / frame["image"]
    if not file.is_file():
        return torch.zeros(0, dtype=torch.uint8)
    read_image(file, str(file), annotated=True)  # named here, where its file is known
    with storage(file):
        return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
