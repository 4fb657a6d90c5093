"""Cross-validation: hundreds of small trainings in one stage, by three ways to split."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.artifact import Model
from stillhouse.checkpoint import State
from stillhouse.data.data import Data
from stillhouse.errors import BadData, BadSetting
from stillhouse.many import trainings
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.objective import Models
from stillhouse.report.statistics import paired, summarize
from stillhouse.work import Work
from stillhouse_contracts.lessons import Counts, Lesson, logits_in_parts
from stillhouse_contracts.metrics import declared_scores, macro, type_scores
from stillhouse_contracts.splits import Numbers, Split, check_members, fold_numbers

TEACHER, EVERYTHING = "teacher", "all-positive"
SHOWN = ("macro_f1", "macro_precision", "macro_recall", "macro_auc", "macro_average_precision")
# a fold is held out, the next are public contracts, what is left trains
LEAST = 3
Record = Mapping[str, float]  # a training's scores by name


@dataclass(frozen=True, kw_only=True)
class CrossValidation(Metric):
    """Learners trained in `folds` folds, drawn anew by `seeds` seeds: means over folds and seeds, a
    row "<learner>, by <split>", and each learner's paired gain in F1 over the `baseline`, with 95 %
    intervals over folds and seeds. Trainings of two folds share contracts: these intervals are too
    narrow for a statement about new contracts.

    Fold k is held out and scored, fold k + 1 (after the last, the first) is the public contracts,
    whose labels nobody sees, and the rest trains. Where a learner needs a teacher it is that of its
    own fold, which is trained there once.

    `split` "text": functions with the same tokens are in one fold. "contract": functions of one
    file. "random" keeps nothing together: copies of a text stand on both sides, and the score says
    how well they are remembered (leakage, not detection).

    Reads the data's tokens, labels, group and contract. Each training is kept when it is done.
    "all-positive" says yes to everything; every other learner has a lesson of its name. Raises
    BadData for a type with fewer distinct functions than folds.
    """

    split: Split
    types: tuple[str, ...]
    learners: tuple[str, ...]
    lessons: Mapping[str, Lesson | Counts]
    teacher: Model
    baseline: str
    folds: int = 5
    seeds: int = 5

    def __post_init__(self) -> None:
        if self.folds < LEAST or self.seeds < 1:
            raise BadSetting(
                f"folds must be >= {LEAST} (one tests, one is public, others train), seeds >= 1 "
                f"(got {self.folds}, {self.seeds})"
            )

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        found: dict[str, dict[str, Record]] = {}
        for learner, fold, record in self.records(data, work=work):
            found.setdefault(learner, {})[fold] = record
        return self.summary(found)

    def records(self, data: Data, *, work: Work) -> Iterator[tuple[str, str, Record]]:
        """Each training when it is done: its learner, its fold ("<draw>-<number>", both from 0 on)
        and its scores. More draws or learners leave those that are kept as they are.
        """
        table = _Table.of(data)
        check_members(table.labels.numpy(), table.groups, self.types, folds=self.folds)
        teachers: dict[str, nn.Module] = {}  # by fold: of the one that is at work

        def train(name: str, work: Work) -> State:
            learner, fold = name.split("-in-")
            parts = self._parts(fold, table)
            if learner == EVERYTHING:
                logits = torch.ones_like(table.labels[parts["test"]])
                return {}, self._scored(logits, table, parts)
            own = self.lessons[learner].learn(
                {
                    "train": {
                        "tokens": table.tokens[parts["train"]],
                        "labels": table.labels[parts["train"]],
                    },
                    "public": {"tokens": table.tokens[parts["public"]]},
                },
                teachers.get(fold),
                work=work,
            )
            logits = logits_in_parts(own, table.tokens[parts["test"]])
            kept = dict(own.state_dict()) if learner == TEACHER else {}
            return kept, self._scored(logits, table, parts)

        names = [
            f"{learner}-in-{seed}-{fold}"
            for seed in range(self.seeds)
            for fold in range(self.folds)
            for learner in self._learners()
        ]
        # what a training does not depend on
        of = replace(self, learners=(), baseline="", seeds=1)
        for name, (tensors, record) in trainings(names, train, of=of, work=work):
            learner, fold = name.split("-in-")
            if learner == TEACHER:
                teachers = {fold: self._opened(tensors)}
            yield learner, fold, record

    def _learners(self) -> Sequence[str]:
        """In order; the teacher first, where one is needed or listed."""
        taught = [
            name for name in self.learners if name != EVERYTHING and self.lessons[name].teacher
        ]
        first = [TEACHER] if taught or TEACHER in self.learners else []
        return list(dict.fromkeys([*first, *self.learners]))

    def _parts(self, fold: str, table: "_Table") -> dict[str, Tensor]:
        """Rows of "test", "public" and "train" of a fold, by "<seed>-<number>"."""
        seed, number = map(int, fold.split("-"))
        groups = {"text": table.groups, "contract": table.contracts, "random": None}[self.split]
        numbers = torch.from_numpy(
            fold_numbers(table.labels.numpy(), groups, folds=self.folds, seed=seed)
        )
        test, public = numbers == number, numbers == (number + 1) % self.folds
        return {"test": test, "public": public, "train": ~(test | public)}

    def _opened(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        network = self.teacher.new()
        network.load_state_dict(dict(tensors))
        return network.eval().requires_grad_(False)

    def _scored(
        self, logits: Tensor, table: "_Table", parts: Mapping[str, Tensor]
    ) -> dict[str, float]:
        return macro(type_scores(logits, table.labels[parts["test"]], self.types))

    def summary(self, found: Mapping[str, Mapping[str, Record]]) -> Mapping[tuple[str, str], float]:
        """The scores of each row, of the records by learner and fold; gains are over the folds that
        a learner and the baseline have both.
        """
        scores: dict[tuple[str, str], float] = {}
        for learner, records in found.items():
            row = self._row(learner)
            for score in SHOWN:
                scores[row, score] = float(np.mean([each[score] for each in records.values()]))
            scores[row, "trainings"] = float(len(records))
            spread = summarize([each["macro_f1"] for each in records.values()])
            scores |= _ends(row, F1_ENDS, spread.low, spread.high)
            base = found.get(self.baseline, {})
            both = [fold for fold in records if fold in base]
            if both and learner != self.baseline:
                own, other = ([each[fold]["macro_f1"] for fold in both] for each in (records, base))
                gap = paired(own, other)
                scores[row, "f1_gain"] = gap.mean
                scores |= _ends(row, GAIN_ENDS, gap.low, gap.high)
        return scores

    def scores(self) -> Sequence[Score]:
        names = [name.removeprefix("macro_") for name in SHOWN[1:]]
        f1 = Score(name="macro_f1", better="higher", unit="%", label="Macro F1", ends=F1_ENDS)
        gain = Score(
            name="f1_gain",
            better="neither",
            unit="%",
            label=f"F1 over {self.baseline}",
            ends=GAIN_ENDS,
        )
        ends = [Score(name=n, better="neither", unit="%") for n in (*F1_ENDS, *GAIN_ENDS)]
        count = Score(name="trainings", better="neither", unit="count")
        return (f1, gain, *declared_scores(names, "macro_"), *ends, count)

    def rows(self) -> Sequence[str]:
        return [self._row(learner) for learner in self._learners()]

    def _row(self, learner: str) -> str:
        return f"{learner}, by {self.split}"


F1_ENDS, GAIN_ENDS = ("f1_low", "f1_high"), ("gain_low", "gain_high")


def _ends(
    row: str, names: tuple[str, str], low: float | None, high: float | None
) -> dict[tuple[str, str], float]:
    if low is None or high is None:
        return {}
    return {(row, names[0]): low, (row, names[1]): high}


@dataclass(frozen=True, kw_only=True)
class _Table:
    """All rows of the data as columns."""

    tokens: Tensor
    labels: Tensor
    groups: Numbers
    contracts: Numbers

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
