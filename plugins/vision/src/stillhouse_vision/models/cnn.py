"""A very small convolutional network, for images of a few pixels and runs of a few seconds."""

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
) -> nn.Module:
    """Three 3 x 3 convolutions of width, 2 width and 4 width channels at full, half and quarter
    size.
    """
    spec = ImageSpec.of(images)
    return Classifier(
        SmallBody(width, spec.channels), width=4 * width, classes=classes, images=spec
    )


def flat_cnn(
    *,
    width: int,
    depth: int,
    classes: int,
    images: Mapping[str, Any],  # Any: ImageSpec.json()
) -> nn.Module:
    """The first `depth` convolutions of `small_cnn`; the head sees every place of the last map, not
    its mean, and so learns from a few images that are centred, as MNIST's are.
    """
    spec = ImageSpec.of(images)
    side = -(-spec.size // 2 ** (depth - 1))
    features = side**2 * width * 2 ** (depth - 1)
    body = FlatBody(width, spec.channels, depth)
    return Classifier(body, width=features, classes=classes, images=spec)


class SmallBody(nn.Module):
    """One convolution with BatchNorm and ReLU a stage."""

    def __init__(self, width: int, channels: int, depth: int = 3) -> None:
        super().__init__()
        widths = [channels, *(width * 2**stage for stage in range(depth))]
        self.stages = nn.ModuleList(
            nn.Sequential(conv3(before, after, 1 if number == 0 else 2), nn.BatchNorm2d(after))
            for number, (before, after) in enumerate(itertools.pairwise(widths))
        )

    def forward(self, x: Tensor) -> Maps:
        return run_stages(self.stages, x)


class FlatBody(nn.Module):
    """A `SmallBody` whose pooled map is its last map, flattened: [B, D, 1, 1]."""

    def __init__(self, width: int, channels: int, depth: int) -> None:
        super().__init__()
        self.convolutions = SmallBody(width, channels, depth)

    def forward(self, x: Tensor) -> Maps:
        maps: Maps = self.convolutions(x)
        return maps._replace(last=maps.last.flatten(1)[:, :, None, None])
