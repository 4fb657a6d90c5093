"""What every classifier of this plugin is: normalise, run a body, pool, a linear head; all outputs
by name.

B: batch. C H W: channels, height, width of the image. A body gives one feature map a stage.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.errors import BadSetting

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The images a model takes: side in pixels, mean and std a channel (of values in [0, 1]),
    class names.

    Channels are as many as `mean` has values. `names` may be empty: classes are then numbers.
    """

    size: int = 32
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            counts = f"{len(self.mean)} and {len(self.std)}"
            raise BadSetting(f"mean and std need one value a channel each (got {counts} values)")
        if min(self.std) <= 0:
            raise BadSetting(f"std must be > 0 (got {min(self.std)})")
        if self.size < 1:
            raise BadSetting(f"size must be >= 1 (got {self.size})")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def json(self) -> dict[str, Any]:  # Any: JSON values
        """As a model's keyword argument `images`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "ImageSpec":  # Any: what `json` gave
        return cls(
            size=int(record["size"]),
            mean=tuple(float(v) for v in record["mean"]),
            std=tuple(float(v) for v in record["std"]),
            names=tuple(str(v) for v in record["names"]),
        )


class Maps(NamedTuple):
    """What a body computes: maps before and after each stage's last ReLU, and the map that is
    pooled.
    """

    preacts: Sequence[Tensor]
    hints: Sequence[Tensor]
    last: Tensor


class Normalise(nn.Module):
    """Images as they are stored (uint8, or floats in [0, 1]) to (x - mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self, images: ImageSpec) -> None:
        super().__init__()
        # not persistent: they are in the model's spec, and other people's checkpoints lack them
        self.register_buffer("mean", _column(images.mean), persistent=False)
        self.register_buffer("std", _column(images.std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        return (x - self.mean) / self.std


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]


class Classifier(nn.Module):
    """batch["images"] [B, C, H, W] -> logits [B, classes], embedding [B, D], hint1..N and
    preact1..N.

    hint<i> is the feature map of stage i after its last ReLU, preact<i> the same before it.
    """

    def __init__(self, body: nn.Module, *, width: int, classes: int, images: ImageSpec) -> None:
        super().__init__()
        self.normalise = Normalise(images)
        self.body = body
        self.head = nn.Linear(width, classes)
        initialise(body)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        maps: Maps = self.body(self.normalise(batch["images"]))
        embedding = maps.last.mean((2, 3))
        outputs = {"logits": self.head(embedding), "embedding": embedding}
        outputs |= {f"hint{i}": hint for i, hint in enumerate(maps.hints, 1)}
        return outputs | {f"preact{i}": preact for i, preact in enumerate(maps.preacts, 1)}


def initialise(body: nn.Module) -> None:
    """He et al. 2015 (arXiv 1502.01852), fan-out form, for convolutions; BatchNorm starts as
    identity.
    """
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def conv3(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size at stride 1; BatchNorm follows, so it has no bias."""
    return nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)


def conv1(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    """A 1 x 1 convolution without bias."""
    return nn.Conv2d(inside, outside, 1, stride=stride, bias=False)


class Stage(nn.Module):
    """Blocks in a row, a ReLU between them; returns the last one's map, before its ReLU."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        *front, last = self.blocks
        for block in front:
            x = F.relu(block(x))
        return last(x)


def run_stages(stages: Iterable[nn.Module], x: Tensor) -> Maps:
    """Stages in a row, each with a ReLU after it."""
    preacts: list[Tensor] = []
    hints: list[Tensor] = []
    for stage in stages:
        preact: Tensor = stage(x)
        x = F.relu(preact)
        preacts.append(preact)
        hints.append(x)
    return Maps(preacts, hints, x)
