"""Step 4 of ARTE: the data that a student is fine-tuned on, a way of making them a row of the
report.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from stillhouse.artifact import Built
from stillhouse.data.data import Columns, RowData
from stillhouse.data.notes import note
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_language.arte.drafting import (
    ModelWriter,
    candidates_of,
    known_questions,
    new_questions,
    pairs_of,
    written_in,
)
from stillhouse_language.arte.pairing import Drafts, Prefer, drafts_of
from stillhouse_language.arte.reading import TASKS
from stillhouse_language.arte.tasks import (
    CLOSE,
    Task,
    parse_answer,
    response,
    same_answer,
    tagged,
    tasks_of,
    texts,
)
from stillhouse_language.causal.generation import Sampling, option_log_probs
from stillhouse_language.causal.model import CausalLM
from stillhouse_language.causal.tokens import tokenizer_of, trainable

Pick = Literal["best", "worst", "random"]
Example = tuple[str, str, str, str]  # task, question, response, style or ""


def example_columns(
    examples: Sequence[Example],
    right: Sequence[bool],
    tasks: Mapping[str, Task],
    student: Built,
    *,
    where: str,
) -> Mapping[str, Columns]:
    """The port "train": tokens and labels of the student, with the texts beside."""
    if not examples:
        raise BadData(f"{where}: no example to fine-tune on")
    read = tokenizer_of(student, where=where)
    assert isinstance(student.module, CausalLM)
    rows = [(tasks[name].naive(question), text) for name, question, text, _ in examples]
    columns = trainable(read, rows, context=student.module.context, where=where)
    keys = ("name", "question", "response", "style")
    listed = {key: [one[i] for one in examples] for i, key in enumerate(keys)}
    return {"train": {**columns, **listed, "right": torch.tensor([*right])}}


@dataclass(frozen=True, kw_only=True)
class PickDrafts:
    """A `make`: each draft question with one of its rationales: that with the best score (the paper
    calls it the original teacher's), the worst, or one at random.
    """

    pick: Pick
    by: Prefer = "accuracy"

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        tasks, examples, right = tasks_of(inputs[TASKS]), list[Example](), list[bool]()
        for task in tasks.values():
            drafts = drafts_of(inputs["preferences"], task)
            for question, place in enumerate(self._places(drafts, work.rng)):
                wording, _ = drafts.questions[question]
                text = drafts.responses[question][place]
                if not parse_answer(text):
                    continue
                examples.append((task.name, wording, text, drafts.styles[place]))
                right.append(bool(drafts.right[question, place]))
        count = sum(len(drafts_of(inputs["preferences"], t).questions) for t in tasks.values())
        if len(examples) < count:
            note(f"{count - len(examples)} of {count} examples left out: no answer in their tag")
        return example_columns(examples, right, tasks, inputs["student"], where="data")

    def _places(self, drafts: Drafts, rng: Generator) -> list[int]:
        scores, _ = drafts.scores(self.by)
        if self.pick == "random":
            found: list[int] = torch.randint(
                0, scores.shape[1], (len(scores),), generator=rng
            ).tolist()
            return found
        ends = scores.argmax(1) if self.pick == "best" else scores.argmin(1)
        return ends.tolist()


@dataclass(frozen=True, kw_only=True)
class WriteExamples:
    """A `make`: the model at port "teacher" writes `questions` new questions a task, by the same
    prompt as for drafts, and a rationale for each under the naive prompt, the likeliest one.

    With `old_questions`, those of the drafts instead of new ones; with `old_rationales` none is
    written, and new questions get the un-aligned teacher's, at port "original": the paper's
    ablations. What has no answer in its tag is left out, with a note.
    """

    questions: int
    per_prompt: int = 5
    rounds: int = 40
    prompts: int = 8
    temperature: float = 1.0
    longest_question: int = 128
    longest: int = 256
    old_questions: bool = False
    old_rationales: bool = False

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        teacher = ModelWriter.of(inputs["teacher"], work.device, where="data")
        writer = teacher
        if self.old_rationales:
            writer = ModelWriter.of(inputs["original"], work.device, where="data")
        tasks, examples, right = tasks_of(inputs[TASKS]), list[Example](), list[bool]()
        for task in tasks.values():
            pairs = self._questions(inputs, teacher, task, work)

            def compute(
                first: int,
                last: int,
                rng: Generator,
                task: Task = task,
                pairs: Sequence[tuple[str, str]] = pairs,
            ) -> Columns:
                prompts = [task.naive(question) for question, _ in pairs[first:last]]
                sampling = Sampling(max_new=self.longest, stop=CLOSE)
                return {"text": writer.write(prompts, sampling=sampling, rng=rng)}

            parts = work.parts(f"examples-{task.name}", len(pairs), compute, of=self, size=32)
            written = [text for part in parts for text in written_in(part)]
            for (question, target), text in zip(pairs, written, strict=True):
                if answer := parse_answer(text):
                    examples.append((task.name, question, text, ""))
                    right.append(same_answer(answer, target))
            if len(written) > len(examples):
                note(f"task '{task.name}': {len(written)} written, with an answer {len(examples)}")
        return example_columns(examples, right, tasks, inputs["student"], where="data")

    def _questions(
        self, inputs: Mapping[str, Any], teacher: ModelWriter, task: Task, work: Work
    ) -> Sequence[tuple[str, str]]:
        if self.old_questions:
            return drafts_of(inputs["preferences"], task).questions
        known = known_questions(inputs, task.name)
        seeds = pairs_of(inputs["seeds"], task.name)
        return new_questions(self, teacher, task, seeds, known, work, of=self)


@dataclass(frozen=True, kw_only=True)
class ChooseExamples:
    """A `make`: the model at port "teacher" chooses from the pool what it would write: `questions`
    questions a task, and one of the candidates for each.

    Where the port "reference" is there, the model that the teacher was aligned from, the choice is
    by DPO's implicit reward, ln pi(y | x) - ln pi_ref(y | x) (Rafailov et al. 2023, eq. 5, without
    beta and the partition function, which are the same for all of a prompt): what alignment
    taught, whatever a text's length. Without it, by the mean log-probability of a token: what the
    model itself finds likely. Questions are judged under the prompt for new ones,
    rationales under the naive prompt. At most `judged` questions of the pool are looked at.
    """

    questions: int
    judged: int
    per_prompt: int = 5

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        pool: RowData = inputs["pool"]
        models = [ModelWriter.of(inputs["teacher"], work.device, where="data")]
        if "reference" in inputs:
            models.append(ModelWriter.of(inputs["reference"], work.device, where="data"))
        tasks, examples, right = tasks_of(inputs[TASKS]), list[Example](), list[bool]()
        for task in tasks.values():
            rows = [i for i, name in enumerate(texts(pool, "name")) if name == task.name]
            rows = rows[: self.judged]
            if len(rows) < self.questions:
                raise BadData(
                    f"task '{task.name}': {len(rows)} questions in the pool, {self.questions} "
                    "are to be chosen"
                )
            chosen = self._questions(models, task, inputs, rows, work)
            for row, style in zip(
                chosen, self._styles(models, task, pool, chosen, work), strict=True
            ):
                answer = texts(pool, "answer")[row]
                text = response(candidates_of(pool, row, task)[style], answer)
                examples.append((task.name, texts(pool, "question")[row], text, style))
                right.append(True)  # candidates of data lead to the data's answer
        return example_columns(examples, right, tasks, inputs["student"], where="data")

    def _questions(
        self,
        models: Sequence[ModelWriter],
        task: Task,
        inputs: Mapping[str, Any],
        rows: Sequence[int],
        work: Work,
    ) -> list[int]:
        pool: RowData = inputs["pool"]
        prompt = task.questions(pairs_of(inputs["seeds"], task.name), self.per_prompt)

        def compute(first: int, last: int, rng: Generator) -> Columns:  # noqa: ARG001
            listed = [
                tagged(1, texts(pool, "question")[row], texts(pool, "answer")[row])
                for row in rows[first:last]
            ]
            return {"score": judged(models, prompt, [listed])[0]}

        parts = work.parts(f"judged-{task.name}", len(rows), compute, of=self, size=16)
        scores = torch.cat([s for part in parts if isinstance(s := part["score"], Tensor)])
        order = scores.sort(descending=True, stable=True).indices[: self.questions]
        return [rows[place] for place in order.sort().values.tolist()]

    def _styles(
        self,
        models: Sequence[ModelWriter],
        task: Task,
        pool: RowData,
        rows: Sequence[int],
        work: Work,
    ) -> list[str]:
        styles = [*task.styles]

        def compute(first: int, last: int, rng: Generator) -> Columns:  # noqa: ARG001
            best = list[int]()
            for row in rows[first:last]:
                question, answer = (texts(pool, key)[row] for key in ("question", "answer"))
                candidates = candidates_of(pool, row, task)
                listed = [response(candidates[style], answer) for style in styles]
                (scores,) = judged(models, task.naive(question), [listed])
                best.append(int(scores.argmax()))
            return {"style": torch.tensor(best)}

        parts = work.parts(f"styles-{task.name}", len(rows), compute, of=self, size=4)
        places = torch.cat([s for part in parts if isinstance(s := part["style"], Tensor)])
        return [styles[place] for place in places.tolist()]


def judged(
    models: Sequence[ModelWriter], prompt: str, listed: Sequence[Sequence[str]]
) -> list[Tensor]:
    """Of responses to one prompt: the implicit reward by two models, teacher and reference, or the
    mean log-probability of a token by one.
    """
    found = list[list[Tensor]]()
    for model in models:
        read = model.tokenizer
        options = [[[*read.ids(text), read.end] for text in each] for each in listed]
        before = read.prompt(prompt)
        log_p = option_log_probs(
            model.model, [before[-1:]] * len(listed), options, prefix=before[:-1], batch=16
        )
        if len(models) == 1:
            lengths = [torch.tensor([len(o) for o in each]) for each in options]
            log_p = [p / n for p, n in zip(log_p, lengths, strict=True)]
        found.append(log_p)
    if len(found) == 1:
        return found[0]
    return [aligned - before for aligned, before in zip(*found, strict=True)]
