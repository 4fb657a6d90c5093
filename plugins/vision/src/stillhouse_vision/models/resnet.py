"""ResNets for 32 x 32 images (He et al. 2016, arXiv 1512.03385, section 4.2), and the x4-wide
ones of the KD field.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.errors import BadSetting
from stillhouse_vision.models.classifier import (
    Classifier,
    ImageSpec,
    Maps,
    Stage,
    conv1,
    conv3,
    run_stages,
)

Shortcut = Literal["pad", "conv"]


def resnet(
    *,
    depth: int,
    widths: Sequence[int],
    shortcut: Shortcut,
    classes: int,
    images: Mapping[str, Any],  # Any: ImageSpec.json()
) -> nn.Module:
    """Depth 6n + 2: a stem and three stages of n blocks; `widths` are those of the stem and the
    stages.

    `shortcut` where a stage changes the width: "pad" is the paper's option A (every second pixel,
    zero channels), "conv" its option B (1 x 1 convolution with BatchNorm).
    """
    if depth < 8 or (depth - 2) % 6:
        raise BadSetting(f"a CIFAR ResNet has depth 6n + 2 with n >= 1 (got {depth})")
    blocks = [(depth - 2) // 6] * (len(widths) - 1)
    return resnet_of_blocks(
        blocks=blocks, widths=widths, shortcut=shortcut, classes=classes, images=images
    )


def resnet_of_blocks(
    *,
    blocks: Sequence[int],
    widths: Sequence[int],
    shortcut: Shortcut,
    classes: int,
    images: Mapping[str, Any],  # Any: ImageSpec.json()
) -> nn.Module:
    """A stem and as many stages as `blocks` has numbers, each with its own number of blocks; the
    first stage keeps the size, each other halves it. `widths` as in `resnet`.
    """
    if not blocks or min(blocks) < 1 or len(widths) != len(blocks) + 1:
        raise BadSetting(
            "blocks needs a number >= 1 a stage, widths one more for the stem "
            f"(got {list(blocks)} and {list(widths)})"
        )
    spec = ImageSpec.of(images)
    body = ResNetBody(blocks, widths, shortcut, spec.channels)
    return Classifier(body, width=widths[-1], classes=classes, images=spec)


class ResNetBody(nn.Module):
    """Stem, then stages at full size, half, quarter and so on."""

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], shortcut: Shortcut, channels: int
    ) -> None:
        super().__init__()
        self.conv = conv3(channels, widths[0])
        self.norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.ModuleList(
            Stage(_blocks(count, before, width, 1 if number == 0 else 2, shortcut))
            for number, (count, (before, width)) in enumerate(
                zip(blocks, itertools.pairwise(widths), strict=True)
            )
        )

    def forward(self, x: Tensor) -> Maps:
        return run_stages(self.stages, F.relu(self.norm(self.conv(x))))


def _blocks(
    count: int, before: int, width: int, stride: int, shortcut: Shortcut
) -> list[nn.Module]:
    rest = (ResidualBlock(width, width, 1, shortcut) for _ in range(count - 1))
    return [ResidualBlock(before, width, stride, shortcut), *rest]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; returns the sum, before its ReLU."""

    def __init__(self, before: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3(before, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = conv3(width, width), nn.BatchNorm2d(width)
        same = before == width and stride == 1
        self.shortcut = nn.Identity() if same else _shortcut(before, width, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(y)) + self.shortcut(x)


def _shortcut(before: int, width: int, stride: int, kind: Shortcut) -> nn.Module:
    if kind == "conv":
        return nn.Sequential(conv1(before, width, stride), nn.BatchNorm2d(width))
    return PadShortcut(stride, width - before)


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and `extra` zero channels, half of them on each side."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        front = self.extra // 2
        return F.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.extra - front)
        )
