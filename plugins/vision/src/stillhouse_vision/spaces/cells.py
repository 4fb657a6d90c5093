"""The search space of NAS-Bench-201 (arXiv 2001.00326): 15,625 cells."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting
from stillhouse.search import Encoding
from stillhouse_vision.models import ImageSpec
from stillhouse_vision.models.cells import EDGES, OPERATIONS, cell_network, check_ops
from stillhouse_vision.spaces.cost import changed, cost_of, digits

OPERATION = re.compile(r"([^|~+]+)~(\d)")


@dataclass(frozen=True, kw_only=True)
class NasBench201:
    """{"ops": [...]}: a cell's six operations, in the order of the benchmark's text.

    The numbers of `at` are not the benchmark's own indices: its tables are to be read by
    `cell_text`.
    """

    width: int = 16
    cells: int = 5
    classes: int
    images: ImageSpec = field(default_factory=ImageSpec)

    def __len__(self) -> int:
        return len(OPERATIONS) ** len(EDGES)

    def at(self, index: int) -> Encoding:
        """By number: the last edge's operation changes fastest, in the order of OPERATIONS."""
        return _encoding(digits(index, len(OPERATIONS), len(EDGES)))

    def sample(self, rng: Generator) -> Encoding:
        return self.at(int(torch.randint(len(self), (), generator=rng)))

    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding:
        """Another operation on one edge."""
        place = int(torch.randint(len(EDGES), (), generator=rng))
        turn = int(torch.randint(len(OPERATIONS) - 1, (), generator=rng))
        values = [OPERATIONS.index(name) for name in encoding["ops"]]
        return _encoding(changed(place, turn, values, len(OPERATIONS)))

    def cost(self, encoding: Encoding) -> Mapping[str, float]:
        return cost_of(self.model(encoding), self.images)

    def model(self, encoding: Encoding) -> Model:
        kwargs = {
            "ops": list(encoding["ops"]),
            "width": self.width,
            "cells": self.cells,
            "classes": self.classes,
            "images": self.images.json(),
        }
        return Model(build=cell_network, kwargs=kwargs)


def cell_text(ops: Sequence[str]) -> str:
    """The benchmark's text of a cell: |op~0|+|op~0|op~1|+|op~0|op~1|op~2|."""
    check_ops(ops)
    nodes = [
        "".join(f"|{op}~{start}" for op, (start, end) in zip(ops, EDGES, strict=True) if end == to)
        for to in (1, 2, 3)
    ]
    return "+".join(f"{node}|" for node in nodes)


def parse_cell(text: str) -> tuple[str, ...]:
    """The six operations of the benchmark's text; raises BadSetting or UnknownName."""
    ops = tuple(name for name, _ in OPERATION.findall(text))
    check_ops(ops)
    if cell_text(ops) != text:
        raise BadSetting(f"'{text}' is no cell; one looks like {cell_text(ops)}")
    return ops


def _encoding(values: list[int]) -> Encoding:
    return {"ops": [OPERATIONS[value] for value in values]}
