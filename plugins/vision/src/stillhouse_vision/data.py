"""Reading pictures with labels: built-in arrays, parquet as Hugging Face stores it, a folder of
pictures a class.

Everything is checked before anything is trained: a picture that cannot be decoded, a size that is
not the model's, a label out of range, a class without pictures. The message names the file, and the
row where there is one.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor

from stillhouse.data.data import Columns
from stillhouse.errors import BadData
from stillhouse_vision.models.classifier import ImageSpec

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
TRAIN, TEST = (
    ("train", "training"),
    ("test", "val", "valid", "validation"),
)  # what splits are called
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
SHARD_BYTES = 256 << 20  # a port is written in parts of this size


class Sample(NamedTuple):
    """A picture that is not decoded yet; `where` names it in messages."""

    where: str
    encoded: Path | bytes
    label: int


@dataclass(frozen=True, kw_only=True)
class ReadImages:
    """A `make`: the port "source" to ports train and test with images uint8 [N, C, H, W] and labels
    int64 [N].

    Source: arrays train_images, train_labels, test_images, test_labels; or a folder with
    train*.parquet and test*.parquet (struct image with bytes; label), with train/<class>/ and
    test/<class>/, or with <class>/ alone. Where there is no test part, `held_out` of each class is
    kept for it. Folders of classes are labelled in the order of `images.names`, else of their
    names. `resize` fits pictures of another size (shorter side, centre crop).
    """

    images: ImageSpec
    classes: int
    held_out: float = 0.2
    resize: bool = False

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: arrays by name, or a Path
        *,
        rng: Generator,
    ) -> Mapping[str, Columns | Iterator[Columns]]:
        source = inputs["source"]
        if isinstance(source, Mapping):
            return {split: self._arrays(source, split) for split in ("train", "test")}
        if not isinstance(source, Path):
            raise BadData(
                f"source: a {type(source).__name__}; "
                "expected arrays, parquet files or folders of pictures"
            )
        splits = find_samples(source, self.images.names)
        if "test" not in splits:
            splits = held_out(splits["train"], self.held_out, rng)
        for split, samples in splits.items():
            self._check_labels(f"{source} ({split})", samples)
        return {split: self._columns(samples) for split, samples in splits.items()}

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
                f"{where}: class {min(empty)}{name} has no picture; "
                f"add some or set classes (now {self.classes})"
            )

    def _columns(self, samples: Sequence[Sample]) -> Iterator[Columns]:
        part = max(1, SHARD_BYTES // (self.images.channels * self.images.size**2))
        for start in range(0, len(samples), part):
            chosen = samples[start : start + part]
            yield {
                "images": torch.from_numpy(
                    np.stack([decode(s, self.images, resize=self.resize) for s in chosen])
                ),
                "labels": torch.tensor([s.label for s in chosen]),
            }


def decode(sample: Sample, images: ImageSpec, *, resize: bool) -> NDArray[np.uint8]:
    """The picture as [C, H, W]; raises BadData when it cannot be read or does not fit `images`."""
    stream = io.BytesIO(sample.encoded) if isinstance(sample.encoded, bytes) else sample.encoded
    try:
        with Image.open(stream) as opened:
            opened.load()
            picture = opened.convert(_mode(opened, images, sample.where))
    except UnidentifiedImageError as error:
        raise BadData(f"{sample.where}: not a picture of a known format; replace it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadData(f"{sample.where}: not a whole picture ({error}); replace it") from error
    size = images.size
    if picture.size != (size, size):
        if not resize:
            found = f"{picture.width} x {picture.height}"
            raise BadData(
                f"{sample.where}: {found} pixels, expected {size} x {size}; "
                "set size, or resize=true to fit it"
            )
        picture = fitted(picture, size)
    array = np.array(picture, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _mode(picture: Image.Image, images: ImageSpec, where: str) -> str:
    if images.channels == 3:
        return "RGB"
    if images.channels == 1 and picture.mode in ("1", "L", "LA"):
        return "L"
    raise BadData(
        f"{where}: a picture of mode {picture.mode}, "
        f"but mean and std have {images.channels} channel(s)"
    )


def fitted(picture: Image.Image, size: int) -> Image.Image:
    """Scaled until its shorter side is `size`, then cut to the square in its centre."""
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + size, top + size))


def find_samples(source: Path, names: Sequence[str]) -> dict[str, list[Sample]]:
    """Samples of "train" and, where there is one, "test" below a folder; raises BadData for a
    layout it does not know.
    """
    if parquet := _parquet_files(source):
        return {
            split: [s for f in files for s in parquet_samples(f, source)]
            for split, files in parquet.items()
        }
    train, test = _child(source, TRAIN), _child(source, TEST)
    if train is not None:
        found = {"train": folder_samples(train, names)}
        return found if test is None else {**found, "test": folder_samples(test, names)}
    if any(p.is_dir() for p in source.glob("[!.]*")):
        return {"train": folder_samples(source, names)}
    raise BadData(
        f"{source}: neither train*.parquet nor folders of pictures; "
        "expected train.parquet and test.parquet, or train/<class>/*.png and test/<class>/*.png"
    )


def _child(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _parquet_files(source: Path) -> dict[str, list[Path]]:
    """Parquet files by split: the part of the file's name before '-', '.' or a digit, else its
    folder's name.
    """
    files = [source] if source.suffix == ".parquet" else sorted(source.rglob("*.parquet"))
    found: dict[str, list[Path]] = {}
    for split, known in (("train", TRAIN), ("test", TEST)):
        named = ({re.split(r"[-.\d]", file.name)[0], file.parent.name} for file in files)
        if chosen := [f for f, words in zip(files, named, strict=True) if words & set(known)]:
            found[split] = chosen
    if found and "train" not in found:
        raise BadData(f"{source}: there is no train*.parquet beside {found['test'][0].name}")
    return found


def parquet_samples(file: Path, root: Path) -> list[Sample]:
    """The rows of a parquet file with a column image (struct with bytes, or bytes) and a column
    label.
    """
    where = file.relative_to(root.parent).as_posix()
    table = read_parquet(file)
    pictures = encoded_pictures(table, where)
    labels = table.column(_column(table, LABEL_COLUMNS, where)).to_pylist()
    return [
        _row(f"{where}: row {i}", encoded, label)
        for i, (encoded, label) in enumerate(zip(pictures, labels, strict=True))
    ]


def read_parquet(file: Path) -> pa.Table:
    """The whole table; raises BadData."""
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise BadData(
            f"{file}: cannot be read as parquet ({str(error).splitlines()[0]}); get it again"
        ) from error


def encoded_pictures(table: pa.Table, where: str) -> list[bytes | None]:
    """The column image, a struct with bytes or bytes; raises BadData where there is none."""
    pictures = table.column(_column(table, IMAGE_COLUMNS, where))
    if pa.types.is_struct(pictures.type):
        pictures = pa.chunked_array([chunk.field("bytes") for chunk in pictures.chunks])
    return pictures.to_pylist()


def _column(table: pa.Table, names: Sequence[str], where: str) -> str:
    for name in names:
        if name in table.column_names:
            return name
    raise BadData(
        f"{where}: no column {' or '.join(names)}; it has {', '.join(table.column_names)}"
    )


def _row(where: str, encoded: bytes | None, label: int | None) -> Sample:
    if not isinstance(encoded, bytes) or not isinstance(label, int):
        missing = "picture" if not isinstance(encoded, bytes) else "whole-number label"
        raise BadData(f"{where}: has no {missing}; complete or remove it")
    return Sample(where, encoded, label)


def folder_samples(folder: Path, names: Sequence[str]) -> list[Sample]:
    """Pictures in a folder a class, labelled in the order of `names`, else of the folders."""
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if names and set(classes) != set(names):
        odd = min(set(classes) ^ set(names))
        raise BadData(
            f"{folder}: class folder '{odd}' is {'not in names' if odd in classes else 'missing'}"
        )
    samples: list[Sample] = []
    for label, name in enumerate(names or classes):
        files = [p for p in sorted((folder / name).rglob("*")) if p.suffix.lower() in PICTURES]
        if not files:
            raise BadData(
                f"{folder / name}: no picture in this class; add some or remove the folder"
            )
        samples += [Sample(str(file), file, label) for file in files]
    return samples


def held_out(samples: Sequence[Sample], fraction: float, rng: Generator) -> dict[str, list[Sample]]:
    """`fraction` of each class, drawn by `rng`, as "test", the rest as "train", in their order."""
    labels = torch.tensor([sample.label for sample in samples])
    test = torch.zeros(len(samples), dtype=torch.bool)
    for label in labels.unique():
        rows: Tensor = (labels == label).nonzero()[:, 0]
        if len(rows) < 2:
            raise BadData(
                f"{samples[int(rows[0])].where}: the only picture of its class; "
                "a held-out test needs two"
            )
        count = min(len(rows) - 1, max(1, round(fraction * len(rows))))
        test[rows[torch.randperm(len(rows), generator=rng)[:count]]] = True
    kept = test.tolist()
    return {
        "train": [sample for sample, out in zip(samples, kept, strict=True) if not out],
        "test": [sample for sample, out in zip(samples, kept, strict=True) if out],
    }
