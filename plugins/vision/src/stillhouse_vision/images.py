"""Images that are read one at a time: a file, bytes, or a row of parquet; decoded, or kept as they
are.
"""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.data import Columns
from stillhouse.data.encoded import Decoder, Encoded
from stillhouse.data.images import fit_square, read_image
from stillhouse.data.parquet import column_of, open_parquet, unreadable
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_vision.models.classifier import ImageSpec

IMAGE_COLUMNS = ("image", "img")
DECODED_BYTES = 256 << 20  # images of more are kept as they were given, and decoded row by row
SHARD_BYTES = 128 << 20  # of them in a shard


class ParquetImages:
    """The image column of a parquet file, a struct with bytes or bytes, a row group in memory at a
    time. Raises BadData where there is none.
    """

    def __init__(self, file: Path, where: str) -> None:
        self.where = where
        self.parquet = open_parquet(file, memory_map=True)
        self.column = column_of(self.parquet, IMAGE_COLUMNS, where)
        self._held: tuple[int, Any] = (-1, None)  # Any: an Arrow array

    def samples(self) -> Iterator["ParquetImage"]:
        number = count()
        for group in range(self.parquet.num_row_groups):
            for row in range(self.parquet.metadata.row_group(group).num_rows):
                where = f"{self.where}: row {next(number)}"
                yield ParquetImage(images=self, group=group, row=row, where=where)

    def bytes_of(self, group: int, row: int) -> bytes | None:
        if self._held[0] != group:
            try:
                table = self.parquet.read_row_group(group, columns=[self.column])
            except (OSError, pa.ArrowException) as error:
                raise unreadable(self.where, error) from error
            found = table.column(0).combine_chunks()
            if pa.types.is_struct(found.type):
                found = found.field("bytes")
            self._held = group, found
        value: object = self._held[1][row].as_py()
        return value if isinstance(value, bytes) else None


@dataclass(frozen=True, kw_only=True)
class ParquetImage:
    """An image of a row of parquet, read on access."""

    images: ParquetImages
    group: int
    row: int  # within the group
    where: str

    def read(self) -> bytes:
        """Its encoded bytes; raises BadData where the row has none."""
        found = self.images.bytes_of(self.group, self.row)
        if found is None:
            raise BadData(f"{self.where}: has no image; complete or remove it")
        return found


class Sample(NamedTuple):
    """An image that is not decoded yet; `where` names it in messages."""

    where: str
    encoded: Path | bytes | ParquetImage
    label: int

    @property
    def content(self) -> Path | bytes:
        """Its file, or its bytes; raises BadData where a row has none."""
        return self.encoded.read() if isinstance(self.encoded, ParquetImage) else self.encoded

    @property
    def whole(self) -> bytes:
        """Its encoded bytes."""
        found = self.content
        return found if isinstance(found, bytes) else found.read_bytes()


def decode(sample: Sample, images: ImageSpec, *, resize: bool) -> NDArray[np.uint8]:
    """The image as [C, H, W], upright; raises BadData when it cannot be read or does not fit
    `images`.
    """
    return _decoded(
        sample.content, sample.where, channels=images.channels, size=images.size, resize=resize
    )


def _decoded(
    encoded: Path | bytes, where: str, *, channels: int, size: int, resize: bool
) -> NDArray[np.uint8]:
    image = read_image(encoded, where, mode="RGB" if channels == 3 else "")
    if (channels, image.mode) not in ((3, "RGB"), (1, "L")):
        raise BadData(
            f"{where}: an image of mode {image.mode}, but mean and std have {channels} channel(s)"
        )
    if image.size != (size, size):
        if not resize:
            found = f"{image.width} x {image.height}"
            raise BadData(
                f"{where}: {found} pixels, expected {size} x {size}; "
                "set size, or resize=true to fit it"
            )
        image = fit_square(image, size, where)
    array = np.array(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


@dataclass(frozen=True, kw_only=True)
class DecodeImage(Decoder):
    """An image as uint8 [channels, size, size], upright; of another size it is fitted where
    `resize`, else refused.
    """

    channels: int
    size: int
    resize: bool

    @property
    def version(self) -> str:
        return f"Pillow {importlib.metadata.version('pillow')}"

    def __call__(self, encoded: bytes, row: Mapping[str, Tensor], where: str) -> Tensor:
        return torch.from_numpy(
            _decoded(encoded, where, channels=self.channels, size=self.size, resize=self.resize)
        )


def image_columns(
    samples: Sequence[Sample], images: ImageSpec, *, resize: bool, work: Work
) -> Iterator[Columns]:
    """The column images of all samples, uint8 [N, C, H, W], in one part; of those that would take
    more than `DECODED_BYTES` the files as they are, in parts, each decoded once to see that it can
    be. Each part has "label", int64 [n].
    """
    if len(samples) * images.channels * images.size**2 <= DECODED_BYTES:
        whole = np.stack([decode(s, images, resize=resize) for s in samples])
        yield {"images": torch.from_numpy(whole), "labels": _labels(samples)}
        return
    decoder = DecodeImage(channels=images.channels, size=images.size, resize=resize)
    values, first, size = list[bytes](), 0, 0
    for done, sample in enumerate(samples, 1):
        values.append(sample.whole)
        decoder(values[-1], {}, sample.where)
        size += len(values[-1])
        if size >= SHARD_BYTES or done == len(samples):
            work.progress(done, len(samples), "images checked")
            encoded = Encoded(values=values, decoder=decoder)
            yield {"images": encoded, "labels": _labels(samples[first:done])}
            values, first, size = [], done, 0


def _labels(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([sample.label for sample in samples])
