"""How well students answer, what alignment moved, and what the preferences are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stillhouse.data.data import Columns, Data, RowData
from stillhouse.errors import BadData
from stillhouse.metrics.metric import Metric, Values
from stillhouse.metrics.scores import Score
from stillhouse.objectives.language import IGNORED
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_language.arte.answering import Answering
from stillhouse_language.arte.arithmetic import styles_of
from stillhouse_language.arte.drafting import ModelWriter, pairs_of, written_in
from stillhouse_language.arte.objectives import CHOSEN, REJECTED, pair_log_probs
from stillhouse_language.arte.reading import TASKS
from stillhouse_language.arte.tasks import (
    CLOSE,
    OPEN,
    Task,
    parse_answer,
    same_answer,
    tasks_of,
    texts,
)
from stillhouse_language.causal.generation import Sampling
from stillhouse_language.causal.model import CausalLM, head_of
from stillhouse_language.causal.tokens import ASSET, open_tokenizer


def writer_of(models: Models, role: str, work: Work) -> ModelWriter:
    """A role of an evaluation with its tokenizer."""
    model = models[role]
    if not isinstance(model, CausalLM) or ASSET not in work.assets.get(role, {}):
        raise BadData(f"role '{role}': no causal language model with a tokenizer")
    return ModelWriter(model=model, tokenizer=open_tokenizer(work.assets[role][ASSET]))


def rows_of(work: Work, port: str) -> RowData:
    """The rows of a data port."""
    found = work.data[port]
    if not isinstance(found, RowData):
        raise BadData(f"port '{port}': no rows")
    return found


@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """Answers of `role` to the test questions without an example, at temperature 0.

    `accuracy`: the mean over tasks of the share of right answers in the tag, as it is written
    behind the naive prompt (missing: wrong; ARTE). `answered`: the share that has a tag at all,
    which separates format from knowledge. Of tasks with options, `choice_accuracy`: the likeliest
    of them right behind the question is the right one, nothing written. `gold_log_likelihood`: ln p
    of the gold answer there, nats, mean over tasks. `accuracy_<task>` where there are several.
    """

    role: str = "student"
    tasks: tuple[str, ...] = ()
    options: bool = False  # whether a task has options
    longest: int = 128
    batch: int = 32

    def __call__(self, models: Models, data: Data, *, work: Work) -> Values:
        writer, tests = writer_of(models, self.role, work), rows_of(work, "data")
        found: dict[str, list[float]] = {}
        for task in tasks_of(rows_of(work, TASKS)).values():
            items = pairs_of(tests, task.name)

            def compute(
                first: int,
                last: int,
                rng: Generator,
                items: Sequence[tuple[str, str]] = items,
                task: Task = task,
            ) -> Columns:
                prompts = [task.naive(question) for question, _ in items[first:last]]
                sampling = Sampling(max_new=self.longest, stop=CLOSE)
                return {"text": writer.write(prompts, sampling=sampling, rng=rng)}

            name = f"answers-{self.role}-{task.name}"
            parts = work.parts(name, len(items), compute, of=self, size=self.batch)
            written = [text for part in parts for text in written_in(part)]
            pairs = [
                (parse_answer(text), answer)
                for text, (_, answer) in zip(written, items, strict=True)
            ]
            right = [same_answer(given, answer) for given, answer in pairs]
            scores = {"accuracy": right, "answered": [bool(given) for given, _ in pairs]}
            chosen = Answering(mode="choose", batch=self.batch).measured(
                writer, task, task.opening(), items
            )
            scores["gold_log_likelihood"] = chosen.likelihood.tolist()
            if task.options:
                scores["choice_accuracy"] = chosen.right.tolist()
            for key, values in scores.items():
                found.setdefault(key, []).append(sum(map(float, values)) / len(values))
            if len(self.tasks) > 1:
                found[f"accuracy_{task.name}"] = found["accuracy"][-1:]
        return {key: sum(values) / len(values) for key, values in found.items()}

    def scores(self) -> Sequence[Score]:
        each = [
            Score(name=f"accuracy_{task}", better="higher", unit="%", label=f"Accuracy, {task}")
            for task in self.tasks
            if len(self.tasks) > 1
        ]
        choice = Score(
            name="choice_accuracy",
            better="higher",
            unit="%",
            label="Accuracy of the likeliest option",
        )
        return (
            Score(name="accuracy", better="higher", unit="%"),
            *each,
            Score(name="answered", better="higher", unit="%", label="Answers with a tag"),
            *([choice] if self.options else []),
            Score(
                name="gold_log_likelihood",
                better="higher",
                unit="nats",
                label="Log-likelihood of the gold answer",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Alignment(Metric):
    """What alignment moved: a table of models by pairs. `lines` maps a row's title to its role and
    the port of pairs; the pairs hold the reference's log-probabilities.

    `chosen`, `rejected`: mean change of the response's log-probability against the reference, in
    nats. Both fall in likelihood displacement; `margin` is their difference. `preferred`: share of
    pairs in whose favour the teacher has moved. `divergence`: KL(teacher || reference) of the next
    token, mean over the tokens of both responses, where `reference` is a role.
    """

    lines: Mapping[str, tuple[str, str]]
    reference: str = "reference"

    def __call__(self, models: Models, data: Data, *, work: Work) -> Values:
        found = dict[tuple[str, str], float]()
        for title, (role, port) in self.lines.items():
            moved = list[tuple[Tensor, Tensor, Tensor]]()
            total, tokens = 0.0, 0
            for batch in rows_of(work, port).batches(8, rng=None):
                given = {name: value.to(work.device) for name, value in batch.items()}
                chosen, rejected = pair_log_probs(models[role], given)
                before = (given[f"{side}.reference"].to(chosen) for side in (CHOSEN, REJECTED))
                up, down = (x - y for x, y in zip((chosen, rejected), before, strict=True))
                moved.append((up, down, up - down))
                for side in (CHOSEN, REJECTED):
                    part, count = self._divergence(models, role, given, side)
                    total, tokens = total + part, tokens + count
            for place, name in enumerate(("chosen", "rejected", "margin")):
                found[title, name] = float(torch.cat([m[place] for m in moved]).mean())
            margins = torch.cat([m[2] for m in moved])
            found[title, "preferred"] = float((margins > 0).float().mean())
            found[title, "divergence"] = total / max(tokens, 1)
        return found

    def _divergence(
        self, models: Models, role: str, given: Mapping[str, Tensor], side: str
    ) -> tuple[float, int]:
        batch = {"tokens": given[side], "tokens_offsets": given[f"{side}_offsets"]}
        kept = given[f"{side}.labels"] != IGNORED
        log_p = list[Tensor]()
        for each in (role, self.reference):
            outputs = models[each](batch)
            head = head_of(
                models[each], {"hidden": outputs["hidden"][kept], "head": outputs["head"]}
            )
            log_p.append(head.logits().float().log_softmax(-1))
        p = log_p[0].exp()
        # 0 ln 0 is 0: kl_div of logarithms gives NaN there
        gap = torch.where(p > 0, p * (log_p[0] - log_p[1]), torch.zeros_like(p))
        return float(gap.sum()), int(kept.sum())

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="margin", better="higher", unit="nats", label="Change of the margin"),
            Score(name="preferred", better="higher", unit="%", label="Pairs that it now favours"),
            Score(name="chosen", better="higher", unit="nats", label="Change of the chosen"),
            Score(name="rejected", better="lower", unit="nats", label="Change of the rejected"),
            Score(
                name="divergence",
                better="neither",
                unit="nats",
                label="KL to the reference, a token",
            ),
        )

    def rows(self) -> Sequence[str]:
        return [*self.lines]


@dataclass(frozen=True, kw_only=True)
class WrittenStyles(Metric):
    """In which style a teacher writes under the naive prompt, by its own words, at temperature 1:
    shares over the validation questions of the built-in arithmetic, a row a model.
    """

    lines: Mapping[str, str]
    styles: tuple[str, ...]
    longest: int = 64

    def __call__(self, models: Models, data: Data, *, work: Work) -> Values:
        found = dict[tuple[str, str], float]()
        for task in tasks_of(rows_of(work, TASKS)).values():
            items = pairs_of(rows_of(work, "data"), task.name)
            questions = [question for question, _ in items]
            for title, role in self.lines.items():
                written = writer_of(models, role, work).write(
                    [task.naive(question) for question in questions],
                    sampling=Sampling(max_new=self.longest, temperature=1.0, stop=CLOSE),
                    rng=work.again().rng,
                )
                named = styles_of(written, questions)
                for style in (*self.styles, "other"):
                    found[title, style] = named.count(style) / len(named)
        return found

    def scores(self) -> Sequence[Score]:
        return [Score(name=style, better="neither", unit="%") for style in (*self.styles, "other")]

    def rows(self) -> Sequence[str]:
        return [*self.lines]


@dataclass(frozen=True, kw_only=True)
class ChosenStyles(Metric):
    """In which style the examples of each row's data are: a row a data port, shares."""

    lines: Mapping[str, str]
    styles: tuple[str, ...]

    def __call__(self, models: Models, data: Data, *, work: Work) -> Values:
        found = dict[tuple[str, str], float]()
        for title, port in self.lines.items():
            rows = rows_of(work, port)
            named, right = texts(rows, "style"), rows.columns["right"]
            if not any(named):
                questions, written = texts(rows, "question"), texts(rows, "response")
                named = styles_of(written, questions)
            for style in self.styles:
                found[title, style] = named.count(style) / len(named)
            assert isinstance(right, Tensor)
            found[title, "right"] = float(right.float().mean())
            found[title, "examples"] = float(len(rows))
            found[title, "characters"] = sum(
                len(text.partition(OPEN)[0]) for text in texts(rows, "response")
            ) / len(rows)
        return found

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="examples", better="neither", unit="count"),
            Score(name="right", better="higher", unit="%", label="Answers that are the target"),
            Score(name="characters", better="neither", label="Characters of a rationale"),
            *(Score(name=style, better="neither", unit="%") for style in self.styles),
        )

    def rows(self) -> Sequence[str]:
        return [*self.lines]


@dataclass(frozen=True, kw_only=True)
class Preference(Metric):
    """What the student prefers, by style of the example's rationale, over all tasks that have it.

    `accuracy` and its standard error over drafts, the gold answer's `likelihood` (nats, mean over
    items), how often the rationale itself leads to the target (`right`), its length. In row "all":
    `repeats`, the correlation of the drafts' scores by accuracy on two halves of the items, and
    `likelihood_repeats` by likelihood; `agreement`, the correlation of both scores;
    `right_counts` and `length_counts`, correlations of the likelihood with correctness and length,
    within tasks, where they vary.
    """

    def __call__(self, models: Models, data: Data, *, work: Work) -> Values:
        found = dict[tuple[str, str], float]()
        rows = rows_of(work, "data")
        styles, given = texts(rows, "style"), texts(rows, "response")
        columns = {n: rows.columns[n] for n in ("correct", "likelihood", "right")}
        correct, likelihood, right = (c.double() for c in columns.values() if isinstance(c, Tensor))
        lengths = torch.tensor([float(len(text.partition(OPEN)[0])) for text in given]).double()
        for style in dict.fromkeys(styles):
            index = torch.tensor([one == style for one in styles])
            s = correct[index].mean(1)
            found[style, "accuracy"] = float(s.mean())
            if len(s) > 1:
                found[style, "standard_error"] = float(s.std() / len(s) ** 0.5)
            found[style, "likelihood"] = float(likelihood[index].mean())
            found[style, "right"] = float(right[index].mean())
            found[style, "characters"] = float(lengths[index].mean())
        names = texts(rows, "name")
        groups = [torch.tensor([one == name for one in names]) for name in dict.fromkeys(names)]
        s, ll = correct.mean(1), likelihood.mean(1)
        found["all", "accuracy"], found["all", "likelihood"] = float(s.mean()), float(ll.mean())
        found["all", "right"] = float(right.mean())
        pairs = {
            "repeats": (correct[:, ::2].mean(1), correct[:, 1::2].mean(1)),
            "likelihood_repeats": (likelihood[:, ::2].mean(1), likelihood[:, 1::2].mean(1)),
            "agreement": (s, ll),
            "right_counts": (ll, right),
            "length_counts": (ll, lengths),
        }
        for name, (x, y) in pairs.items():
            r = _within(x, y, groups)
            if r is not None:
                found["all", name] = r
        return found

    def scores(self) -> Sequence[Score]:
        described = {
            "accuracy": ("higher", "%", "One-shot accuracy"),
            "standard_error": ("neither", "%", "Its standard error"),
            "likelihood": ("higher", "nats", "Log-likelihood of the gold answer"),
            "right": ("higher", "%", "Rationales that lead to the target"),
            "characters": ("neither", "", "Characters of a rationale"),
            "repeats": ("neither", "", "r of two halves of the items, accuracy"),
            "likelihood_repeats": ("neither", "", "r of two halves, likelihood"),
            "agreement": ("neither", "", "r of accuracy and likelihood"),
            "right_counts": ("neither", "", "r of likelihood and correctness"),
            "length_counts": ("neither", "", "r of likelihood and length"),
        }
        return [
            Score(name=name, better=better, unit=unit, label=label)  # pyright: ignore[reportArgumentType]
            for name, (better, unit, label) in described.items()
        ]


def _within(x: Tensor, y: Tensor, groups: Sequence[Tensor]) -> float | None:
    """The correlation of x and y within groups; None where one of them does not vary."""
    centred = [torch.cat([each[g] - each[g].mean() for g in groups]) for each in (x, y)]
    spread = [float(each.norm()) for each in centred]
    if min(spread) < 1e-12:
        return None
    return float((centred[0] * centred[1]).sum()) / (spread[0] * spread[1])
