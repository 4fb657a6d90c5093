"""A plugin for the tests: a recipe of four stages that take no time. Its copy becomes a package of a toy project."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator

from stillhouse.data.data import Columns, Data
from stillhouse.domain import Domain
from stillhouse.errors import BadData
from stillhouse.objectives.objective import Models
from stillhouse.recipe import Recipe
from stillhouse.settings import Settings
from stillhouse.stages.evaluate import Evaluate
from stillhouse.stages.make import Make


class Count(Settings):
    factor: int = 2
    fail: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Times:
    factor: int
    fail: bool = False
    seconds: float = 0.0

    def __call__(self, inputs: Mapping[str, Any], *, rng: Generator) -> Mapping[str, Columns]:
        time.sleep(self.seconds)
        if self.fail:
            raise BadData("these numbers cannot be used")
        return {"numbers": {"x": inputs["numbers"].columns["x"] * self.factor}}


def read(inputs: Mapping[str, Path], *, rng: Generator) -> Mapping[str, Columns]:
    return {"numbers": {"x": torch.from_numpy(np.loadtxt(inputs["file"]))}}


@dataclass(frozen=True, kw_only=True)
class Mean:
    def __call__(self, models: Models, data: Data) -> Mapping[str, float]:
        (batch,) = data.batches(len(data), rng=None)
        return {"mean": float(batch["x"].mean())}


def count(settings: Count) -> Recipe:
    double = Times(factor=settings.factor, fail=settings.fail, seconds=settings.seconds)
    source = settings.data or "data:a/numbers.txt"
    stages = [
        Make(name="numbers", make=read, inputs={"file": source}, ports=("numbers",)),
        Make(name="double", make=double, inputs={"numbers": "numbers.numbers"}, ports=("numbers",)),
        Evaluate(name="double-scores", metrics=(Mean(),), inputs={"data": "double.numbers"}),
        Evaluate(name="same-scores", metrics=(Mean(),), inputs={"data": "numbers.numbers"}),
    ]
    rows = {"double": ("double-scores",), "same": ("same-scores",)}
    return Recipe(name="count", reference="none", stages=stages, rows=rows, baseline="same")


domain = Domain(
    name="toy",
    summary="numbers",
    recipes={"count": "toy_plugin:count", "slope": "toy_plugin.training:slope"},
)
