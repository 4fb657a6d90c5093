"""A very small convolutional network, for pictures of a few pixels and runs of a few seconds."""

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stillhouse_vision.models.classifier import Classifier, ImageSpec, Maps, conv3, run_stages


def small_cnn(
    *,
    width: int,
    classes: int,
    images: Mapping[str, Any],  # Any: ImageSpec.json()
    depth: int = 3,
) -> nn.Module:
    """`depth` 3 x 3 convolutions of width, 2 width, 4 width ... channels at full, half, quarter ...
    size.
    """
    spec = ImageSpec.of(images)
    body = SmallBody(width, spec.channels, depth)
    return Classifier(body, width=width << (depth - 1), classes=classes, images=spec)


class SmallBody(nn.Module):
    """One convolution with BatchNorm and ReLU a stage."""

    def __init__(self, width: int, channels: int, depth: int) -> None:
        super().__init__()
        widths = [channels, *(width << stage for stage in range(depth))]
        self.stages = nn.ModuleList(
            nn.Sequential(conv3(before, after, 1 if number == 0 else 2), nn.BatchNorm2d(after))
            for number, (before, after) in enumerate(itertools.pairwise(widths))
        )

    def forward(self, x: Tensor) -> Maps:
        return run_stages(self.stages, x)
