"""The networks of NAS-Bench-Macro (Su et al. 2021, arXiv 2103.11922): eight layers, each one of
three blocks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.errors import BadSetting, UnknownName
from stillhouse_vision.models.classifier import Classifier, ImageSpec, Maps, conv1, conv3

BLOCKS = ("identity", "mb3_k3", "mb6_k5")  # in the order of the benchmark's digits 0, 1, 2
LAYERS = (2, 3, 3)  # a stage


def macro_network(
    *,
    blocks: Sequence[str],
    width: int,
    tail: int,
    classes: int,
    images: Mapping[str, Any],  # Any: ImageSpec.json()
) -> nn.Module:
    """Stages of 2, 3 and 3 layers with 2 `width`, 4 `width` and 8 `width` channels, the first layer
    of each with stride 2, then `tail` channels; the benchmark's 32 and 1280.
    """
    check_blocks(blocks)
    if width < 1 or tail < 1:
        raise BadSetting(f"width and tail must be >= 1 (got {width} and {tail})")
    spec = ImageSpec.of(images)
    body = MacroBody(blocks, width, tail, spec.channels)
    return Classifier(body, width=tail, classes=classes, images=spec)


def check_blocks(blocks: Sequence[str]) -> None:
    """Raises BadSetting for another number than eight, UnknownName for an unknown block."""
    if len(blocks) != sum(LAYERS):
        raise BadSetting(f"a network of this space has {sum(LAYERS)} blocks (got {len(blocks)})")
    for name in blocks:
        if name not in BLOCKS:
            raise UnknownName("block", name, BLOCKS, where="macro space")


class MacroBody(nn.Module):
    """Stem, three stages, and a 1 x 1 convolution with BatchNorm and ReLU before the pooling.

    The first two stages end without a ReLU: their maps before one are what the next stage gets. The
    last map is the one that is pooled, of `tail` channels.
    """

    def __init__(self, blocks: Sequence[str], width: int, tail: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv3(channels, width), nn.BatchNorm2d(width), nn.ReLU())
        names = iter(blocks)
        self.stages = nn.ModuleList(
            _stage([next(names) for _ in range(count)], width * 2**number)
            for number, count in enumerate(LAYERS)
        )
        self.tail = nn.Sequential(conv1(8 * width, tail), nn.BatchNorm2d(tail))

    def forward(self, x: Tensor) -> Maps:
        x = self.stem(x)
        preacts: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            preacts.append(x)
        preacts[-1] = self.tail(x)
        hints = [F.relu(preact) for preact in preacts]
        return Maps(preacts, hints, hints[-1])


def _stage(names: Sequence[str], before: int) -> nn.Sequential:
    first, *rest = names
    layers = [_block(first, before, 2 * before, 2)]
    return nn.Sequential(*layers, *(_block(name, 2 * before, 2 * before, 1) for name in rest))


def _block(name: str, before: int, width: int, stride: int) -> nn.Module:
    match name:
        case "mb3_k3":
            return InvertedResidual(before, width, stride, expansion=3, kernel=3)
        case "mb6_k5":
            return InvertedResidual(before, width, stride, expansion=6, kernel=5)
        case _ if stride == 1:
            return nn.Identity()
        case _:  # an identity cannot change the size
            return nn.Sequential(conv1(before, width, stride), nn.BatchNorm2d(width))


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al. 2018, arXiv 1801.04381): 1 x 1 to `expansion` times the
    channels, a depthwise convolution, 1 x 1 back without a ReLU; added to its input where shapes
    allow.
    """

    def __init__(
        self, before: int, width: int, stride: int, *, expansion: int, kernel: int
    ) -> None:
        super().__init__()
        wide = expansion * before
        depthwise = nn.Conv2d(
            wide, wide, kernel, stride=stride, padding=kernel // 2, groups=wide, bias=False
        )
        self.path = nn.Sequential(
            *(conv1(before, wide), nn.BatchNorm2d(wide), nn.ReLU()),
            *(depthwise, nn.BatchNorm2d(wide), nn.ReLU()),
            *(conv1(wide, width), nn.BatchNorm2d(width)),
        )
        self.adds = stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:
        y = self.path(x)
        return x + y if self.adds else y
