"""A student's answers to items behind one worked example, each set kept by what it depends on."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stillhouse.artifact import Built
from stillhouse.checkpoint import Conditions
from stillhouse.errors import BadData
from stillhouse.files import write_text
from stillhouse.work import Work
from stillhouse_language.arte.drafting import ModelWriter
from stillhouse_language.arte.tasks import CLOSE, OPEN, Task, parse_answer, same_answer
from stillhouse_language.causal.generation import Sampling, generate, option_log_probs

Mode = Literal["generate", "choose"]
KEPT = "arte-answers"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Of each item: whether the answer is right, and ln p of the gold answer in nats."""

    right: Tensor  # [A], float64: 0 or 1
    likelihood: Tensor  # [A], float64

    @property
    def record(self) -> dict[str, list[float]]:
        return {"right": self.right.tolist(), "likelihood": self.likelihood.tolist()}


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How a student answers: "generate" writes at temperature 0 and the answer tag is read (one
    that is missing or empty is wrong; ARTE's way); "choose" takes the option that is likeliest in
    the tag, right behind the question.

    The gold answer's log-probability is that in the tag, behind what the student wrote before it
    (generate) or behind the question (choose). A task without options has no choice to make: its
    answers are right nowhere by "choose", and its likelihoods alone say something.
    """

    mode: Mode
    longest: int = 128  # tokens of an answer with its rationale
    batch: int = 64

    def answers(
        self,
        student: "Student",
        task: Task,
        before: str,
        items: Sequence[tuple[str, str]],
    ) -> Answered:
        """Of the items (question and answer) behind the text `before`."""
        key = student.key(self, task, before, items)
        kept = student.recall(key)
        if kept is not None:
            return kept
        found = self.measured(student.writer, task, before, items)
        student.remember(key, found)
        return found

    def measured(
        self, writer: ModelWriter, task: Task, before: str, items: Sequence[tuple[str, str]]
    ) -> Answered:
        """The same, nothing kept."""
        answer = self._written if self.mode == "generate" else self._chosen
        return answer(writer, task, before, items)

    def _written(
        self, writer: ModelWriter, task: Task, before: str, items: Sequence[tuple[str, str]]
    ) -> Answered:
        read, prompts = writer.tokenizer, [task.item(question) for question, _ in items]
        prefix = read.prompt(before)
        written = list[str]()
        for first in range(0, len(prompts), self.batch):
            written += generate(
                writer.model,
                read,
                [read.ids(text) for text in prompts[first : first + self.batch]],
                sampling=Sampling(max_new=self.longest, stop=CLOSE),
                rng=torch.Generator(),  # nothing is drawn at temperature 0
                prefix=prefix,
            )
        right = [
            same_answer(parse_answer(text), answer)
            for text, (_, answer) in zip(written, items, strict=True)
        ]
        opened = [
            question + (text.partition(OPEN)[0] if OPEN in text else f"{text.rstrip()} ") + OPEN
            for question, text in zip(prompts, written, strict=True)
        ]
        gold = [[read.ids(answer)] for _, answer in items]
        log_p = self._log_probs(writer, [read.ids(text) for text in opened], gold, prefix)
        return Answered(
            right=torch.tensor(right, dtype=torch.float64),
            likelihood=torch.stack([each[0] for each in log_p]).double(),
        )

    def _chosen(
        self, writer: ModelWriter, task: Task, before: str, items: Sequence[tuple[str, str]]
    ) -> Answered:
        read = writer.tokenizer
        contexts = [read.ids(f"{task.item(question)} {OPEN}") for question, _ in items]
        wanted = [self._options(task, question, answer) for question, answer in items]
        options = [[read.ids(option) for option in each] for each in wanted]
        log_p = self._log_probs(writer, contexts, options, read.prompt(before))
        right, gold = list[float](), list[float]()
        for each, named, (_, answer) in zip(log_p, wanted, items, strict=True):
            place = next(i for i, option in enumerate(named) if same_answer(option, answer))
            gold.append(float(each[place]))
            right.append(float(len(named) > 1 and int(each.argmax()) == place))
        return Answered(
            right=torch.tensor(right, dtype=torch.float64),
            likelihood=torch.tensor(gold, dtype=torch.float64),
        )

    def _log_probs(
        self,
        writer: ModelWriter,
        contexts: Sequence[list[int]],
        options: Sequence[Sequence[list[int]]],
        prefix: list[int],
    ) -> list[Tensor]:
        return option_log_probs(writer.model, contexts, options, prefix=prefix, batch=self.batch)

    def _options(self, task: Task, question: str, answer: str) -> Sequence[str]:
        """The labels that an item offers; without labels the answer alone."""
        if not task.options:
            return [answer]
        named = [o for o in task.options if len(o) > 1 or f"({o})" in question] or task.options
        if not any(same_answer(option, answer) for option in named):
            raise BadData(
                f"task '{task.name}': answer '{answer}' is none of its options {', '.join(named)}"
            )
        return named


@dataclass(frozen=True, kw_only=True)
class Student:
    """A model that answers, and where its answers are kept: by model, prompt and draft, so that
    another variant of a run computes none again. Nowhere outside a stage.
    """

    writer: ModelWriter
    digest: str
    folder: Path | None
    conditions: str

    @classmethod
    def of(cls, built: Built, port: str, work: Work) -> "Student":
        """That at a port of the running stage."""
        digest = work.ctx.digests.get(port, "")
        # the bits of a sum depend on these
        here = json.dumps(dataclasses.asdict(Conditions.of(work.ctx)), sort_keys=True, default=str)
        return cls(
            writer=ModelWriter.of(built, work.device, where=f"port '{port}'"),
            digest=digest,
            folder=work.ctx.caches / KEPT / digest[:16] if digest else None,
            conditions=here,
        )

    def key(self, how: Answering, task: Task, before: str, items: Sequence[tuple[str, str]]) -> str:
        """What a set of answers depends on."""
        parts: list[Any] = [
            self.digest, self.conditions, dataclasses.asdict(how), list(task.options), before,
            [*map(list, items)],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def recall(self, key: str) -> Answered | None:
        """Kept answers; None where there are none, or none that can be read."""
        if self.folder is None:
            return None
        try:
            record = json.loads((self.folder / f"{key}.json").read_text())
            right, likelihood = (
                torch.tensor(record[name], dtype=torch.float64) for name in ("right", "likelihood")
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Answered(right=right, likelihood=likelihood)

    def remember(self, key: str, found: Answered) -> None:
        """Keep answers."""
        if self.folder is not None:
            write_text(self.folder / f"{key}.json", json.dumps(found.record))
