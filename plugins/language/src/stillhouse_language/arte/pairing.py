"""Step 3 of ARTE: preference pairs as tokens, with the reference model's log-probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from stillhouse.artifact import Built
from stillhouse.data.data import Column, Columns, Ragged, RowData, TensorData
from stillhouse.data.notes import note
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_language.arte.drafting import pairs_of
from stillhouse_language.arte.objectives import CHOSEN, REJECTED, pair_log_probs
from stillhouse_language.arte.preferences import (
    preference_scores,
    quartile_pairs,
    rationale_pairs,
)
from stillhouse_language.arte.reading import TASKS
from stillhouse_language.arte.tasks import Task, tagged, tasks_of, texts
from stillhouse_language.causal.model import CausalLM
from stillhouse_language.causal.ragged import ragged
from stillhouse_language.causal.tokens import Tokenizer, labels_of, tokenizer_of

Prefer = Literal["accuracy", "likelihood"]
Pair = tuple[str, str, str]  # prompt, chosen, rejected


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """The drafts of one task as a grid: Q questions, R rationales each, A items."""

    task: Task
    questions: Sequence[tuple[str, str]]  # question, target
    responses: Sequence[Sequence[str]]  # by question and style
    styles: Sequence[str]
    correct: Tensor  # [Q, R, A]
    likelihood: Tensor  # [Q, R, A]
    right: Tensor  # [Q, R], whether the rationale's answer is the target

    def scores(self, by: Prefer) -> tuple[Tensor, Tensor]:
        """s_r [Q, R] and s_q [Q]: shares of right answers, or mean log-probabilities."""
        if by == "accuracy":
            return preference_scores(self.correct)
        rationales = self.likelihood.mean(2).float()
        return rationales, rationales.mean(1)


def drafts_of(data: RowData, task: Task) -> Drafts:
    """One task's rows of "preferences" as a grid; raises BadData where a rationale is missing."""
    names = texts(data, "name")
    rows = [place for place, name in enumerate(names) if name == task.name]
    count, wide = len(rows) // max(len(task.styles), 1), len(task.styles)
    ids = data.columns["question_id"]
    assert isinstance(ids, Tensor)
    if (
        not rows
        or len(rows) != count * wide
        or any(int(ids[place]) != int(ids[rows[n - n % wide]]) for n, place in enumerate(rows))
    ):
        raise BadData(f"task '{task.name}': its drafts are no grid of questions and styles")
    named = texts(data, "style")
    if any(named[place] != [*task.styles][n % wide] for n, place in enumerate(rows)):
        raise BadData(f"task '{task.name}': its drafts are in other styles than the task's")
    questions, targets, given = (texts(data, key) for key in ("question", "target", "response"))
    index = torch.tensor(rows)

    def grid(name: str) -> Tensor:
        column = data.columns[name]
        assert isinstance(column, Tensor)
        return column[index].unflatten(0, (count, wide))

    return Drafts(
        task=task,
        questions=[(questions[rows[q * wide]], targets[rows[q * wide]]) for q in range(count)],
        responses=[[given[rows[q * wide + r]] for r in range(wide)] for q in range(count)],
        styles=[*task.styles],
        correct=grid("correct"),
        likelihood=grid("likelihood"),
        right=grid("right").bool(),
    )


@dataclass(frozen=True, kw_only=True)
class BuildPairs:
    """A `make`: pairs of questions (best against worst quarter) and of rationales (the most against
    the least preferred of a question, under the naive prompt, so that the teacher must choose the
    style), mixed, with the log-probabilities of the model at port "reference". A `held_out` share
    of the pairs goes to the port of that name, the rest to "train".

    `reverse` swaps chosen and rejected: the control. `filter_wrong` leaves out rationales whose
    answer is not the target. A pair longer than `longest` tokens, or the model's context, is left
    out, and a note says how many: trl's trainer drops such pairs too, unreported.
    """

    question_pairs: int
    by: Prefer = "accuracy"
    least: float = 0.0
    longest: int = 1024
    per_prompt: int = 5
    held_out: float = 0.2
    reverse: bool = False
    filter_wrong: bool = False

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        built: Built = inputs["reference"]
        tokenizer = tokenizer_of(built, where="pairs")
        assert isinstance(built.module, CausalLM)
        pairs = list[Pair]()
        for task in tasks_of(inputs[TASKS]).values():
            drafts = drafts_of(inputs["preferences"], task)
            pairs += self._rationales(drafts) + self._questions(drafts, inputs, work.rng)
        if self.reverse:
            pairs = [(prompt, rejected, chosen) for prompt, chosen, rejected in pairs]
        longest = min(self.longest, built.module.context)
        rows = fitting_pairs(tokenizer, pairs, longest)
        order = torch.randperm(len(rows), generator=work.rng).tolist()
        rows = [rows[i] for i in order]
        kept = max(1, round(self.held_out * len(rows)))
        if kept >= len(rows):
            raise BadData(f"pairs: {len(rows)}, too few to hold {kept} out; draft more questions")
        columns = pair_columns(rows)
        columns |= self._references(built.module.to(work.device), columns, work)
        index = torch.arange(len(rows))
        whole = TensorData(columns)
        parts = {"held_out": index[:kept], "train": index[kept:]}
        return {name: _without_id(whole.select(part)) for name, part in parts.items()}

    def _rationales(self, drafts: Drafts) -> list[Pair]:
        scores, _ = drafts.scores(self.by)
        if self.filter_wrong:
            scores = scores.masked_fill(~drafts.right, torch.nan)
        found: list[list[int]] = rationale_pairs(scores, least=self.least).tolist()
        return [
            (
                drafts.task.naive(drafts.questions[q][0]),
                drafts.responses[q][best],
                drafts.responses[q][worst],
            )
            for q, best, worst in found
        ]

    def _questions(self, drafts: Drafts, inputs: Mapping[str, Any], rng: Generator) -> list[Pair]:
        if not self.question_pairs:
            return []
        _, scores = drafts.scores(self.by)
        seeds = pairs_of(inputs["seeds"], drafts.task.name)
        prompt = drafts.task.questions(seeds, self.per_prompt)
        listed = [tagged(1, *each) for each in drafts.questions]
        found = quartile_pairs(scores, k=self.question_pairs, rng=rng)
        return [(prompt, listed[best], listed[worst]) for best, worst in found.tolist()]

    def _references(self, model: CausalLM, columns: Columns, work: Work) -> dict[str, Column]:
        whole = TensorData(columns)

        def compute(first: int, last: int, rng: Generator) -> Columns:  # noqa: ARG001
            batch = whole.rows(torch.arange(first, last))
            with torch.no_grad():
                moved = {name: value.to(work.device) for name, value in batch.items()}
                chosen, rejected = pair_log_probs(model, moved)
            return {CHOSEN: chosen.cpu(), REJECTED: rejected.cpu()}

        parts = [*work.parts("references", len(whole), compute, of=self, size=8)]
        found = dict[str, Column]()
        for side in (CHOSEN, REJECTED):
            several = [part[side] for part in parts]
            found[f"{side}.reference"] = torch.cat([s for s in several if isinstance(s, Tensor)])
        return found


Row = tuple[list[int], list[int], list[int]]  # tokens of prompt, chosen, rejected


def fitting_pairs(tokenizer: Tokenizer, pairs: Sequence[Pair], longest: int) -> list[Row]:
    """Pairs as tokens; those over `longest` are left out with a note. Raises BadData for an empty
    response, or where none is left.
    """
    rows, long = list[Row](), 0
    for prompt, chosen, rejected in pairs:
        before = tokenizer.prompt(prompt)
        best = [*tokenizer.ids(chosen), tokenizer.end]
        worst = [*tokenizer.ids(rejected), tokenizer.end]
        if not before or min(len(best), len(worst)) < 2:
            raise BadData("pairs: a prompt or response is empty")
        if len(before) + max(len(best), len(worst)) > longest:
            long += 1
            continue
        rows.append((before, best, worst))
    if long:
        note(f"pairs: {long} of {len(pairs)} left out, longer than {longest:,} tokens")
    if len(rows) < 2:
        raise BadData(
            f"pairs: {len(rows)} of {len(pairs)} are left to align by; drafts score alike or are "
            f"longer than {longest:,} tokens"
        )
    return rows


def pair_columns(rows: Sequence[Row]) -> dict[str, Column]:
    """The columns that the objective `Dpo` reads, but for the references."""
    found = dict[str, Column]()
    for place, side in enumerate((CHOSEN, REJECTED), 1):
        whole = [[*row[0], *row[place]] for row in rows]
        labels = ragged([labels_of(len(row[0]), t) for row, t in zip(rows, whole, strict=True)])
        found[side] = ragged(whole)
        found[f"{side}.labels"] = Ragged(values=labels.values.long(), offsets=labels.offsets)
    return found


def _without_id(columns: Columns) -> Columns:
    return {name: column for name, column in columns.items() if name != "id"}
