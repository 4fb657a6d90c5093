"""Cross-validation: hundreds of small trainings in one stage, by three ways to split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stillhouse.artifact import Model
from stillhouse.checkpoint import State
from stillhouse.data.data import Data, TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.many import trainings
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_contracts.counts import fitted
from stillhouse_contracts.metrics import declared_scores, macro, type_scores
from stillhouse_contracts.splits import Split, check_members, fold_numbers
from stillhouse_contracts.training import distilled, drawn, supervised, train_small

SPLITS: tuple[Split, ...] = ("text", "contract", "random")
Learner = Literal["teacher", "student", "kd", "textcnn", "bilstm", "logistic"]
SHOWN = ("macro_f1", "macro_precision", "macro_recall", "macro_auc", "macro_average_precision")


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How a learner is trained: its network, rate and steps."""

    model: Model
    lr: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class CrossValidation(Metric):
    """Each learner trained on all folds but one and scored on that, for `folds` folds drawn anew by
    `seeds` seeds: means over folds and seeds a row "<learner>, by <split>", with the deviation of
    the macro F1 over them.

    By "text": functions with the same tokens are in one fold. By "contract": functions of one file.
    "random" keeps nothing together: copies of a text stand on both sides, and the score says how
    well they are remembered (leakage, not detection). Learners "logistic" and "kd", whose teacher
    is trained in the same fold by the lesson "teacher", need no lesson of another name.

    Reads the data's tokens, labels, group and contract. Each training is kept when it is done.
    Raises BadData for a type with fewer distinct functions than folds.
    """

    types: tuple[str, ...]
    learners: tuple[Learner, ...]
    lessons: Mapping[str, Lesson]
    folds: int = 5
    seeds: int = 5
    splits: tuple[Split, ...] = SPLITS
    batch: int = 64
    alpha: float = 0.7
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if self.folds < 2 or self.seeds < 1:
            raise BadSetting(f"folds must be >= 2, seeds >= 1 (got {self.folds}, {self.seeds})")

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        table = _Table.of(data)
        check_members(table.labels.numpy(), table.groups, self.types, folds=self.folds)
        names = [
            f"{learner}-{split}-{seed}-{fold}"
            for learner in self.learners
            for split in self.splits
            for seed in range(self.seeds)
            for fold in range(self.folds)
        ]

        def train(name: str, work: Work) -> State:
            return {}, self._scored(name, table, work)

        found: dict[str, list[Mapping[str, float]]] = {}
        for name, (_, record) in trainings(names, train, of=self, work=work):
            learner, split, _, _ = name.split("-")
            found.setdefault(f"{learner}, by {split}", []).append(record)
        scores: dict[tuple[str, str], float] = {}
        for row, records in found.items():
            for score in SHOWN:
                scores[row, score] = float(np.mean([record[score] for record in records]))
            scores[row, "f1_deviation"] = float(np.std([r["macro_f1"] for r in records]))
            scores[row, "trainings"] = float(len(records))
        return scores

    def _scored(self, name: str, table: "_Table", work: Work) -> dict[str, float]:
        learner, split, seed, fold = name.split("-")
        groups = {"text": table.groups, "contract": table.contracts, "random": None}[split]
        numbers = fold_numbers(table.labels.numpy(), groups, folds=self.folds, seed=int(seed))
        held_out = torch.from_numpy(numbers == int(fold))
        train = {"tokens": table.tokens[~held_out], "labels": table.labels[~held_out]}
        network = self._learned(learner, TensorData(train), work)
        with torch.no_grad():
            parts = table.tokens[held_out].split(256)
            logits = torch.cat([network({"tokens": part})["logits"] for part in parts])
        return macro(type_scores(logits, table.labels[held_out], self.types))

    def _learned(self, learner: str, data: TensorData, work: Work) -> torch.nn.Module:
        tokens, labels = data.columns["tokens"], data.columns["labels"]
        assert isinstance(tokens, Tensor)
        assert isinstance(labels, Tensor)
        if learner == "logistic":
            return fitted(tokens, labels)
        if learner != "kd":
            return self._trained("student", self.lessons[learner], data, work)
        teacher = self._trained("student", self.lessons["teacher"], data, work)
        lesson = self.lessons["student"]
        models = {"student": drawn(lesson.model, work.seed), "teacher": teacher}
        objective = distilled(lesson.lr, alpha=self.alpha, temperature=self.temperature)
        train_small(objective, models, data, steps=lesson.steps, batch=self.batch, work=work)
        return models["student"].eval()

    def _trained(self, role: str, lesson: Lesson, data: TensorData, work: Work) -> torch.nn.Module:
        models = {role: drawn(lesson.model, work.seed)}
        objective = supervised(role, lesson.lr)
        train_small(objective, models, data, steps=lesson.steps, batch=self.batch, work=work)
        return models[role].eval()

    def scores(self) -> Sequence[Score]:
        names = [name.removeprefix("macro_") for name in SHOWN]
        spread = Score(name="f1_deviation", better="neither", unit="%", label="Deviation of F1")
        count = Score(name="trainings", better="neither", unit="count")
        return (*declared_scores(names, "macro_"), spread, count)

    def rows(self) -> Sequence[str]:
        return [f"{learner}, by {split}" for learner in self.learners for split in self.splits]


@dataclass(frozen=True, kw_only=True)
class _Table:
    """All rows of the data as columns."""

    tokens: Tensor
    labels: Tensor
    groups: "np.ndarray[tuple[int], np.dtype[np.int64]]"
    contracts: "np.ndarray[tuple[int], np.dtype[np.int64]]"

    @classmethod
    def of(cls, data: Data) -> "_Table":
        batches = list(data.batches(1024, rng=None))
        if not batches:
            raise BadData("the data of the folds hold no function")

        def column(name: str) -> Tensor:
            return torch.cat([batch[name] for batch in batches])

        return cls(
            tokens=column("tokens"),
            labels=column("labels"),
            groups=column("group").numpy(),
            contracts=column("contract").numpy(),
        )
