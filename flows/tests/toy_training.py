"""A recipe that trains, for the tests: a module of the toy plugin. What makes it slow, hungry or large is a setting."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.artifact import Model
from stillhouse.data.data import Columns, Data
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.objective import Composed, Models, Optimizer, Phase, Tensors, Weighted
from stillhouse.objectives.term import Term
from stillhouse.recipe import Recipe, Row
from stillhouse.settings import Settings
from stillhouse.stages.evaluate import Evaluate
from stillhouse.stages.make import Make
from stillhouse.stages.train import Train
from stillhouse.work import Work


class Slope(Settings):
    steps: int = 40
    step_seconds: float = 0.0
    fits: int = 1000  # rows of a batch that fit the memory
    megabytes: int = 0  # of ballast beside the data
    rate: float = 0.05


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(1, 1)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        return {"y": self.body(batch["x"])}


def squares_loss(y: Tensor, x: Tensor, *, seconds: float, fits: int) -> Tensor:
    """Mean squared error; takes `seconds` and has memory for `fits` rows."""
    if len(x) > fits:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    time.sleep(seconds)
    return nn.functional.mse_loss(y, 3 * x + 1)


@dataclass(frozen=True, kw_only=True)
class Read:
    megabytes: int

    def __call__(self, inputs: Mapping[str, Path], *, work: Work) -> Mapping[str, Columns]:
        numbers = torch.from_numpy(np.loadtxt(inputs["file"])).float()
        rows = torch.linspace(-1, 1, 64)[:, None] * numbers.mean()
        ballast = {"ballast": torch.rand(64, self.megabytes * 4096, generator=work.rng)}
        return {"rows": {"x": rows, **(ballast if self.megabytes else {})}}


@dataclass(frozen=True, kw_only=True)
class Error(Metric):
    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        (batch,) = data.batches(len(data), rng=None)
        with torch.no_grad():
            outputs = models["student"](batch)["y"]
        return {"square_error": float((outputs - 3 * batch["x"] - 1).square().mean())}

    def scores(self) -> Sequence[Score]:
        return (Score(name="square_error", better="lower"),)


def slope(settings: Slope) -> Recipe:
    squares = Term(
        squares_loss,
        "student.y",
        "batch.x",
        seconds=settings.step_seconds,
        fits=settings.fits,
    )
    objective = Composed(
        phases={"main": Phase(trains=("student",), optimizer=Optimizer(lr=settings.rate))},
        losses={"squares": Weighted(term=squares)},
    )
    source = settings.data or "data:a/numbers.txt"
    stages: list[Any] = [
        Make(
            name="rows",
            make=Read(megabytes=settings.megabytes),
            inputs={"file": source},
            ports=("rows",),
        ),
        Train(
            name="student",
            objective=objective,
            inputs={"data": "rows.rows"},
            fresh={"student": Model(build=Line, kwargs={})},
            steps=settings.steps,
            batch=16,
            micro_batch=4,
        ),
        Evaluate(
            name="scores",
            metrics=(Error(),),
            inputs={"data": "rows.rows", "student": "student.student"},
        ),
    ]
    return Recipe(
        name="slope",
        reference="none",
        stages=stages,
        rows={"student": Row(stages=("scores",), kind="baseline")},
    )
