"""Step 1 of ARTE: draft questions, and for each several rationales in different styles.

A teacher writes both; or an endpoint of the user's does; or they are taken from data that hold
candidates.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Generator

from stillhouse.artifact import Built
from stillhouse.data.data import Columns, RowData
from stillhouse.data.notes import note
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_language.arte.endpoint import Endpoint
from stillhouse_language.arte.reading import TASKS
from stillhouse_language.arte.tasks import (
    CLOSE,
    Task,
    fingerprint,
    parse_answer,
    parse_questions,
    response,
    same_answer,
    tasks_of,
    texts,
)
from stillhouse_language.causal.generation import Sampling, generate
from stillhouse_language.causal.model import CausalLM
from stillhouse_language.causal.tokens import Tokenizer, tokenizer_of

NAIVE = "naive"


class Writer(Protocol):
    """Continues prompts, a text a prompt."""

    def write(self, prompts: Sequence[str], *, sampling: Sampling, rng: Generator) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class ModelWriter:
    """A causal language model of this plugin with its tokenizer, on a device."""

    model: CausalLM
    tokenizer: Tokenizer

    @classmethod
    def of(cls, built: Built, device: str, *, where: str) -> "ModelWriter":
        """Of a stage's opened model; raises MissingData or BadData."""
        tokenizer = tokenizer_of(built, where=where)
        if not isinstance(built.module, CausalLM):
            raise BadData(f"{where}: {type(built.module).__name__} is no causal language model")
        return cls(model=built.module.to(device).eval(), tokenizer=tokenizer)

    def write(self, prompts: Sequence[str], *, sampling: Sampling, rng: Generator) -> list[str]:
        """Continues prompts in one batch; what all begin with goes through the model once."""
        rows = [self.tokenizer.prompt(prompt) for prompt in prompts]
        shared = _common(rows)
        return generate(
            self.model,
            self.tokenizer,
            [row[shared:] for row in rows],
            sampling=sampling,
            rng=rng,
            prefix=rows[0][:shared],
        )


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all rows share, leaving each at least its last one."""
    longest = min(map(len, rows)) - 1
    for place in range(longest):
        if any(row[place] != rows[0][place] for row in rows):
            return place
    return max(longest, 0)


@dataclass(frozen=True, kw_only=True)
class Elicit:
    """A `make`: `questions` draft questions a task, each with a rationale in every style.

    The writer is the model at port "teacher", or the endpoint. Questions come by one prompt with
    the seeds, `per_prompt` at a time, sampled until there are enough: those that the test, the
    validation or the seeds have, or that are there already, are left out. Ports "drafts".
    """

    questions: int
    per_prompt: int = 5
    rounds: int = 40
    prompts: int = 8  # a round
    temperature: float = 1.0
    longest_question: int = 128  # tokens of a question with its answer and tags
    longest: int = 256  # tokens of a rationale
    endpoint: Endpoint | None = None  # None: the model at port "teacher"

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        writer = self.endpoint or ModelWriter.of(inputs["teacher"], work.device, where="drafts")
        tasks = tasks_of(inputs[TASKS])
        rows = list[dict[str, Any]]()
        for task in tasks.values():
            known = known_questions(inputs, task.name)
            seeds = pairs_of(inputs["seeds"], task.name)
            pairs = new_questions(self, writer, task, seeds, known, work, of=self)
            rows += self._rationales(writer, task, pairs, work)
        return {"drafts": draft_columns(rows)}

    def _rationales(
        self, writer: Writer, task: Task, pairs: list[tuple[str, str]], work: Work
    ) -> list[dict[str, Any]]:
        sampling = Sampling(max_new=self.longest, temperature=self.temperature, stop=CLOSE)
        rows = list[dict[str, Any]]()
        for place, style in enumerate(task.styles):

            def compute(first: int, last: int, rng: Generator, style: str = style) -> Columns:
                prompts = [task.styled(style, question) for question, _ in pairs[first:last]]
                return {"text": writer.write(prompts, sampling=sampling, rng=rng)}

            written = [
                text
                for part in work.parts(
                    f"rationales-{task.name}-{place}", len(pairs), compute, of=self, size=32
                )
                for text in written_in(part)
            ]
            for question, ((text, target), made) in enumerate(zip(pairs, written, strict=True)):
                rows.append(draft_row(task, question, text, target, style, str(made)))
        return sorted(rows, key=lambda row: row["question_id"])  # stable: styles in their order


def written_in(part: Columns) -> list[str]:
    """The texts of a kept part."""
    found = part["text"]
    assert isinstance(found, list)
    return found


def draft_row(
    task: Task, number: int, question: str, target: str, style: str, text: str
) -> dict[str, Any]:
    """A draft as a row; its rationale is right where its answer is the target."""
    answer = parse_answer(text)
    return {
        "name": task.name,
        "question_id": number,
        "question": question,
        "target": target,
        "style": style,
        "response": text,
        "answer": answer,
        "right": same_answer(answer, target),
    }


def draft_columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Rows of drafts as columns; raises BadData for none."""
    import torch

    if not rows:
        raise BadData("drafts: none were made")
    found: dict[str, Any] = {
        key: [row[key] for row in rows]
        for key in ("name", "question", "target", "style", "response", "answer")
    }
    found["question_id"] = torch.tensor([row["question_id"] for row in rows])
    found["right"] = torch.tensor([row["right"] for row in rows])
    return found


@dataclass(frozen=True, kw_only=True)
class TakeDrafts:
    """A `make`: the first `questions` of the pool a task as draft questions, their candidates as
    rationales. Ports "drafts" and "pool", what is left of it. Raises BadData where a question has
    other candidates than the task has styles.
    """

    questions: int

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        pool, rows = inputs["pool"], list[dict[str, Any]]()
        left = dict[str, list[str]](name=[], question=[], answer=[], candidates=[])
        for task in tasks_of(inputs[TASKS]).values():
            own = [i for i, name in enumerate(texts(pool, "name")) if name == task.name]
            if len(own) <= self.questions:
                raise BadData(
                    f"task '{task.name}': a pool of {len(own)} questions for {self.questions} "
                    "drafts leaves none to choose from; set fewer drafts or a larger pool"
                )
            for number, place in enumerate(own[: self.questions]):
                question, answer = (texts(pool, key)[place] for key in ("question", "answer"))
                for style, text in candidates_of(pool, place, task).items():
                    made = response(text, answer)
                    rows.append(draft_row(task, number, question, answer, style, made))
            for place in own[self.questions :]:
                for key, column in left.items():
                    column.append(texts(pool, key)[place])
        return {"drafts": draft_columns(rows), "pool": left}


def candidates_of(pool: RowData, place: int, task: Task) -> dict[str, str]:
    """The candidates of a row of the pool, in the order of the task's styles."""
    found: Any = json.loads(texts(pool, "candidates")[place])
    if set(found) != set(task.styles):
        raise BadData(
            f"task '{task.name}': question '{texts(pool, 'question')[place][:60]}' has the "
            f"candidates {', '.join(found) or 'none'}; each style of the task needs one "
            f"({', '.join(task.styles)})"
        )
    return {style: str(found[style]) for style in task.styles}


def pairs_of(data: RowData, name: str) -> list[tuple[str, str]]:
    """Questions and answers of one task."""
    every = zip(texts(data, "name"), texts(data, "question"), texts(data, "answer"), strict=True)
    return [(question, answer) for task, question, answer in every if task == name]


def known_questions(inputs: Mapping[str, Any], name: str) -> set[str]:
    """What a new question must not be: one of the seeds, the validation or the test."""
    return {
        fingerprint(question)
        for part in ("seeds", "validation", "test")
        for question, _ in pairs_of(inputs[part], name)
    }


class QuestionSampling(Protocol):
    """Settings of sampling new questions."""

    @property
    def questions(self) -> int: ...
    @property
    def per_prompt(self) -> int: ...
    @property
    def rounds(self) -> int: ...
    @property
    def prompts(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def longest_question(self) -> int: ...


def new_questions(
    how: QuestionSampling,
    writer: Writer,
    task: Task,
    seeds: Sequence[tuple[str, str]],
    known: set[str],
    work: Work,
    *,
    of: object,
) -> list[tuple[str, str]]:
    """Questions with their targets, each once and none of `known`; each round of prompts is kept
    when it is done. Raises BadData where `rounds` do not give enough.
    """
    prompt = task.questions(seeds, how.per_prompt)
    sampling = Sampling(
        max_new=how.per_prompt * how.longest_question, temperature=how.temperature, stop=""
    )
    seen, found, written = set(known), list[tuple[str, str]](), 0

    def compute(first: int, last: int, rng: Generator) -> Columns:
        return {"text": writer.write([prompt] * (last - first), sampling=sampling, rng=rng)}

    for number in range(how.rounds):
        name = f"questions-{task.name}-{number}"
        for part in work.parts(name, how.prompts, compute, of=of, size=how.prompts):
            for text in written_in(part):
                for question, target in parse_questions(str(text)):
                    written += 1
                    if (mark := fingerprint(question)) not in seen:
                        seen.add(mark)
                        found.append((question, target))
        if len(found) >= how.questions:
            if written > len(found):
                note(
                    f"task '{task.name}': {written - len(found)} of {written} written questions "
                    "were left out: in the test, validation or seeds, or there already"
                )
            return found[: how.questions]
    raise BadData(
        f"task '{task.name}': {len(found)} new questions after {how.rounds * how.prompts} prompts, "
        f"{how.questions} requested; the teacher may not keep to the form, or request fewer"
    )
