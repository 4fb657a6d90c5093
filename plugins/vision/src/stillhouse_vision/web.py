"""Reading unlabelled images "from the web": built-in arrays, parquet, or any folder of images.

Labels, where there are any, stay outside: all that is kept of them is whether an image's own class
is one of the target's, which no training reads.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.batching import each_batch
from stillhouse.data.data import Columns, RowData
from stillhouse.data.images import IMAGE_SUFFIXES
from stillhouse.data.sources import note_left_out, visible_files
from stillhouse.data.splits import split_of
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.objective import Tensors
from stillhouse.work import Work
from stillhouse_vision.data import parquet_labels
from stillhouse_vision.images import ParquetImages, Sample, image_columns
from stillhouse_vision.models.classifier import ImageSpec

CLASSES = "classes.json"
UNKNOWN = -1  # the label of an image that has none


@dataclass(frozen=True, kw_only=True)
class ReadWeb:
    """A `make`: the port "source" to the port web with images uint8 [N, C, H, W], fitted to
    `images`, and, where the source has it, vocabulary bool [N].

    Source: arrays images and vocabulary; a parquet file, or a folder of them (train*.parquet alone,
    where there is one), with a column image; or a folder with images at any depth.
    vocabulary: where classes.json beside the parquet has a list of records with "label" and, under
    `vocabulary`, the target's class or null, and the parquet a column label.
    """

    images: ImageSpec
    vocabulary: str = "cifar10"

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: arrays by name, or a Path
        *,
        work: Work,
    ) -> Mapping[str, Columns | Iterator[Columns]]:
        source = inputs["source"]
        if isinstance(source, Mapping):
            return {"web": self._arrays(source)}
        if not isinstance(source, Path):
            raise BadData(
                f"web: a {type(source).__name__}; expected arrays, parquet or a folder of images"
            )
        samples = find_images(source)
        return {"web": self._columns(samples, self._known(source), work)}

    def _arrays(self, arrays: Mapping[str, Any]) -> Columns:  # Any: numpy arrays or tensors
        images = torch.as_tensor(np.asarray(arrays["images"]))
        expected = (self.images.channels, self.images.size, self.images.size)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            found = f"{images.dtype} {list(images.shape[1:])}"
            raise BadData(f"web images: {found}; expected torch.uint8 {list(expected)}")
        columns = {"images": images}
        if "vocabulary" in arrays:
            columns["vocabulary"] = torch.as_tensor(np.asarray(arrays["vocabulary"])).bool()
        return columns

    def _known(self, source: Path) -> frozenset[int] | None:
        """Labels whose class is one of the target's; None where nothing records it."""
        file = (source if source.is_dir() else source.parent) / CLASSES
        if not file.is_file():
            return None
        try:
            records = json.loads(file.read_text())
            found = {r["label"] for r in records if r[self.vocabulary] is not None}
        except (ValueError, KeyError, TypeError) as error:
            raise BadData(
                f"{file}: expected a list of records with label and {self.vocabulary} ({error!r}); "
                "correct it, remove it, or set vocabulary"
            ) from error
        return frozenset(found)

    def _columns(
        self, samples: Sequence[Sample], known: frozenset[int] | None, work: Work
    ) -> Iterator[Columns]:
        labelled = known is not None and all(s.label != UNKNOWN for s in samples)
        for part in image_columns(samples, self.images, resize=True, work=work):
            labels = part["labels"]
            columns = {name: column for name, column in part.items() if name != "labels"}
            if labelled and known is not None and isinstance(labels, Tensor):
                columns["vocabulary"] = torch.tensor([n in known for n in labels.tolist()])
            yield columns


def find_images(source: Path) -> list[Sample]:
    """Every image of a parquet file or below a folder; raises BadData where there is none."""
    files = visible_files(source)
    parquet = _parquet(source, files)
    found = parquet or [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise BadData(
            f"{source}: no image in it; expected parquet with a column image, or image files"
        )
    note_left_out(source, files, found)
    if parquet:
        return [sample for file in parquet for sample in _rows(file)]
    return [Sample(str(file), file, UNKNOWN) for file in found]


def _parquet(source: Path, files: Sequence[Path]) -> list[Path]:
    """Those of the train part where files are named as parts, else all."""
    every = [file for file in files if file.suffix.lower() == ".parquet"]
    if source.is_file():
        return every
    return [file for file in every if split_of(file, source) == "train"] or every


def _rows(file: Path) -> list[Sample]:
    images = ParquetImages(file, str(file))
    each = list(images.samples())
    labels = parquet_labels(images) or [None] * len(each)
    return [
        Sample(image.where, image, label if isinstance(label, int) else UNKNOWN)
        for image, label in zip(each, labels, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class MostConfident:
    """A `make`: the `share` of the port "web" of which the port "teacher" is most confident, by its
    largest probability, to the port web; in their order, with their ids.
    """

    share: float = 0.5
    batch: int = 250  # only the most images that go through the teacher at a time

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise BadSetting(f"share must be > 0 and <= 1 (got {self.share})")

    def __call__(
        self,
        inputs: Mapping[str, Any],
        *,
        work: Work,
    ) -> Mapping[str, Columns]:
        pool, teacher = inputs["web"], inputs["teacher"].module
        assert isinstance(pool, RowData)

        def confident(batch: Tensors) -> Tensor:
            return teacher(batch)["logits"].softmax(1).amax(1)

        found = each_batch(pool, confident, most=self.batch, device="cpu")
        confidence = torch.cat(list(found))
        count = max(1, round(self.share * len(pool)))
        return {"web": pool.select(confidence.topk(count).indices.sort().values)}
