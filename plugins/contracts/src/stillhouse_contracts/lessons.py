"""How a learner of a comparison is trained: by the same settings in a stage of its own, in the
folds, and where its settings are chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from stillhouse.artifact import Model
from stillhouse.data.data import Columns, TensorData
from stillhouse.engine import fit
from stillhouse.objectives.objective import Objective, Tensors
from stillhouse.training import Setup
from stillhouse.work import Work
from stillhouse_contracts.counts import fitted

# what a learner is given beside its teacher: labelled contracts, others without labels, none
Reads = Literal["train", "public", "nothing"]
# "answers": the teacher's logits of its rows, computed once; "network": of what it makes of them
Teacher = Literal["", "answers", "network"]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A training: the objective, the fresh roles of which the first is the learner, what it reads
    and what it has of the role "teacher".
    """

    objective: Objective
    fresh: Mapping[str, Model]
    steps: int
    batch: int
    reads: Reads = "train"
    teacher: Teacher = ""

    def learn(
        self, rows: Mapping[str, Columns], teacher: nn.Module | None, *, work: Work
    ) -> nn.Module:
        """The learner, trained inside a stage as the stage `Train` does it; also where gradients
        are off. `rows` by what may be read: "train" and "public".
        """
        with torch.random.fork_rng():
            torch.manual_seed(work.seed)
            models = {role: spec.new() for role, spec in self.fresh.items()}
        data = TensorData({"id": torch.arange(self.batch)})
        if self.reads != "nothing":
            data = TensorData(_read(rows[self.reads]))
        if self.teacher:
            assert teacher is not None
            models["teacher"] = teacher if self.teacher == "network" else _answers(teacher, data)
        train_inside(self.objective, models, data, steps=self.steps, batch=self.batch, work=work)
        return models[next(iter(self.fresh))].eval()


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The logistic regression on token counts; it knows no teacher. Numbers: see `FitCounts`."""

    strength: float = 1.0
    positive: float = 1.0
    reads: Reads = field(default="train", init=False)
    teacher: Teacher = field(default="", init=False)

    def learn(
        self, rows: Mapping[str, Columns], teacher: nn.Module | None, *, work: Work
    ) -> nn.Module:
        """The fitted regression."""
        tokens, labels = rows["train"]["tokens"], rows["train"]["labels"]
        assert isinstance(tokens, Tensor)
        assert isinstance(labels, Tensor)
        return fitted(tokens, labels, strength=self.strength, positive=self.positive)


def train_inside(
    objective: Objective,
    models: dict[str, nn.Module],
    data: TensorData,
    *,
    steps: int,
    batch: int,
    work: Work,
) -> None:
    """Train `models` in place inside a stage, as `fit` does; also where gradients are off."""
    setup = Setup(steps=steps, batch=min(batch, len(data)), seed=work.seed, views=1)
    with torch.enable_grad():
        fit(objective, models, data, setup=setup, ctx=work.ctx)


def logits_in_parts(network: nn.Module, tokens: Tensor) -> Tensor:
    """A network's logits [N, C] of rows of tokens [N, L]."""
    with torch.no_grad():
        return torch.cat([network({"tokens": part})["logits"] for part in tokens.split(256)])


class Answers(nn.Module):
    """batch["id"] -> "logits": a teacher's answers to rows that it ran on once."""

    logits: Tensor

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        return {"logits": self.logits[batch["id"]]}


def _answers(teacher: nn.Module, data: TensorData) -> Answers:
    tokens = data.columns["tokens"]
    assert isinstance(tokens, Tensor)
    return Answers(logits_in_parts(teacher, tokens))


def _read(columns: Columns) -> Columns:
    """Those that trainings read: public rows have no labels."""
    return {name: columns[name] for name in ("tokens", "labels") if name in columns}
