"""Reading images with labels: built-in arrays, parquet as Hugging Face stores it, a folder of
images a class.

Everything is checked before anything is trained: an image that cannot be decoded, a size that is
not the model's, a label out of range, a class without images, the same image in two parts. The
message names the file, and the row where there is one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from stillhouse.data.data import Columns
from stillhouse.data.images import IMAGE_SUFFIXES
from stillhouse.data.notes import note
from stillhouse.data.parquet import column_of
from stillhouse.data.sources import (
    check_apart,
    copied,
    listed_once,
    note_left_out,
    visible_files,
)
from stillhouse.data.splits import Split, check_classes, parts
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_vision.folders import class_folders, class_names, parquet_files
from stillhouse_vision.images import ParquetImage, ParquetImages, Sample, image_columns
from stillhouse_vision.models.classifier import ImageSpec

LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True, kw_only=True)
class ReadImages:
    """A `make`: the port "source" to ports train and test with images uint8 [N, C, H, W] and labels
    int64 [N].

    Source: arrays train_images, train_labels, test_images, test_labels; or a folder with
    train*.parquet and test*.parquet (struct image with bytes; label), with train/<class>/ and
    test/<class>/, or with <class>/ alone. Where there is no test part, `held_out` of each class is
    kept for it. Folders of classes are labelled in the order of `images.names`, else of their
    names; a class folder that one part lacks is refused. `resize` fits images of another size
    (shorter side, centre crop).
    """

    images: ImageSpec
    classes: int
    held_out: float = 0.2
    resize: bool = False

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: arrays by name, or a Path
        *,
        work: Work,
    ) -> Mapping[str, Columns | Iterator[Columns]]:
        source = inputs["source"]
        if isinstance(source, Mapping):
            return {split: self._arrays(source, split) for split in ("train", "test")}
        if not isinstance(source, Path):
            raise BadData(
                f"source: a {type(source).__name__}; "
                "expected arrays, parquet files or folders of images"
            )
        splits = find_samples(source, self.images.names)
        if "test" not in splits:
            splits = held_out(splits["train"], self.held_out, work.rng)
        for split, samples in splits.items():
            self._check_labels(f"{source} ({split})", samples)
        return {
            split: image_columns(samples, self.images, resize=self.resize, work=work)
            for split, samples in splits.items()
        }

    def _arrays(
        self, arrays: Mapping[str, Any], split: str
    ) -> Columns:  # Any: numpy arrays or tensors
        images = torch.as_tensor(np.asarray(arrays[f"{split}_images"]))
        labels = torch.as_tensor(np.asarray(arrays[f"{split}_labels"])).long()
        expected = (self.images.channels, self.images.size, self.images.size)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            found = f"{images.dtype} {list(images.shape[1:])}"
            raise BadData(f"{split}_images: {found}; expected torch.uint8 {list(expected)}")
        rows = enumerate(labels.tolist())
        self._check_labels(
            f"{split}_labels", [Sample(f"{split}_labels: row {i}", b"", label) for i, label in rows]
        )
        return {"images": images, "labels": labels}

    def _check_labels(self, where: str, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if not 0 <= sample.label < self.classes:
                raise BadData(
                    f"{sample.where}: label {sample.label} is not in 0..{self.classes - 1}; "
                    f"correct it or set classes (now {self.classes})"
                )
        if empty := set(range(self.classes)) - {sample.label for sample in samples}:
            name = f" ({self.images.names[min(empty)]})" if self.images.names else ""
            raise BadData(
                f"{where}: class {min(empty)}{name} has no image; "
                f"add some or set classes (now {self.classes})"
            )


def find_samples(source: Path, names: Sequence[str]) -> dict[str, list[Sample]]:
    """Samples of "train" and, where there is one, "test" below a folder, by `data.splits.parts`.

    Raises BadData for a layout it does not know, for a class that one part lacks and for a file
    that is in both parts.
    """
    with listed_once():
        found = _in_parquet(source) or _in_folders(source, names)
    check_apart({split: [(s.where, s.encoded) for s in rows] for split, rows in found.items()})
    return found


def _in_parquet(source: Path) -> dict[str, list[Sample]]:
    found = parquet_files(source)
    if not found:
        return {}
    note_left_out(source, visible_files(source), [f for files in found.values() for f in files])
    return {
        split: [sample for file in files for sample in parquet_samples(file, source)]
        for split, files in parts(found, source, validates=False).items()
    }


def _in_folders(source: Path, names: Sequence[str]) -> dict[str, list[Sample]]:
    folders = class_folders(source)
    listed: dict[Split, list[Path]] = {split: [folder] for split, folder in folders.items()}
    used_parts = parts(listed, source, validates=False)
    chosen: dict[Split, Path] = {split: folder for split, (folder,) in used_parts.items()}
    classes = _classes(source, chosen, names)
    found = {str(split): folder_samples(folder, classes) for split, folder in chosen.items()}
    used = {sample.encoded for rows in found.values() for sample in rows}
    unread = [folder for folder in folders.values() if folder not in chosen.values()]
    files = visible_files(source)
    note_left_out(source, files, [f for f in files if f in used or _within(f, unread)])
    return found


def _within(file: Path, folders: Sequence[Path]) -> bool:
    return any(file.is_relative_to(folder) for folder in folders)


def _classes(source: Path, folders: Mapping[Split, Path], names: Sequence[str]) -> Sequence[str]:
    """The class folders in the order of their labels: that of `names`, else their own."""
    own: dict[Split, Sequence[str]] = {s: class_names(folder) for s, folder in folders.items()}
    found = check_classes(own, source)
    if names and set(found) != set(names):
        odd = min(set(found) ^ set(names))
        lacks = "not in names" if odd in found else "missing"
        raise BadData(f"{folders['train']}: class folder '{odd}' is {lacks}")
    return names or found


def parquet_samples(file: Path, root: Path) -> list[Sample]:
    """The rows of a parquet file with a column image (struct with bytes, or bytes) and a column
    label.
    """
    where = file.relative_to(root.parent).as_posix()
    images = ParquetImages(file, where)
    column_of(images.parquet, LABEL_COLUMNS, where)
    labels = parquet_labels(images) or []
    return [_row(image, label) for image, label in zip(images.samples(), labels, strict=True)]


def parquet_labels(images: ParquetImages) -> list[int | None] | None:
    """The column label; None where there is none."""
    names = images.parquet.schema_arrow.names
    found = next((name for name in LABEL_COLUMNS if name in names), None)
    return images.parquet.read(columns=[found]).column(0).to_pylist() if found else None


def _row(image: ParquetImage, label: int | None) -> Sample:
    if not isinstance(label, int):
        raise BadData(f"{image.where}: has no whole-number label; complete or remove it")
    return Sample(image.where, image, label)


def folder_samples(folder: Path, classes: Sequence[str]) -> list[Sample]:
    """Images in a folder a class, at any depth, labelled in the order of `classes`."""
    samples: list[Sample] = []
    for label, name in enumerate(classes):
        files = [f for f in visible_files(folder / name) if f.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise BadData(f"{folder / name}: no image in this class; add some or remove the folder")
        samples += [Sample(str(file), file, label) for file in files]
    return samples


def held_out(samples: Sequence[Sample], fraction: float, rng: Generator) -> dict[str, list[Sample]]:
    """`fraction` of each class, drawn by `rng`, as "test", the rest as "train", in their order.

    An image whose bytes another has stays in the rest, which is logged.
    """
    copies = copied([(sample.where, sample.encoded) for sample in samples])
    if copies:
        note(f"{len(copies)} image(s) that have copies are not drawn for testing")
    labels = torch.tensor([sample.label for sample in samples])
    single = torch.tensor([sample.where not in copies for sample in samples])
    test = torch.zeros(len(samples), dtype=torch.bool)
    for label in labels.unique():
        rows: Tensor = ((labels == label) & single).nonzero()[:, 0]
        whole = int((labels == label).sum())
        if whole < 2 or not len(rows):
            first = samples[int((labels == label).nonzero()[0])].where
            raise BadData(
                f"{first}: the only image of its class{', but for copies' if copies else ''}; "
                "a held-out test needs two"
            )
        count = min(whole - 1, len(rows), max(1, round(fraction * whole)))
        test[rows[torch.randperm(len(rows), generator=rng)[:count]]] = True
    return {
        "train": [s for s, out in zip(samples, test.tolist(), strict=True) if not out],
        "test": [s for s, out in zip(samples, test.tolist(), strict=True) if out],
    }
