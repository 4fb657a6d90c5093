"""Private images for the clients of a federation, and the images they all may see.

K: test images. N: clients. C: classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Integer
from torch import Generator, Tensor

from stillhouse.data.data import Columns, RowData
from stillhouse.errors import BadSetting
from stillhouse.federated.splits import (
    dirichlet_split,
    grouped_split,
    label_distribution,
    personal_weights,
)
from stillhouse.work import Work

IMAGES, LABELS, ID = "images", "labels", "id"


@runtime_checkable
class Split(Protocol):
    """Labels to row numbers, `size` rows a client, no row twice; a frozen dataclass."""

    def __call__(
        self, labels: Integer[Tensor, " rows"], *, clients: int, size: int, seed: int
    ) -> Sequence[Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """See `dirichlet_split`: each client its own mix of classes."""

    alpha: float

    def __call__(
        self, labels: Integer[Tensor, " rows"], *, clients: int, size: int, seed: int
    ) -> Sequence[Tensor]:
        return dirichlet_split(labels, clients=clients, size=size, alpha=self.alpha, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """See `grouped_split`: groups of clients that have the same classes, and no other."""

    groups: tuple[tuple[int, ...], ...]
    members: tuple[int, ...]

    def __call__(
        self, labels: Integer[Tensor, " rows"], *, clients: int, size: int, seed: int
    ) -> Sequence[Tensor]:
        if sum(self.members) != clients:
            raise BadSetting(f"members must be {clients} clients in all (got {list(self.members)})")
        return grouped_split(labels, groups=self.groups, members=self.members, size=size, seed=seed)


@dataclass(frozen=True, kw_only=True)
class SplitImages:
    """A `make`: ports "train" and "test" with images and labels to "transfer", "test" and a port a
    client.

    `transfer` training images are drawn first, uniformly, with their labels; then `split` gives
    each client `size` of the others, so that no image is at two places. "id" is the row in
    "train". The test set is whole, for all; its column weights [K, N] makes it each client's own
    (`personal_weights` of the labels the client has). Raises BadSetting where images lack.
    """

    clients: tuple[str, ...]
    size: int
    transfer: int
    classes: int
    split: Split

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: what each input's opener returns
        *,
        work: Work,
    ) -> Mapping[str, Columns]:
        train, test = _columns(inputs["train"]), _columns(inputs["test"])
        shared, private = self._shared(len(train[LABELS]), work.rng)
        parts = self.split(
            train[LABELS][private],
            clients=len(self.clients),
            size=self.size,
            seed=int(torch.randint(2**31, (1,), generator=work.rng)),
        )
        own = {
            name: _rows(train, private[part])
            for name, part in zip(self.clients, parts, strict=True)
        }
        mixes = [label_distribution(columns[LABELS], self.classes) for columns in own.values()]
        weights = personal_weights(test[LABELS], torch.stack(mixes))
        return {
            "transfer": _rows(train, shared), "test": {**test, "weights": weights}, **own,
        }  # fmt: skip

    def _shared(self, count: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """Rows of the transfer set, and all others, each in ascending order."""
        if not 1 <= self.transfer < count:
            raise BadSetting(
                f"transfer must be >= 1 and leave images to the clients "
                f"(got {self.transfer} of {count} training images)"
            )
        order = torch.randperm(count, generator=rng)
        return order[: self.transfer].sort().values, order[self.transfer :].sort().values


def _columns(data: RowData) -> dict[str, Tensor]:
    batch = data.rows(torch.arange(len(data)))
    return {name: batch[name] for name in (IMAGES, LABELS, ID)}


def _rows(columns: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: column[rows] for name, column in columns.items()}
