"""The images that a tower takes: size, colours, and files as such images."""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stillhouse.artifact import Model
from stillhouse.data.data import Columns
from stillhouse.data.encoded import Decoder, Encoded
from stillhouse.data.images import fit_square, read_image
from stillhouse.errors import BadSetting
from stillhouse.work import Work

DECODED_BYTES = 256 << 20  # images of more are kept as they were given, and decoded row by row
SHARD_BYTES = 128 << 20  # of them in a shard

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OPENAI = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The images a tower takes: side in pixels, mean and std a channel (of values in [0, 1])."""

    size: int = 224
    mean: tuple[float, ...] = IMAGENET["mean"]
    std: tuple[float, ...] = IMAGENET["std"]

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3:
            counts = f"{len(self.mean)} and {len(self.std)}"
            raise BadSetting(f"mean and std need three values, red green blue (got {counts})")
        if min(self.std) <= 0 or self.size < 1:
            raise BadSetting(f"std and size must be > 0 (got {min(self.std)} and {self.size})")

    def json(self) -> dict[str, Any]:  # Any: JSON values
        """As a model's keyword argument `images`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "ImageSpec":  # Any: what `json` gave
        return cls(
            size=int(record["size"]),
            mean=tuple(float(v) for v in record["mean"]),
            std=tuple(float(v) for v in record["std"]),
        )


def images_of(spec: Model) -> ImageSpec | None:
    """The images a model takes, by its spec or by that of the network it was converted from."""
    kwargs = spec.kwargs.get("source", {}).get("kwargs", spec.kwargs)
    return ImageSpec.of(kwargs["images"]) if "images" in kwargs else None


class Normalized(nn.Module):
    """Pixels [B, 3, H, W], uint8 or floats in [0, 1], to the size and colours of an `ImageSpec`;
    scaled bicubically, antialiased, where they have another size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, images: ImageSpec) -> None:
        super().__init__()
        self.size = images.size
        # not persistent: they are in the model's spec
        self.register_buffer("mean", torch.tensor(images.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(images.std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        if tuple(x.shape[-2:]) != (self.size, self.size):
            x = nn.functional.interpolate(
                x, (self.size, self.size), mode="bicubic", antialias=True
            ).clamp(0, 1)
        # a third to a half faster on a CPU
        return ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


Fit = Literal["square", "squash"]
SQUASHED = 256 / 224  # of the side that is kept: what an image is scaled to before it is cut


def pixels(source: Path | bytes, size: int, where: str, *, fit: Fit = "square") -> Tensor:
    """An image file as uint8 [3, size, size], upright. "square": its shorter side scaled to size,
    the square in its centre. "squash", as the published code of VLM-OOD: both sides scaled to 256
    (at size 224), whatever their ratio, the square in its centre. Raises BadData.
    """
    image = read_image(source, where)
    if fit == "squash":
        side = round(SQUASHED * size)
        edge = (side - size) // 2
        image = image.resize((side, side), Image.Resampling.BICUBIC)
        image = image.crop((edge, edge, edge + size, edge + size))
    array = np.array(fit_square(image, size, where), dtype=np.uint8)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


@dataclass(frozen=True, kw_only=True)
class DecodeImage(Decoder):
    """An image file as `pixels` gives it."""

    size: int
    fit: Fit = "square"

    @property
    def version(self) -> str:
        return f"Pillow {importlib.metadata.version('pillow')}"

    def __call__(self, encoded: bytes, row: Mapping[str, Tensor], where: str) -> Tensor:
        return pixels(encoded, self.size, where, fit=self.fit)


class Sample(NamedTuple):
    """An image that is not decoded yet, its label and its caption; `where` names it in messages."""

    where: str
    encoded: Path | bytes
    label: int
    caption: str = ""

    @property
    def whole(self) -> bytes:
        return self.encoded if isinstance(self.encoded, bytes) else self.encoded.read_bytes()


def image_columns(samples: Sequence[Sample], decode: DecodeImage, work: Work) -> Iterator[Columns]:
    """images, labels and captions of the samples: decoded in one part, or, where that would take
    more than `DECODED_BYTES`, as they are, in parts; each is decoded once to see that it can be.
    """
    if len(samples) * 3 * decode.size**2 <= DECODED_BYTES:
        found = [pixels(s.encoded, decode.size, s.where, fit=decode.fit) for s in samples]
        yield {"images": torch.stack(found), **_beside(samples)}
        return
    values, first, size = list[bytes](), 0, 0
    for done, sample in enumerate(samples, 1):
        values.append(sample.whole)
        decode(values[-1], {}, sample.where)
        size += len(values[-1])
        if size >= SHARD_BYTES or done == len(samples):
            work.progress(done, len(samples), "images checked")
            yield {"images": Encoded(values=values, decoder=decode), **_beside(samples[first:done])}
            values, first, size = [], done, 0


def _beside(samples: Sequence[Sample]) -> Columns:
    labels = torch.tensor([sample.label for sample in samples])
    return {"labels": labels, "captions": [sample.caption for sample in samples]}
