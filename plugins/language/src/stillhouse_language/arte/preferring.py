"""Step 2 of ARTE: which items to try drafts on, and how well the student does with each draft."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from stillhouse.data.data import Columns, RowData
from stillhouse.data.notes import note
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_language.arte.answering import Answering, Student
from stillhouse_language.arte.drafting import pairs_of
from stillhouse_language.arte.irt import fit_2pl
from stillhouse_language.arte.reading import TASKS
from stillhouse_language.arte.tasks import Task, response, tasks_of, texts

Items = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class ChooseItems:
    """A `make`: the `count` validation items a task that discriminate subjects best, by the 2PL
    model (`fit_2pl`). Subjects are the models at `models`, each with every number of examples in
    `shots`, `draws` times with other examples of the seeds and other validation items left out.

    Ports "items" (name, question, answer, discrimination) and "subjects" (right answers a subject).
    Examples are the seeds' answers without a rationale: an item's question is the same for all.
    """

    count: int
    models: tuple[str, ...]
    shots: tuple[int, ...]
    draws: int
    answering: Answering

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        chosen = dict[str, list[Any]](name=[], question=[], answer=[], discrimination=[])
        kept = dict[str, list[Any]](name=[], subject=[], right=[])
        for task in tasks_of(inputs[TASKS]).values():
            items = pairs_of(inputs["validation"], task.name)
            seeds = pairs_of(inputs["seeds"], task.name)
            subjects = [
                (port, number, draw)
                for port in self.models
                for number in self.shots
                for draw in range(self.draws if number else 1)
            ]
            right = self._matrix(inputs, task, seeds, items, subjects, work)
            fitted = fit_2pl(right > 0.5)
            for place in fitted.most_discriminating(self.count).tolist():
                chosen["name"].append(task.name)
                chosen["question"].append(items[place][0])
                chosen["answer"].append(items[place][1])
                chosen["discrimination"].append(float(fitted.discrimination[place]))
            kept["name"] += [task.name] * len(subjects)
            kept["subject"] += [f"{port}, {n} examples, draw {d}" for port, n, d in subjects]
            kept["right"] += right.mean(1).tolist()
        return {"items": _numbers(chosen), "subjects": _numbers(kept)}

    def _matrix(
        self,
        inputs: Mapping[str, Any],
        task: Task,
        seeds: Items,
        items: Items,
        subjects: Sequence[tuple[str, int, int]],
        work: Work,
    ) -> Tensor:
        """[A, I] right answers."""

        def compute(first: int, last: int, rng: Generator) -> Columns:  # noqa: ARG001
            rows = list[Tensor]()
            for port, number, draw in subjects[first:last]:
                student = Student.of(inputs[port], port, work)
                order = torch.randperm(len(seeds), generator=Generator().manual_seed(draw)).tolist()
                shots = [seeds[i] for i in order[:number]]
                before = task.opening() + "".join(task.shown(q, response("", a)) for q, a in shots)
                rows.append(self.answering.answers(student, task, before, items).right)
            return {"right": torch.stack(rows)}

        parts = work.parts(f"subjects-{task.name}", len(subjects), compute, of=self, size=1)
        return torch.cat([_tensor(part["right"]) for part in parts])


@dataclass(frozen=True, kw_only=True)
class CollectPreferences:
    """A `make`: each draft as the one example before every item of its task, answered by the model
    at port "student". Ports "preferences": a row a draft with its columns, `correct` and
    `likelihood` [A].

    Drafts that leave no room for an item in the student's context are refused. Raises BadData
    where all drafts of a task score alike: there is no preference to learn.
    """

    answering: Answering

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        drafts: RowData = inputs["drafts"]
        tasks = tasks_of(inputs[TASKS])
        student = Student.of(inputs["student"], "student", work)
        items = {name: pairs_of(inputs["items"], name) for name in tasks}
        if len({len(each) for each in items.values()}) != 1:
            raise BadData("preferences: every task needs as many items")
        names, questions, given = (texts(drafts, key) for key in ("name", "question", "response"))

        def compute(first: int, last: int, rng: Generator) -> Columns:  # noqa: ARG001
            found = [
                self.answering.answers(
                    student,
                    tasks[names[row]],
                    tasks[names[row]].example(questions[row], given[row]),
                    items[names[row]],
                )
                for row in range(first, last)
            ]
            return {
                "correct": torch.stack([each.right for each in found]),
                "likelihood": torch.stack([each.likelihood for each in found]),
            }

        parts = [*work.parts("drafts", len(drafts), compute, of=self, size=4)]
        correct, likelihood = (
            torch.cat([_tensor(part[key]) for part in parts]) for key in ("correct", "likelihood")
        )
        for name in tasks:
            rows = torch.tensor([one == name for one in names])
            _check_spread(name, correct[rows], likelihood[rows], tasks[name])
        columns = {k: v for k, v in drafts.columns.items() if k != "id"}
        return {"preferences": {**columns, "correct": correct, "likelihood": likelihood}}


def _check_spread(name: str, correct: Tensor, likelihood: Tensor, task: Task) -> None:
    mean, chance = float(correct.mean()), 1 / len(task.options) if task.options else 0.0
    if mean <= chance:
        note(
            f"task '{name}': with one example the student is right as often as chance or less; its "
            "accuracy is no preference, look at the likelihood"
        )
    if float(likelihood.mean(1).std()) == 0:
        raise BadData(f"task '{name}': all drafts score alike; there is no preference to learn")


def _tensor(column: Any) -> Tensor:  # Any: a column of a kept part
    assert isinstance(column, Tensor)
    return column


def _numbers(columns: Mapping[str, list[Any]]) -> Columns:
    """Lists as columns, numbers as tensors."""
    return {
        key: rows if isinstance(rows[0], str) else torch.tensor(rows, dtype=torch.float64)
        for key, rows in columns.items()
    }
