"""Datasets and DataLoaders of torch as `Data`, and images by their paths as a dataset."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler, default_collate

from stillhouse.data.data import ROWS, Data, Plan, PlannedData, pieces
from stillhouse.errors import BadData

INPUTS, LABELS, ID = "inputs", "labels", "id"
# Any: a dataset's samples are of any type
Source = Data | DataLoader[Any] | Dataset[Any] | Sequence[Any]


class ImagePaths(Dataset[tuple[Any, int]]):  # Any: what the transform gives
    """Images read from their paths: pairs of a path and a label, or a DataFrame with the columns
    "path" and "label".

    `transform` makes an RGB PIL image the network's input. Labels that are texts are numbered in
    their sorted order, as `classes` says.
    """

    def __init__(
        self,
        rows: Any,  # Any: pairs or a pandas, polars or pyarrow table
        transform: Callable[[Any], Tensor],
    ) -> None:
        pairs = (
            list(zip(rows["path"], rows["label"], strict=True))
            if hasattr(rows, "columns")
            else rows
        )
        self.paths = [Path(str(path)) for path, _ in pairs]
        labels = [label for _, label in pairs]
        self.classes = sorted({str(label) for label in labels if isinstance(label, str)})
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = [numbers[n] if isinstance(n, str) else int(n) for n in labels]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image, UnidentifiedImageError

        path = self.paths[index]
        try:
            with Image.open(path) as image:
                return self.transform(image.convert("RGB")), self.labels[index]
        except (OSError, UnidentifiedImageError) as error:
            raise BadData(f"{path}: no image that can be read ({error})") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples(PlannedData):
    """A map-style dataset: which rows a batch is made of is planned by the training's seed."""

    dataset: Any  # Any: a Dataset with a length
    collate: Callable[[list[Any]], Any]
    shuffled: bool = True
    workers: bool = False

    @property
    def stored(self) -> bool:
        return self.workers

    def __len__(self) -> int:
        return len(self.dataset)

    def plan(self, size: int, *, rng: torch.Generator | None) -> Iterator[Plan]:
        count = len(self)
        shuffled = rng is not None and self.shuffled
        order = torch.randperm(count, generator=rng) if shuffled else torch.arange(count)
        return ({ROWS: index} for index in pieces(order, size))

    def read(self, plan: Plan) -> dict[str, Tensor]:
        index = plan[ROWS]
        made = self.collate([self.dataset[i] for i in index.tolist()])
        return _columns(made, index)


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A DataLoader with a sampler of its own: it gives the batches, whole ones only."""

    loader: DataLoader[Any]
    size: int

    def __len__(self) -> int:
        return len(self.loader) * self.size

    def batches(self, size: int, *, rng: torch.Generator | None) -> Iterator[Mapping[str, Tensor]]:
        for number, made in enumerate(self.loader):
            yield _columns(made, torch.arange(number * self.size, (number + 1) * self.size))


def _columns(made: Any, index: Tensor) -> dict[str, Tensor]:  # Any: what a collate gives
    """A batch by column, with the rows' numbers."""
    if isinstance(made, Tensor):
        found: dict[str, Any] = {INPUTS: made}
    elif isinstance(made, Mapping):
        found = dict(cast("Mapping[str, Any]", made))
    elif isinstance(made, (tuple, list)) and len(cast("Sequence[Any]", made)) in (1, 2):
        found = dict(zip((INPUTS, LABELS), cast("Sequence[Any]", made), strict=False))
    else:
        raise BadData(
            f"a batch is a {type(made).__name__}; a sample must be (input, label), an input, or a "
            "dict of tensors"
        )
    if LABELS not in found and "label" in found:
        found[LABELS] = found.pop("label")
    columns = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    rows = {len(value) for value in columns.values()}
    if not columns or len(rows) != 1:
        raise BadData(
            "a batch needs tensors of the same number of rows (got "
            f"{', '.join(f'{n} {type(v).__name__}' for n, v in found.items())})"
        )
    return {**columns, ID: index[: rows.pop()]}


def data_of(data: Source, batch: int) -> tuple[Data, int]:
    """The data as `fit` takes them, and the size of a batch. Raises BadData."""
    if isinstance(data, Data):
        return data, batch
    if not isinstance(data, DataLoader):
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise BadData(
                f"a {type(data).__name__} has no length; give a dataset with __len__ and "
                "__getitem__, or a DataLoader of one"
            )
        return Samples(dataset=data, collate=default_collate), batch
    if data.batch_size is None:
        raise BadData("the DataLoader makes no batches (batch_size=None); give it a batch size")
    if not hasattr(data.dataset, "__len__"):
        raise BadData(
            f"the DataLoader's {type(data.dataset).__name__} has no length; give a dataset with "
            "__len__ and __getitem__"
        )
    if type(data.sampler) in (RandomSampler, SequentialSampler):
        samples = Samples(
            dataset=data.dataset,
            collate=data.collate_fn,
            shuffled=isinstance(data.sampler, RandomSampler),
            workers=data.num_workers > 0,
        )
        return samples, data.batch_size
    return Loaded(loader=data, size=data.batch_size), data.batch_size
