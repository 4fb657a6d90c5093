"""ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164) at 1x width for 32 x 32 images: stem at stride
1, no max-pooling.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse_vision.models.classifier import (
    Classifier,
    ImageSpec,
    Maps,
    Stage,
    conv1,
    conv3,
    run_stages,
)


def shufflenet_v2(
    *,
    widths: Sequence[int],
    blocks: Sequence[int],
    classes: int,
    images: Mapping[str, Any],  # Any: ImageSpec.json()
) -> nn.Module:
    """`widths`: stem, stages, last 1 x 1 convolution; `blocks`: units of each stage, its
    down-sampling one included.
    """
    spec = ImageSpec.of(images)
    body = ShuffleBody(widths, blocks, spec.channels)
    return Classifier(body, width=widths[-1], classes=classes, images=spec)


class ShuffleBody(nn.Module):
    """Stages at half, quarter and eighth size; each is a down-sampling unit and basic units.

    A unit's first half is the output of the ReLUs before it, never negative, so that one ReLU over
    a unit's map is the ReLU over its new half.
    """

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], channels: int) -> None:
        super().__init__()
        self.conv, self.norm = conv3(channels, widths[0]), nn.BatchNorm2d(widths[0])
        self.stages = nn.ModuleList(
            Stage([DownUnit(before, width), *(BasicUnit(width) for _ in range(count - 1))])
            for before, width, count in zip(widths[:-2], widths[1:-1], blocks, strict=True)
        )
        self.last_conv, self.last_norm = conv1(widths[-2], widths[-1]), nn.BatchNorm2d(widths[-1])

    def forward(self, x: Tensor) -> Maps:
        maps = run_stages(self.stages, F.relu(self.norm(self.conv(x))))
        last = F.relu(self.last_norm(self.last_conv(maps.last)))
        return Maps(maps.preacts, maps.hints, last)


class BasicUnit(nn.Module):
    """Half of the channels pass, half go through 1 x 1, depth-wise 3 x 3, 1 x 1; then the halves
    are shuffled.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = _branch(width // 2, width // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        return shuffled(torch.cat([kept, self.branch(changed)], dim=1))


class DownUnit(nn.Module):
    """Both halves see all channels and halve the size."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.side = nn.Sequential(
            _depthwise(before, stride=2),
            nn.BatchNorm2d(before),
            conv1(before, half),
            nn.BatchNorm2d(half),
        )
        self.branch = _branch(before, half, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return shuffled(torch.cat([self.side(x), self.branch(x)], dim=1))


def _branch(before: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv1(before, width),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        _depthwise(width, stride),
        nn.BatchNorm2d(width),
        conv1(width, width),
        nn.BatchNorm2d(width),
    )


def _depthwise(width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False)


def shuffled(x: Tensor) -> Tensor:
    """Channels of the two halves taken in turn."""
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
