"""The networks of NAS-Bench-201 (Dong & Yang 2020, arXiv 2001.00326): one cell, repeated.

A cell is a graph of 4 nodes; each later node adds up one operation on each earlier node. Six edges,
in the order of the benchmark's text: 0 to 1, 0 to 2, 1 to 2, 0 to 3, 1 to 3, 2 to 3.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.errors import BadSetting, UnknownName
from stillhouse_vision.models.classifier import Classifier, ImageSpec, Maps, conv1, conv3

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # from, to


def cell_network(
    *,
    ops: Sequence[str],
    width: int,
    cells: int,
    classes: int,
    images: Mapping[str, Any],  # Any: ImageSpec.json()
) -> nn.Module:
    """Three stages of `cells` cells, of `width`, 2 `width` and 4 `width` channels, a residual block
    of stride 2 before the second and the third; the benchmark's 16 and 5.
    """
    check_ops(ops)
    if width < 1 or cells < 1:
        raise BadSetting(f"width and cells must be >= 1 (got {width} and {cells})")
    spec = ImageSpec.of(images)
    body = CellBody(ops, width, cells, spec.channels)
    return Classifier(body, width=4 * width, classes=classes, images=spec)


def check_ops(ops: Sequence[str]) -> None:
    """Raises BadSetting for another number than six, UnknownName for an unknown operation."""
    if len(ops) != len(EDGES):
        raise BadSetting(f"a cell has {len(EDGES)} operations (got {len(ops)})")
    for name in ops:
        if name not in OPERATIONS:
            raise UnknownName("operation", name, OPERATIONS, where="cell")


class CellBody(nn.Module):
    """Stem, three stages, and BatchNorm with ReLU before the pooling.

    The first two stages' maps are before a ReLU, as the cells' operations begin with one.
    """

    def __init__(self, ops: Sequence[str], width: int, cells: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv3(channels, width), nn.BatchNorm2d(width))
        self.stages = nn.ModuleList(
            _stage(ops, width * 2**number, cells, reduce=number > 0) for number in range(3)
        )
        self.norm = nn.BatchNorm2d(4 * width)

    def forward(self, x: Tensor) -> Maps:
        x = self.stem(x)
        preacts: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            preacts.append(x)
        preacts[-1] = self.norm(x)
        hints = [F.relu(preact) for preact in preacts]
        return Maps(preacts, hints, hints[-1])


def _stage(ops: Sequence[str], width: int, cells: int, *, reduce: bool) -> nn.Sequential:
    first = [Reduction(width // 2, width)] if reduce else []
    return nn.Sequential(*first, *(Cell(ops, width) for _ in range(cells)))


class Cell(nn.Module):
    """One cell; returns its last node, zeros where nothing leads to it."""

    def __init__(self, ops: Sequence[str], width: int) -> None:
        super().__init__()
        self.ops = nn.ModuleList(_operation(name, width) for name in ops)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for node in range(1, 4):
            # an edge of nothing is left out: zeros cost as much memory traffic as a pooling
            terms = [
                op(nodes[start])
                for (start, end), op in zip(EDGES, self.ops, strict=True)
                if end == node and not isinstance(op, Zero)
            ]
            nodes.append(reduce(torch.add, terms) if terms else torch.zeros_like(x))
        return nodes[-1]


class Zero(nn.Module):
    """The operation "none"; a cell does not run it."""


class NormalisedConv(nn.Module):
    """ReLU, convolution, BatchNorm."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(F.relu(x)))


class Reduction(nn.Module):
    """Half the size, twice the width: two 3 x 3 convolutions beside an average and a 1 x 1."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv1 = NormalisedConv(conv3(before, width, 2))
        self.conv2 = NormalisedConv(conv3(width, width))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), conv1(before, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv2(self.conv1(x))


def _operation(name: str, width: int) -> nn.Module:
    match name:
        case "skip_connect":
            return nn.Identity()
        case "nor_conv_1x1":
            return NormalisedConv(conv1(width, width))
        case "nor_conv_3x3":
            return NormalisedConv(conv3(width, width))
        case "avg_pool_3x3":
            return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        case _:
            return Zero()
