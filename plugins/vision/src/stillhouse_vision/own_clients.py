"""Clients of a user's own: a folder a client, in each a folder a class.

K: test images. N: clients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator

from stillhouse.data.data import Columns, RowData
from stillhouse.data.notes import note
from stillhouse.data.sources import visible_folders
from stillhouse.errors import BadData
from stillhouse.federated.splits import label_distribution, personal_weights
from stillhouse.recipe import STAGE_NAME
from stillhouse.work import Work
from stillhouse_vision.data import folder_samples
from stillhouse_vision.federated_data import ID, IMAGES, LABELS
from stillhouse_vision.folders import class_names
from stillhouse_vision.images import decode
from stillhouse_vision.models.classifier import ImageSpec

RESERVED = ("transfer", "test", "train", "exchange")  # ports of the stages that clients meet in


def client_names(source: object) -> tuple[str, ...]:
    """The folders in a folder; BadData where there are not two, or one has no name for a stage."""
    if not isinstance(source, Path) or not source.is_dir():
        raise BadData(f"private: {source}: expected a folder with a folder a client")
    found = [folder.name for folder in visible_folders(source)]
    names = tuple(sorted(found, key=_as_ports))
    if len(names) < 2:
        raise BadData(f"private: {source}: {len(names)} folder(s); a federation has two or more")
    for name in names:
        if not STAGE_NAME.fullmatch(name) or name in RESERVED:
            raise BadData(
                f"private: {source / name}: a client's name has only letters, digits, '-' and '_', "
                f"and is none of {', '.join(RESERVED)}; rename the folder"
            )
    return names


def _as_ports(name: str) -> tuple[int, str]:
    """The order that federations have their clients in: client-2 before client-10."""
    return len(name), name


@dataclass(frozen=True, kw_only=True)
class OwnClients:
    """A `make`: ports "train" and "test" (what all may see) and "private" (a folder a client) with
    images and labels to "transfer", "test" and a port a client.

    `transfer` images of "train" are drawn, or all where there are fewer. A client need not have all
    classes; a folder that is no class of `images.names` is refused. "id" is a row number, of
    "train" or within the client. Test weights [K, N] as of `SplitImages`.
    """

    clients: tuple[str, ...]
    transfer: int
    images: ImageSpec
    classes: int
    resize: bool = True

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: what each input's opener returns
        *,
        work: Work,
    ) -> Mapping[str, Columns]:
        train, test, source = inputs["train"], inputs["test"], inputs["private"]
        own = {name: self.read_client(source / name) for name in self.clients}
        mixes = [label_distribution(columns[LABELS], self.classes) for columns in own.values()]
        weights = personal_weights(_columns(test)[LABELS], torch.stack(mixes))
        return {
            "transfer": self._shared(train, work.rng),
            "test": {**_columns(test), "weights": weights},
            **own,
        }

    def read_client(self, folder: Path) -> dict[str, torch.Tensor]:
        """The images of one client; raises BadData naming the folder or the file."""
        names = self.images.names
        if not names:
            raise BadData("private: data must name their classes: folders, or a ClassLabel")
        if not folder.is_dir():
            raise BadData(f"private: {folder}: there is no such folder; each client has one")
        there = class_names(folder)
        if odd := sorted(set(there) - set(names)):
            raise BadData(
                f"{folder / odd[0]}: no class of data, which has {', '.join(names)}; rename it"
            )
        if not there:
            raise BadData(f"{folder}: no class folder in it; expected <client>/<class>/*.png")
        numbers = {name: number for number, name in enumerate(names)}
        samples = [
            sample._replace(label=numbers[there[sample.label]])
            for sample in folder_samples(folder, there)
        ]
        images = np.stack([decode(s, self.images, resize=self.resize) for s in samples])
        return {
            IMAGES: torch.from_numpy(images),
            LABELS: torch.tensor([sample.label for sample in samples]),
            ID: torch.arange(len(samples)),
        }

    def _shared(self, train: RowData, rng: Generator) -> dict[str, torch.Tensor]:
        count = min(self.transfer, len(train))
        if count < self.transfer:
            note(f"data: {count} training images, fewer than transfer={self.transfer}: all shared")
        rows = torch.randperm(len(train), generator=rng)[:count].sort().values
        return {name: column[rows] for name, column in _columns(train).items()}


def _columns(data: RowData) -> dict[str, torch.Tensor]:
    batch = data.rows(torch.arange(len(data)))
    return {name: batch[name] for name in (IMAGES, LABELS, ID)}
