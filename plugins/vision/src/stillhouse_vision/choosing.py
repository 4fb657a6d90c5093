"""Settings chosen on images that were kept apart: short trainings of each candidate, then a whole
training of the best.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stillhouse.artifact import Artifact, load_model
from stillhouse.data.data import Data, RowData
from stillhouse.data.shards import save_data
from stillhouse.errors import BadData, BadRecipe, BadSetting
from stillhouse.leftovers import temporary
from stillhouse.many import trainings
from stillhouse.metrics import Classification, Metric, Score
from stillhouse.metrics.scores import FRACTION
from stillhouse.objectives.objective import Models
from stillhouse.recipe import BaseStage, Context, Resource, Result, Stage
from stillhouse.references import Ref, out
from stillhouse.stages import Evaluate, Train
from stillhouse.stages.convert import Converter
from stillhouse.work import Work

VALIDATION, CHOICE, TEST = "validation", "choice", "test"
NAME, ACCURACY, LR, FACTOR, TEMPERATURE = "candidate", "accuracy", "lr", "factor", "temperature"
CHOSEN = (LR, FACTOR, TEMPERATURE)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A training, and what of it is to be chosen: the learning rate, the factor of the weights of
    its losses beside the cross-entropy, and their temperature, 0 where that is no choice.
    """

    train: Train
    lr: float
    factor: float = 1.0
    temperature: float = 0.0

    @property
    def chosen(self) -> dict[str, float]:
        """By name, without what it has not."""
        values = {LR: self.lr, FACTOR: self.factor, TEMPERATURE: self.temperature}
        return {name: value for name, value in values.items() if value}


def label(candidate: Candidate) -> str:
    """A candidate's name, of what it has: "lr0_3-x1-t4"."""
    short = {LR: "lr", FACTOR: "x", TEMPERATURE: "t"}
    parts = (f"{short[what]}{value:g}" for what, value in candidate.chosen.items())
    return "-".join(parts).replace(".", "_")


def chosen_of(
    candidates: Mapping[str, Candidate],
    *,
    name: str,
    validation: Ref,
    steps: int,
    finish: Converter | None = None,
) -> "Choose":
    """The stage that trains each candidate for `steps` steps and scores it on `validation`."""
    short = {
        each: replace(candidate, train=replace(candidate.train, steps=steps))
        for each, candidate in candidates.items()
    }
    inputs = {**_inputs(candidates, name), VALIDATION: validation}
    return Choose(name=name, candidates=short, inputs=inputs, finish=finish)


def best_of(
    candidates: Mapping[str, Candidate], choice: Ref, *, name: str, seed: int
) -> "TrainChosen":
    """The stage that trains the candidate that `choice` names."""
    inputs = {**_inputs(candidates, name), CHOICE: choice}
    return TrainChosen(name=name, candidates=candidates, inputs=inputs, seed=seed)


def _inputs(candidates: Mapping[str, Candidate], name: str) -> Mapping[str, str]:
    """What all candidates read; raises BadRecipe where they differ."""
    first, *rest = [candidate.train.inputs for candidate in candidates.values()]
    if any(dict(each) != dict(first) for each in rest):
        raise BadRecipe(f"stage '{name}': candidates read different inputs")
    return first


@dataclass(frozen=True, kw_only=True)
class Choose(BaseStage):
    """Trains each candidate and stores its accuracy on the labelled images of the port
    "validation"; output "choice", a row a candidate.

    A trained candidate is kept: a killed stage goes on behind the last one. Candidates have the
    same first weights and batches, those of their own seed. `finish` makes the model that is
    scored of what a training leaves and the models it reads; without it, its "student". Raises
    BadRecipe where anything it reads, at any remove, is a port "test": the best of many on test
    data is no estimate.
    """

    name: str
    candidates: Mapping[str, Candidate]
    inputs: Mapping[str, str]
    finish: Converter | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.candidates:
            raise BadSetting(f"stage '{self.name}': no candidate to choose from")
        for ref in read_by(self):
            if ref.rpartition(".")[2] == TEST:
                raise BadRecipe(
                    f"stage '{self.name}': chooses by '{ref}', which is test data; give images "
                    "kept apart from the training data"
                )

    @property
    def resource(self) -> Resource:
        return "gpu"

    @property
    def outputs(self) -> tuple[str, ...]:
        return (CHOICE,)

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Result:
        given = {port: artifact for port, artifact in inputs.items() if port != VALIDATION}
        validation: Data = inputs[VALIDATION].open()

        def train(name: str, work: Work) -> tuple[dict[str, Tensor], dict[str, Any]]:
            # Any: JSON values
            accuracy = self._accuracy(self.candidates[name].train, given, validation, work)
            return {ACCURACY: torch.tensor(accuracy, dtype=torch.float64)}, {}

        names, work = sorted(self.candidates), Work.of(ctx, self.seed)
        found = [float(t[ACCURACY]) for _, (t, _) in trainings(names, train, of=self, work=work)]
        chosen = [self.candidates[name].chosen for name in names]
        columns = {
            NAME: names,
            ACCURACY: _numbers(found),
            **{what: _numbers([each.get(what, 0.0) for each in chosen]) for what in CHOSEN},
        }
        return Result(outputs={CHOICE: save_data(ctx.out / CHOICE, columns)})

    def _accuracy(
        self, stage: Train, inputs: Mapping[str, Artifact], validation: Data, work: Work
    ) -> float:
        """Accuracy on `validation` of the student that a training leaves; no model is kept."""
        with temporary() as out:
            made = {**inputs, **stage.run(inputs, replace(work.ctx, out=out)).outputs}
            folder = made["student"].path
            if self.finish is not None:
                models = {port: each.open() for port, each in made.items() if each.kind == "model"}
                folder = out / "finished"
                self.finish(models, folder, work=work)
            student = load_model(folder).module.requires_grad_(False).to(work.device)
            with torch.no_grad():
                return Classification()({"student": student}, validation, work=work)["accuracy"]


CHOICES = "What each row has chosen on images kept apart"


def chosen_study(choosers: Mapping[str, Choose], titles: Mapping[str, str]) -> Evaluate:
    """What was chosen for each row, by the row's short name and title."""
    return Evaluate(
        name="choices",
        metrics=(Choices(titles={f"chosen-{row}": titles[row] for row in choosers}),),
        inputs={f"chosen-{row}": out(stage) for row, stage in choosers.items()},
        data=tuple(f"chosen-{row}" for row in choosers),
    )


def read_by(stage: Stage) -> Iterator[str]:
    """All references that a stage reads, and those of the stages behind them."""
    for ref in stage.inputs.values():
        yield str(ref)
        if isinstance(ref, Ref):
            yield from read_by(ref.stage)


def _numbers(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class TrainChosen(BaseStage):
    """The training of the candidate that is best in the table of the port "choice", the first of
    equals; its outputs are a training's. Which it was stands in <stage>.run.json under "chosen".
    """

    name: str
    candidates: Mapping[str, Candidate]
    inputs: Mapping[str, str]
    seed: int = 0

    @property
    def resource(self) -> Resource:
        return "gpu"

    @property
    def outputs(self) -> tuple[str, ...]:
        return next(iter(self.candidates.values())).train.outputs

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Result:
        name = str(best_row(inputs[CHOICE].open(), where=self.name)[NAME])
        if name not in self.candidates:
            raise BadData(f"stage '{self.name}': the choice '{name}' is none of its candidates")
        chosen = self.candidates[name]
        given = {port: artifact for port, artifact in inputs.items() if port != CHOICE}
        result = chosen.train.run(given, ctx)
        record = {"candidate": name, **chosen.chosen}
        return replace(result, measured={**result.measured, "chosen": record})


def best_row(table: RowData, *, where: str) -> Mapping[str, str | float]:
    """The row of the highest accuracy of a "choice", the first of equals; without a temperature
    where its candidate has none.
    """
    accuracy, names = table.columns[ACCURACY], table.columns[NAME]
    if not isinstance(accuracy, Tensor) or not isinstance(names, list):
        raise BadData(f"stage '{where}': the port '{CHOICE}' holds no table of a Choose")
    best = int(accuracy.argmax())
    row = table.rows(torch.tensor([best]))
    found = {name: float(row[name][0]) for name in (ACCURACY, *CHOSEN)}
    return {NAME: names[best]} | {k: v for k, v in found.items() if v or k not in CHOSEN}


@dataclass(frozen=True, kw_only=True)
class Choices(Metric):
    """What was chosen for each row of a report, by the port of its "choice"; `titles` are the
    rows' by port.
    """

    titles: Mapping[str, str]

    def __call__(
        self,
        models: Models,
        data: Data,
        *,
        work: Work,
    ) -> Mapping[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for port, title in self.titles.items():
            table = work.data[port]
            assert isinstance(table, RowData)
            best = best_row(table, where=work.ctx.stage)
            for what in CHOSEN:
                if what in best:
                    found[title, f"chosen_{what}"] = float(best[what])
            found[title, "validation_accuracy"] = float(best[ACCURACY])
            found[title, "tried"] = len(table)
        return found

    def scores(self) -> Sequence[Score]:
        return (
            Score(
                name="validation_accuracy",
                better="higher",
                unit=FRACTION,
                label="Accuracy on the images kept apart, after the short training",
            ),
            Score(name="chosen_lr", better="neither", label="Learning rate"),
            Score(name="chosen_factor", better="neither", label="Factor of the weights"),
            Score(name="chosen_temperature", better="neither", label="Temperature"),
            Score(name="tried", better="neither", label="Candidates"),
        )
