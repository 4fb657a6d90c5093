"""VGG for 32 x 32 images (Simonyan & Zisserman 2015, arXiv 1409.1556) with BatchNorm, as the KD
field uses it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse_vision.models.classifier import Classifier, ImageSpec, Maps, Stage


def vgg(
    *,
    stages: Sequence[Sequence[int]],
    classes: int,
    images: Mapping[str, Any],  # Any: ImageSpec.json()
) -> nn.Module:
    """Stages of 3 x 3 convolutions of these widths, one linear layer. The last two stages share
    their size.
    """
    spec = ImageSpec.of(images)
    return Classifier(
        VGGBody(stages, spec.channels), width=stages[-1][-1], classes=classes, images=spec
    )


class VGGBody(nn.Module):
    """Max-pooling halves the size between stages, but not before the last one."""

    def __init__(self, stages: Sequence[Sequence[int]], channels: int) -> None:
        super().__init__()
        before = [channels, *(widths[-1] for widths in stages)]
        self.stages = nn.ModuleList(
            Stage(_block(a, b) for a, b in zip([first, *widths[:-1]], widths, strict=True))
            for first, widths in zip(before[:-1], stages, strict=True)
        )

    def forward(self, x: Tensor) -> Maps:
        preacts: list[Tensor] = []
        hints: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            if 0 < number < len(self.stages) - 1:
                x = F.max_pool2d(x, 2)
            preact: Tensor = stage(x)
            x = F.relu(preact)
            preacts.append(preact)
            hints.append(x)
        return Maps(preacts, hints, x)


def _block(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width))
