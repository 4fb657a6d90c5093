"""Labelled images (or points of a plane) for training: arrays, parquet, folders of classes.

Everything is checked before anything is trained: an image that cannot be decoded, a label outside
the classes, a class without images. The message names the file, and the row where there is one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.data import Columns
from stillhouse.data.images import IMAGE_SUFFIXES, fit_square, read_image
from stillhouse.data.parquet import column_of, open_parquet, parquet_rows
from stillhouse.data.sources import check_apart, visible_files, visible_folders
from stillhouse.data.splits import Split, check_classes, child_splits, parts, split_of
from stillhouse.errors import BadData, BadSetting
from stillhouse.work import Work

SHARD_BYTES = 128 << 20
SPLITS = ("train", "test")
LABELS = ("label", "labels", "fine_label")
IMAGES = ("image", "img")
EXPECTED = "expected train.parquet and test.parquet, or train/<class>/*.png and test/<class>/*.png"


class Row(NamedTuple):
    """An image that is not decoded yet; `where` names it in messages."""

    where: str
    encoded: Path | bytes
    label: int


@dataclass(frozen=True, kw_only=True)
class ReadLabelled:
    """A `make`: the port "source" to ports train and test with "images" [N, C, H, W] and "labels"
    int64 [N] of 0 ... classes - 1.

    Source: arrays train_images, train_labels, test_images, test_labels, uint8 pixels or float32
    values that are taken as they are; or a folder with train*.parquet and test*.parquet (struct
    image with bytes; label), or with train/<class>/ and test/<class>/, whose classes are numbered
    in the order of their names. Images become uint8 of `shape` [C, H, W]: grey or RGB, the shorter
    side scaled to H with antialiasing, the middle square cut out.
    """

    shape: tuple[int, int, int]
    classes: int

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1 or self.classes < 1:
            raise BadSetting(
                f"shape and classes must be >= 1 (got {list(self.shape)}, {self.classes})"
            )

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: arrays by name, or a Path
        *,
        work: Work,
    ) -> Mapping[str, Columns | Iterator[Columns]]:
        source = inputs["source"]
        if isinstance(source, Mapping):
            return {split: self._arrays(source, split) for split in SPLITS}
        if not isinstance(source, Path):
            raise BadData(f"source: a {type(source).__name__}; {EXPECTED}")
        rows = labelled_rows(source)
        check_apart({split: [(r.where, r.encoded) for r in each] for split, each in rows.items()})
        for split in SPLITS:
            if split not in rows:
                raise BadData(f"{source}: no {split} part; {EXPECTED}")
            where = [row.where for row in rows[split]]
            self._check(f"{source} ({split})", [row.label for row in rows[split]], where)
        return {split: self._decoded(rows[split], work) for split in SPLITS}

    def _arrays(self, arrays: Mapping[str, Any], split: str) -> Columns:  # Any: numpy arrays
        images = torch.as_tensor(np.asarray(arrays[f"{split}_images"]))
        labels = torch.as_tensor(np.asarray(arrays[f"{split}_labels"])).long()
        known = images.dtype in (torch.uint8, torch.float32)
        if not known or tuple(images.shape[1:]) != self.shape or len(images) != len(labels):
            found = f"{images.dtype} {list(images.shape)} with {len(labels)} labels"
            raise BadData(f"{split}_images: {found}; expected uint8 or float32 [N, *{self.shape}]")
        self._check(f"{split}_labels", labels.tolist(), [])
        return {"images": images, "labels": labels}

    def _check(self, source: str, labels: list[int], where: list[str]) -> None:
        for row, label in enumerate(labels):
            if not 0 <= label < self.classes:
                place = where[row] if where else f"{source}: row {row}"
                raise BadData(
                    f"{place}: label {label} is not in 0..{self.classes - 1}; correct it or set "
                    f"classes (now {self.classes})"
                )
        if empty := set(range(self.classes)) - set(labels):
            raise BadData(
                f"{source}: class {min(empty)} has no image; add some or set classes (now "
                f"{self.classes})"
            )

    def _decoded(self, rows: list[Row], work: Work) -> Iterator[Columns]:
        size = max(1, SHARD_BYTES // int(np.prod(self.shape)))
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            images = np.stack([self._image(row) for row in part])
            work.progress(first + len(part), len(rows), "images")
            labels = torch.tensor([row.label for row in part])
            yield {"images": torch.from_numpy(images), "labels": labels}

    def _image(self, row: Row) -> NDArray[np.uint8]:
        channels, height, width = self.shape
        image = read_image(row.encoded, row.where, mode="L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = fit_square(image, height, row.where)
        array = np.array(image, dtype=np.uint8)
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def labelled_rows(source: Path) -> dict[str, list[Row]]:
    """The images of each part of a folder, in order; raises BadData for another layout."""
    files = [file for file in visible_files(source) if file.suffix.lower() == ".parquet"]
    by_split: dict[Split, list[Path]] = {}
    for file in files:
        if split := split_of(file, source):
            by_split.setdefault(split, []).append(file)
    if files and not by_split:
        raise BadData(f"{source}: parquet files, but none is called train or test; {EXPECTED}")
    if by_split:
        used = parts(by_split, source, validates=False)
        return {str(s): [row for f in found for row in _parquet(f)] for s, found in used.items()}
    folders = child_splits(source, visible_folders(source)) if source.is_dir() else {}
    if not folders:
        raise BadData(f"{source}: neither parquet nor folders of parts; {EXPECTED}")
    named = {s: [f.name for f in visible_folders(folder)] for s, folder in folders.items()}
    used_folders = parts({s: [f] for s, f in folders.items()}, source, validates=False)
    classes = check_classes({s: named[s] for s in used_folders}, source)
    return {
        str(split): [
            Row(str(file), file, number)
            for number, name in enumerate(classes)
            for file in visible_files(folder / name)
            if file.suffix.lower() in IMAGE_SUFFIXES
        ]
        for split, (folder,) in used_folders.items()
    }


def _parquet(file: Path) -> list[Row]:
    opened = open_parquet(file)
    image, label = (column_of(opened, names, file) for names in (IMAGES, LABELS))
    rows: list[Row] = []
    for number, row in enumerate(parquet_rows(opened, (image, label))):
        value, number_of = row[image], row[label]
        content = value.get("bytes") if isinstance(value, dict) else value
        where = f"{file}: row {number}"
        if not isinstance(content, bytes) or not isinstance(number_of, int):
            raise BadData(f"{where}: has no image or label; complete or remove it")
        rows.append(Row(where, content, number_of))
    return rows


def balanced_labels(first: int, last: int, classes: int) -> Tensor:
    """The labels of the rows from `first` to before `last`: each class in turn."""
    return torch.arange(first, last) % classes
