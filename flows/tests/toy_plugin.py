"""A plugin for the tests: a recipe of four stages that take no time, and one with a student. Its copy becomes a package
of a toy project.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import Columns, Data
from stillhouse.domain import Domain
from stillhouse.errors import BadData
from stillhouse.metrics.known import ACCURACY, NLL
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.objective import Models
from stillhouse.recipe import Recipe, Row, Stage
from stillhouse.settings import Settings
from stillhouse.stages.convert import Convert
from stillhouse.stages.evaluate import Evaluate
from stillhouse.stages.make import Make
from stillhouse.work import Work


class Count(Settings):
    factor: int = 2
    fail: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Times:
    factor: int
    fail: bool = False
    seconds: float = 0.0

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        time.sleep(self.seconds)
        if self.fail:
            raise BadData("these numbers cannot be used")
        return {"numbers": {"x": inputs["numbers"].columns["x"] * self.factor}}


def read(inputs: Mapping[str, Path], *, work: Work) -> Mapping[str, Columns]:
    return {"numbers": {"x": torch.from_numpy(np.loadtxt(inputs["file"]))}}


@dataclass(frozen=True, kw_only=True)
class Mean(Metric):
    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        (batch,) = data.batches(len(data), rng=None)
        return {"mean": float(batch["x"].mean())}

    def scores(self) -> Sequence[Score]:
        return (Score(name="mean", better="higher"),)


def count(settings: Count) -> Recipe:
    double = Times(factor=settings.factor, fail=settings.fail, seconds=settings.seconds)
    source = settings.data or "data:a/numbers.txt"
    stages = [
        Make(name="numbers", make=read, inputs={"file": source}, ports=("numbers",)),
        Make(name="double", make=double, inputs={"numbers": "numbers.numbers"}, ports=("numbers",)),
        Evaluate(name="double-scores", metrics=(Mean(),), inputs={"data": "double.numbers"}),
        Evaluate(name="same-scores", metrics=(Mean(),), inputs={"data": "numbers.numbers"}),
    ]
    rows = {
        "double": Row(stages=("double-scores",)),
        "same": Row(stages=("same-scores",), kind="baseline"),
    }
    return Recipe(name="count", reference="none", stages=stages, rows=rows)


class Learn(Settings):
    gain: float = 4.0


def scalar() -> nn.Module:
    return nn.Linear(1, 1, bias=False)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The student's one weight is its accuracy: a tenth of the numbers' mean, times the gain."""

    gain: float
    seed: int

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        spec = Model(build=scalar)
        module = spec.new()
        mean = inputs["data"].columns["x"].mean()
        nn.init.constant_(module.weight, float(mean) * self.gain / 10 + 0.01 * self.seed)
        save_model(out, Built(spec=spec, module=module))


def ship(inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
    save_model(out, inputs["student"])
    (out / "README.md").write_text("# A toy student\n")


@dataclass(frozen=True, kw_only=True)
class Weight(Metric):
    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        weight = float(models["student"].weight)
        return {"accuracy": weight, "nll_loss": 1 - weight}

    def scores(self) -> Sequence[Score]:
        return (ACCURACY, NLL)


def learn(settings: Learn) -> Recipe:
    source = settings.data or "data:a/numbers.txt"
    stages: list[Stage] = [
        Make(name="numbers", make=read, inputs={"file": source}, ports=("numbers",)),
        Evaluate(name="plain-scores", metrics=(Mean(),), inputs={"data": "numbers.numbers"}),
    ]
    for seed in range(settings.seeds):
        fit = Fit(gain=settings.gain, seed=seed)
        inputs = {"data": "numbers.numbers"}
        stages.append(Convert(name=f"student-{seed}", convert=fit, inputs=inputs))
        inputs = {"data": "numbers.numbers", "student": f"student-{seed}.model"}
        stages.append(Evaluate(name=f"student-{seed}-scores", metrics=(Weight(),), inputs=inputs))
    stages.append(Convert(name="export", convert=ship, inputs={"student": "student-0.model"}))
    rows = {
        "plain": Row(stages=("plain-scores",), kind="baseline"),
        "student": Row(stages=tuple(f"student-{seed}-scores" for seed in range(settings.seeds))),
    }
    return Recipe(name="learn", reference="none", stages=stages, rows=rows)


domain = Domain(
    name="toy",
    summary="numbers",
    recipes={
        "count": "toy_plugin:count",
        "learn": "toy_plugin:learn",
        "slope": "toy_plugin.training:slope",
    },
)
