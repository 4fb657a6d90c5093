"""Wide ResNets (Zagoruyko & Komodakis 2016, arXiv 1605.07146): pre-activation blocks, width times
k, no dropout.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.errors import BadSetting
from stillhouse_vision.models.classifier import Classifier, ImageSpec, Maps, conv1, conv3


def wide_resnet(
    *,
    depth: int,
    k: int,
    classes: int,
    images: Mapping[str, Any],  # Any: ImageSpec.json()
) -> nn.Module:
    """WRN-depth-k: depth 6n + 4, three stages of n blocks with 16k, 32k and 64k channels."""
    if depth < 10 or (depth - 4) % 6 or k < 1:
        raise BadSetting(
            f"a WRN-depth-k has depth 6n + 4 with n >= 1 and k >= 1 (got {depth}, {k})"
        )
    spec = ImageSpec.of(images)
    body = WideBody((depth - 4) // 6, k, spec.channels)
    return Classifier(body, width=64 * k, classes=classes, images=spec)


class WideBody(nn.Module):
    """Stem, then stages at full, half and quarter size.

    The BatchNorm and ReLU that start a block are computed at the end of the one before: what a
    stage's last block leaves before and after that ReLU is the stage's preact and hint.
    """

    def __init__(self, blocks: int, k: int, channels: int) -> None:
        super().__init__()
        widths = [16, 16 * k, 32 * k, 64 * k]
        self.conv, self.norm = conv3(channels, widths[0]), nn.BatchNorm2d(widths[0])
        self.stages = nn.ModuleList(
            WideStage(blocks, before, width, 1 if number == 0 else 2)
            for number, (before, width) in enumerate(itertools.pairwise(widths))
        )

    def forward(self, x: Tensor) -> Maps:
        x = self.conv(x)
        active = F.relu(self.norm(x))
        preacts: list[Tensor] = []
        hints: list[Tensor] = []
        for stage in self.stages:
            x, preact, active = stage(x, active)
            preacts.append(preact)
            hints.append(active)
        return Maps(preacts, hints, active)


class WideStage(nn.Module):
    """Blocks in a row, from and to the running sum and its normalised map after the ReLU."""

    def __init__(self, blocks: int, before: int, width: int, stride: int) -> None:
        super().__init__()
        rest = (WideBlock(width, width, 1) for _ in range(blocks - 1))
        self.blocks = nn.ModuleList([WideBlock(before, width, stride), *rest])

    def forward(self, x: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        preact = active
        for block in self.blocks:
            x, preact = block(x, active)
            active = F.relu(preact)
        return x, preact, active


class WideBlock(nn.Module):
    """conv, norm, ReLU, conv on `active` beside a shortcut; the sum, and the sum normalised."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3(before, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = conv3(width, width), nn.BatchNorm2d(width)
        self.shortcut = None if before == width and stride == 1 else conv1(before, width, stride)

    def forward(self, x: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv2(F.relu(self.norm1(self.conv1(active))))
        x = y + (x if self.shortcut is None else self.shortcut(active))
        return x, self.norm2(x)
