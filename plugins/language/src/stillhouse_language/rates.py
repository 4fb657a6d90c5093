"""Learning rates of fine-tuning: chosen for each row on labelled rows kept apart, no test data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stillhouse.artifact import Artifact, Built
from stillhouse.checkpoint import State
from stillhouse.data.data import Columns, Data, RowData
from stillhouse.errors import BadData, BadSetting
from stillhouse.many import trainings
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.objective import Composed, Models
from stillhouse.recipe import BaseStage, Context, Resource, Result
from stillhouse.references import Ref
from stillhouse.stages import Train
from stillhouse.training import mix
from stillhouse.work import Work
from stillhouse_language.tuning import Lesson, record_of

RATE, ACCURACY = "rate", "accuracy"
# a table that shows four digits would show 6e-5 as 1e-4
RATE_UNIT = 1e4


@dataclass(frozen=True, kw_only=True)
class ChooseRate:
    """A `make`: the accuracy of a lesson at each of `rates`, port "rate": columns "rate" and
    "accuracy", a row a rate.

    Ports: "encoder"; "train", from which the lesson's labels are drawn; "validation", what is
    scored, which no student is trained on. All rates have the same labels, head and batches, and
    stages of one seed have the same labels.
    """

    lesson: Lesson
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0 or len(set(self.rates)) < len(self.rates):
            raise BadSetting(f"rates: name at least one, each > 0 and once (got {self.rates})")

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        encoder: Built = inputs["encoder"]
        train_rows, validation = inputs["train"], inputs["validation"]
        keys = [f"rate-{place}" for place in range(len(self.rates))]

        def train(key: str, own: Work) -> State:
            lesson = self.lesson.at(self.rates[keys.index(key)])
            again = Work.seeded(mix(work.seed, 0), ctx=own.ctx)
            return record_of(lesson.accuracy(encoder.module, train_rows, validation, again))

        found = [r["score"] for _, (_, r) in trainings(keys, train, of=self, work=work)]
        numbers = {RATE: list(self.rates), ACCURACY: found}
        return {RATE: {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}}


def best_rate(table: Data, *, where: str) -> float:
    """The rate of the highest accuracy in a table of `ChooseRate`, of equals the first; raises
    BadData for other data.
    """
    rates, accuracy = _columns(table, where)
    return float(rates[int(accuracy.argmax())])


def _columns(table: Data, where: str) -> tuple[Tensor, Tensor]:
    columns = table.columns if isinstance(table, RowData) else {}
    rates, accuracy = columns.get(RATE), columns.get(ACCURACY)
    if not isinstance(rates, Tensor) or not isinstance(accuracy, Tensor):
        raise BadData(f"{where}: the port '{RATE}' holds no table of rates and accuracies")
    return rates, accuracy


@dataclass(frozen=True, kw_only=True)
class TrainAtRate(BaseStage):
    """`train` at the learning rate that is best in the table of the port "rate". Which it was
    stands in <stage>.run.json under "chosen"; the outputs are those of the training.
    """

    name: str
    train: Train
    inputs: Mapping[str, str]
    seed: int = 0

    @classmethod
    def of(cls, train: Train, rate: Ref) -> "TrainAtRate":
        return cls(name=train.name, train=train, inputs={**train.inputs, RATE: rate},
                   seed=train.seed)  # fmt: skip

    @property
    def resource(self) -> Resource:
        return "gpu"

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.train.outputs

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Result:
        rate = best_rate(inputs[RATE].open(), where=f"stage '{self.name}'")
        given = {port: artifact for port, artifact in inputs.items() if port != RATE}
        result = self.at(rate).run(given, ctx)
        return replace(result, measured={**result.measured, "chosen": {"lr": rate}})

    def at(self, rate: float) -> Train:
        """The training at a rate."""
        objective = self.train.objective
        assert isinstance(objective, Composed)
        phases = {
            name: replace(phase, optimizer=replace(phase.optimizer, lr=rate))
            for name, phase in objective.phases.items()
        }
        return replace(self.train, objective=replace(objective, phases=phases))


@dataclass(frozen=True, kw_only=True)
class ChosenRates(Metric):
    """What each row of a report has chosen, by the port of its table; `titles` are the rows'."""

    titles: Mapping[str, str]

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        found = dict[tuple[str, str], float]()
        for port, title in self.titles.items():
            rates, accuracy = _columns(work.data[port], work.ctx.stage)
            best = best_rate(work.data[port], where=work.ctx.stage)
            found[title, "chosen_lr"] = RATE_UNIT * best
            found[title, "validation_accuracy"] = float(accuracy.max())
            found[title, "least_accuracy"] = float(accuracy.min())
            found[title, "tried"] = float(len(rates))
        return found

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="chosen_lr", better="neither", label="Learning rate x 1e4"),
            Score(
                name="validation_accuracy",
                better="higher",
                unit="%",
                label="Accuracy on the rows kept apart",
            ),
            Score(name="least_accuracy", better="neither", unit="%", label="At the worst rate"),
            Score(name="tried", better="neither", label="Rates"),
        )

    def rows(self) -> Sequence[str]:
        return [*self.titles.values()]
