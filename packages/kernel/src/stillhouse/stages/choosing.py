"""Settings chosen on data that were kept apart: short trainings of each candidate, then a whole
training of the best.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stillhouse.artifact import Artifact, load_model
from stillhouse.data.data import Data, RowData
from stillhouse.data.shards import save_data
from stillhouse.errors import BadData, BadRecipe, BadSetting
from stillhouse.leftovers import temporary
from stillhouse.many import trainings
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models
from stillhouse.recipe import BaseStage, Context, Resource, Result, Stage
from stillhouse.references import Ref, out
from stillhouse.stages.convert import Converter
from stillhouse.stages.evaluate import Evaluate
from stillhouse.stages.train import Train
from stillhouse.work import Work

VALIDATION, CHOICE, TEST = "validation", "choice", "test"
CANDIDATE, SCORE, FINITE, CHOSEN = "candidate", "score", "finite", "chosen_"
# what is usually chosen: its short name in a candidate's, and its label in a report
SHORT: Mapping[str, str] = {"lr": "lr", "factor": "x", "temperature": "t"}
LABELS: Mapping[str, str] = {
    "lr": "Learning rate",
    "factor": "Factor of the weights",
    "temperature": "Temperature",
}
CHOICES = "What each row has chosen on data kept apart"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A training, and what of it is to be chosen, by name: {"lr": 0.1, "temperature": 4.0}."""

    train: Train
    chosen: Mapping[str, float]


def by_name(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """Candidates by what they have: "lr0_3-x1-t4"."""
    found: dict[str, Candidate] = {}
    for each in candidates:
        parts = (f"{SHORT.get(what, what)}{value:g}" for what, value in each.chosen.items())
        found["-".join(parts).replace(".", "_").replace("+", "")] = each
    return found


def chosen_of(
    candidates: Mapping[str, Candidate],
    *,
    name: str,
    validation: Ref,
    steps: int,
    metric: Metric,
    score: str,
    finish: Converter | None = None,
) -> "Choose":
    """The stage that trains each candidate for `steps` steps and scores it on `validation`."""
    short = {
        each: replace(candidate, train=replace(candidate.train, steps=steps))
        for each, candidate in candidates.items()
    }
    inputs = {**_inputs(candidates, name), VALIDATION: validation}
    return Choose(
        name=name, candidates=short, inputs=inputs, metric=metric, score=score, finish=finish
    )


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
    """Trains each candidate and scores the model that it leaves in the output `role` by `score` of
    `metric` on the port "validation"; output "choice", a row a candidate, the best first, of equals
    the first by name; one whose score is not finite comes last, with "finite" False.

    A trained candidate is kept: a killed stage goes on behind the last one. Candidates have the
    same first weights and batches, those of their own seed. `finish` makes the model that is scored
    of what a training leaves and the models it reads. Raises BadRecipe where anything it reads, at
    any remove, is a port "test": the best of many on test data is no estimate; and for a score that
    the metric does not declare, or that is neither better higher nor lower.
    """

    name: str
    candidates: Mapping[str, Candidate]
    inputs: Mapping[str, str]
    metric: Metric
    score: str
    role: str = "student"
    finish: Converter | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.candidates:
            raise BadSetting(f"stage '{self.name}': no candidate to choose from")
        given = {tuple(sorted(each.chosen)) for each in self.candidates.values()}
        if len(given) > 1:
            raise BadRecipe(f"stage '{self.name}': candidates differ in what is to be chosen")
        for ref in read_by(self):
            if ref.rpartition(".")[2] == TEST:
                raise BadRecipe(
                    f"stage '{self.name}': chooses by '{ref}', which is test data; give data "
                    "kept apart from the training data"
                )
        if not self.declared.directed:
            raise BadRecipe(f"stage '{self.name}': no value of '{self.score}' is the better one")

    @property
    def declared(self) -> Score:
        """What is chosen by."""
        scores = {each.name: each for each in self.metric.scores()}
        return named(scores, self.score, what="score", where=f"stage '{self.name}'")

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
            value = self._value(self.candidates[name].train, given, validation, work)
            return {SCORE: torch.tensor(value, dtype=torch.float64)}, {}

        names, work = sorted(self.candidates), Work.of(ctx, self.seed)
        found = {
            name: float(tensors[SCORE])
            for name, (tensors, _) in trainings(names, train, of=self, work=work)
        }
        best = sorted(names, key=lambda name: self._place(found[name]))
        finite = [math.isfinite(found[name]) for name in best]
        chosen = [self.candidates[name].chosen for name in best]
        columns = {
            CANDIDATE: best,
            FINITE: torch.tensor(finite),
            SCORE: _numbers([found[n] if f else 0.0 for n, f in zip(best, finite, strict=True)]),
            **{f"{CHOSEN}{w}": _numbers([each[w] for each in chosen]) for w in chosen[0]},
        }
        return Result(outputs={CHOICE: save_data(ctx.out / CHOICE, columns)})

    def _place(self, value: float) -> tuple[bool, float]:
        """The best first; what is not finite last."""
        if not math.isfinite(value):
            return True, 0.0
        return False, value if self.declared.lower_is_better else -value

    def _value(
        self, stage: Train, inputs: Mapping[str, Artifact], validation: Data, work: Work
    ) -> float:
        """The score of the model that a training leaves; no model is kept."""
        with temporary() as out:
            made = {**inputs, **stage.run(inputs, replace(work.ctx, out=out)).outputs}
            folder = named(made, self.role, what="output", where=f"stage '{self.name}'").path
            if self.finish is not None:
                models = {port: each.open() for port, each in made.items() if each.kind == "model"}
                folder = out / "finished"
                self.finish(models, folder, work=work)
            module = load_model(folder).module.requires_grad_(False).to(work.device)
            here = replace(work, data={VALIDATION: validation})
            with torch.no_grad():
                values: Mapping[Any, float] = self.metric(  # Any: names
                    {self.role: module}, validation, work=here
                )
            return float(values[self.score])


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
    """The training of the candidate that is best in the table of the port "choice"; its outputs are
    a training's. Which it was stands in <stage>.run.json under "chosen".
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
        name, _, _ = best_row(inputs[CHOICE].open(), where=self.name)
        if name not in self.candidates:
            raise BadData(f"stage '{self.name}': the choice '{name}' is none of its candidates")
        best = self.candidates[name]
        given = {port: artifact for port, artifact in inputs.items() if port != CHOICE}
        result = best.train.run(given, ctx)
        record = {CANDIDATE: name, **best.chosen}
        return replace(result, measured={**result.measured, "chosen": record})


def best_row(table: Data, *, where: str) -> tuple[str, float, dict[str, float]]:
    """Of the best row of a "choice": its candidate, its score, and what is chosen by name. Raises
    BadData for other data, and where no candidate's score is finite.
    """
    columns = table.columns if isinstance(table, RowData) else {}
    names, scores, finite = (columns.get(name) for name in (CANDIDATE, SCORE, FINITE))
    if (
        not isinstance(scores, Tensor)
        or not isinstance(finite, Tensor)
        or not isinstance(names, list)
        or not names
    ):
        raise BadData(f"stage '{where}': the port '{CHOICE}' holds no table of a Choose")
    if not bool(finite[0]):
        raise BadData(
            f"stage '{where}': the score of no candidate is finite ({', '.join(map(str, names))}); "
            "add a lower rate"
        )
    chosen = {
        name.removeprefix(CHOSEN): float(column[0])
        for name, column in columns.items()
        if isinstance(column, Tensor) and name.startswith(CHOSEN)
    }
    return str(names[0]), float(scores[0]), chosen


@dataclass(frozen=True, kw_only=True)
class Choices(Metric):
    """What was chosen for each row of a report, by the port of its "choice"; `titles` are the
    rows' by port, `labels` those of what is chosen, `score` what it was chosen by.
    """

    titles: Mapping[str, str]
    score: Score
    labels: Mapping[str, str] = field(default_factory=lambda: LABELS)

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
            _, value, chosen = best_row(table, where=work.ctx.stage)
            for what in self.labels:
                if what in chosen:
                    found[title, f"{CHOSEN}{what}"] = chosen[what]
            found[title, f"validation_{self.score.name}"] = value
            found[title, "tried"] = len(table)
        return found

    def scores(self) -> Sequence[Score]:
        label = f"{self.score.label} on the data kept apart, after the short training"
        return (
            replace(self.score, name=f"validation_{self.score.name}", label=label, ends=None),
            *(
                Score(name=f"{CHOSEN}{what}", better="neither", label=text)
                for what, text in self.labels.items()
            ),
            Score(name="tried", better="neither", label="Candidates"),
        )


def chosen_study(
    choosers: Mapping[str, Choose],
    titles: Mapping[str, str],
    *,
    labels: Mapping[str, str] = LABELS,
) -> Evaluate:
    """What was chosen for each row, by the row's short name and title."""
    score = next(iter(choosers.values())).declared
    ports = {f"chosen-{row}": out(stage) for row, stage in choosers.items()}
    named_rows = {f"chosen-{row}": titles[row] for row in choosers}
    return Evaluate(
        name="choices",
        metrics=(Choices(titles=named_rows, score=score, labels=labels),),
        inputs=ports,
        data=tuple(ports),
    )
