"""AutoDistil's studies: what was chosen, what training bought, tasks and labels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from stillhouse.checkpoint import State
from stillhouse.data.data import Columns, Data, RowData
from stillhouse.errors import BadData, BadSetting
from stillhouse.many import trainings
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models
from stillhouse.search.ranking import spearman_rho
from stillhouse.search.space import Encoding
from stillhouse.training import mix
from stillhouse.work import Work
from stillhouse_language.architecture import Architecture, macs, parameter_count
from stillhouse_language.choosing import Choose
from stillhouse_language.encoder import Encoder
from stillhouse_language.proxy import PreparedRelations, RelationScore, superlm_port
from stillhouse_language.rates import RATE, best_rate
from stillhouse_language.spaces import Spaces, SubSpace, decoded, encoding_of
from stillhouse_language.subnets import extract
from stillhouse_language.tuning import Lesson, accuracy, matthews, means, record_of

# of one loss entry of about 1e-3: a table that shows two digits would show zeros
LOSS_UNIT = 1e4


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss(Metric):
    """The relation loss on held-out text, x 1e4, of the SuperLMs of sub-spaces, by line.

    `lines` names for each line a sub-space and the role that holds its SuperLM. relation_loss: mean
    over `subnets` subnets of the sub-space, the smallest and the largest among them, the others
    evenly between. largest and smallest: of these two. size_order: Spearman's rho of loss and
    parameters over the subnets; negative where larger ones are nearer to the teacher.
    """

    lines: Mapping[str, tuple[str, str]]
    spaces: Mapping[str, SubSpace]
    score: RelationScore
    subnets: int = 16

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        superlms = {role: _encoder(models, role) for _, role in self.lines.values()}
        prepared = self.score.prepared(models["teacher"], superlms, data, work=work)
        found = dict[tuple[str, str], float]()
        for line, (space, role) in self.lines.items():
            chosen = spread(self.spaces[space].architectures, self.subnets)
            losses = [LOSS_UNIT * prepared.loss(superlms[role], a) for a in chosen]
            found[line, "relation_loss"] = sum(losses) / len(losses)
            found[line, "smallest"], found[line, "largest"] = losses[0], losses[-1]
            sizes = [float(parameter_count(a)) for a in chosen]
            if len(set(losses)) > 1 and len(set(sizes)) > 1 and len(losses) > 2:
                found[line, "size_order"] = spearman_rho(losses, sizes)
        return found

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="relation_loss", better="lower", label="Loss x 1e4"),
            Score(name="smallest", better="lower", label="of the smallest"),
            Score(name="largest", better="lower", label="of the largest"),
            Score(name="size_order", better="neither", label="Rank correlation with parameters"),
        )


def spread(architectures: Sequence[Architecture], count: int) -> list[Architecture]:
    """`count` of them, the first and the last among them, evenly between; all where there are no
    more.
    """
    last = len(architectures) - 1
    places = [round(i * last / max(1, count - 1)) for i in range(min(count, last + 1))]
    return [architectures[place] for place in dict.fromkeys(places)]


def _encoder(models: Models, role: str) -> Encoder:
    module = named(models, role, what="role", where="study")
    if not isinstance(module, Encoder):
        raise BadData(f"study: role '{role}' is no Encoder")
    return module


@dataclass(frozen=True, kw_only=True)
class Choices(Metric):
    """What was chosen of a search's table, a row a choice: layers, width, inner units, heads, true
    parameters, MACs of a sample, and the relation loss x 1e4.
    """

    spaces: Spaces
    choices: Mapping[str, Choose]

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        if not isinstance(data, RowData):
            raise BadData("choices: no table of a search's candidates")
        found = dict[tuple[str, str], float]()
        texts, scores = data.columns["encoding"], data.columns["score"]
        assert isinstance(texts, list)
        assert isinstance(scores, Tensor)
        losses = {text: -float(score) for text, score in zip(texts, scores, strict=True)}
        for row, choice in self.choices.items():
            encoding = choice.encoding(data, work.again())
            _, a = decoded(self.spaces, encoding)
            for name in ("layers", "width", "inner", "heads"):
                found[row, name] = float(getattr(a, name))
            found |= {(row, name): value for name, value in self.spaces.costs(a).items()}
            found[row, "relation_loss"] = LOSS_UNIT * losses[json.dumps(encoding, sort_keys=True)]
        return found

    def scores(self) -> Sequence[Score]:
        sizes = ("layers", "width", "inner", "heads")
        return (
            *(Score(name=name, better="neither", unit="count") for name in sizes),
            Score(name="parameters", better="neither", unit="count"),
            Score(name="macs", better="neither", unit="count", label="MACs"),
            Score(name="relation_loss", better="lower", label="Loss x 1e4"),
        )


@dataclass(frozen=True, kw_only=True)
class TaskTable(Metric):
    """Accuracy on several tasks with few and with all labels, a line an encoder; Matthews'
    correlation in the columns named in `matthews`.

    `lines` are roles by line; those of `fresh` are trained from fresh weights. `lessons` are by
    the name of the score ("cola_100"): the ports of training and test rows, and the lesson. `rates`
    are the ports of a line's learning rates (`ChooseRate`), whose best it is trained at. <name>
    is the mean over `seeds` drawings of labels, head and batches, <name>_error its standard error.
    """

    lines: Mapping[str, str]
    lessons: Mapping[str, tuple[str, str, Lesson]]
    labels: Mapping[str, str]  # of the scores
    seeds: int = 1
    fresh: tuple[str, ...] = ()
    rates: Mapping[str, str] = field(default_factory=dict[str, str])
    matthews: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise BadSetting(f"tasks and labels: seeds must be >= 1 (got {self.seeds})")

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        cells = [(line, name) for line in self.lines for name in self.lessons]
        where = f"stage '{work.ctx.stage}'"
        rates = {n: best_rate(work.data[port], where=where) for n, port in self.rates.items()}
        numbers = {
            f"{place}-{seed}": (cell, seed)
            for place, cell in enumerate(cells)
            for seed in range(self.seeds)
        }

        def train(key: str, own: Work) -> State:
            (line, name), seed = numbers[key]
            train_port, test_port, lesson = self.lessons[name]
            if line in self.fresh:
                lesson = replace(lesson, head=replace(lesson.head, fresh=True))
            if line in rates:
                lesson = lesson.at(rates[line])
            # the same labels and batches in every line
            again = Work.seeded(mix(work.seed, seed), ctx=own.ctx)
            train_rows = work.data[train_port]
            assert isinstance(train_rows, RowData)
            encoder = _encoder(models, self.lines[line])
            tuned, test = lesson.tuned(encoder, train_rows, again), work.data[test_port]
            score = matthews if name in self.matthews else accuracy
            return record_of(score(tuned, test, device=work.device))

        values = dict[tuple[str, str], list[float]]()
        for key, (_, record) in trainings(list(numbers), train, of=self, work=work):
            values.setdefault(numbers[key][0], []).append(record["score"])
        found = dict[tuple[str, str], float]()
        for (line, name), each in values.items():
            found[line, name], error = means(each)
            if self.seeds > 1:
                found[line, f"{name}_error"] = error
        return found

    def scores(self) -> Sequence[Score]:
        return [
            score
            for name, label in self.labels.items()
            for score in (
                Score(name=name, better="higher", unit=self._unit(name), label=label),
                Score(name=f"{name}_error", better="neither", unit=self._unit(name), label="s.e."),
            )
        ]

    def _unit(self, name: str) -> str:
        return "" if name in self.matthews else "%"


@dataclass(frozen=True, kw_only=True)
class RankSubnets:
    """A `make`: `count` subnets with their relation loss and their accuracy after fine-tuning, port
    "subnets": "encoding", "relation" (minus the loss), "parameters", "macs", "accuracy".

    The subnets are evenly of all sub-spaces and of all their sizes, whatever the budget. Ports:
    "held" (held-out text), "teacher", the SuperLMs, "train" and "test" of a task. Accuracy is the
    mean of `seeds` lessons, whose labels and batches are the same for all subnets; with a port
    "rate" (`ChooseRate`) all are tuned at the best rate there.
    """

    spaces: Spaces
    score: RelationScore
    lesson: Lesson
    count: int
    seeds: int = 1

    def __post_init__(self) -> None:
        if self.count < 3 * len(self.spaces.spaces) or self.seeds < 1:
            raise BadSetting(
                f"ranking: at least 3 subnets a sub-space and 1 seed (got {self.count} subnets of "
                f"{len(self.spaces.spaces)} sub-spaces and {self.seeds} seeds)"
            )

    def __call__(self, inputs: Mapping[str, object], *, work: Work) -> Mapping[str, Columns]:
        given: dict[str, object] = {**inputs, "data": inputs["held"]}
        prepared = self.score.prepare(self.spaces, given, work=work)
        chosen, lesson = self.subnets(), self.lesson
        if RATE in inputs:
            table = inputs[RATE]
            assert isinstance(table, RowData)
            lesson = lesson.at(best_rate(table, where=f"stage '{work.ctx.stage}'"))
        keys = [f"{place}-{seed}" for place in range(len(chosen)) for seed in range(self.seeds)]
        values = dict[int, list[float]]()

        def train(key: str, own: Work) -> State:
            place, seed = map(int, key.split("-"))
            again = Work.seeded(mix(work.seed, seed), ctx=own.ctx)
            train_rows, test = inputs["train"], inputs["test"]
            assert isinstance(train_rows, RowData)
            assert isinstance(test, RowData)
            encoder = self._cut(prepared, chosen[place])
            return record_of(lesson.accuracy(encoder, train_rows, test, again))

        for key, (_, record) in trainings(keys, train, of=self, work=work):
            values.setdefault(int(key.split("-")[0]), []).append(record["score"])
        return {"subnets": self._table(prepared, chosen, values)}

    def subnets(self) -> list[tuple[str, Architecture]]:
        """Sub-space and architecture of each."""
        share = -(-self.count // len(self.spaces.spaces))
        found = [
            (name, a)
            for name, space in self.spaces.spaces.items()
            for a in spread(space.architectures, share)
        ]
        return found[: max(self.count, 3)]

    def _cut(self, prepared: PreparedRelations, chosen: tuple[str, Architecture]) -> nn.Module:
        return extract(prepared.superlms[superlm_port(chosen[0])], chosen[1])

    def _table(
        self,
        prepared: PreparedRelations,
        chosen: Sequence[tuple[str, Architecture]],
        values: Mapping[int, Sequence[float]],
    ) -> Columns:
        encodings: list[Encoding] = [encoding_of(*each) for each in chosen]
        losses = [prepared.loss(prepared.superlms[superlm_port(n)], a) for n, a in chosen]
        columns = {
            "relation": [-loss for loss in losses],
            "parameters": [float(parameter_count(a)) for _, a in chosen],
            "macs": [float(macs(a, tokens=self.spaces.tokens)) for _, a in chosen],
            "accuracy": [sum(values[i]) / len(values[i]) for i in range(len(chosen))],
        }
        numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in columns.items()}
        return {"encoding": [json.dumps(e, sort_keys=True) for e in encodings], **numbers}
