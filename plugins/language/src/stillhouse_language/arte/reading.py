"""Tasks and their questions from where a user has them, in parts that share no question."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from stillhouse.data.data import Columns
from stillhouse.data.notes import note
from stillhouse.errors import BadData, BadSetting, MissingData
from stillhouse.work import Work
from stillhouse_language.arte.arithmetic import STYLES, questions, total
from stillhouse_language.arte.arithmetic import TASK as ARITHMETIC
from stillhouse_language.arte.published import (
    PUBLISHED,
    Question,
    published_rows,
    read_jsonl,
)
from stillhouse_language.arte.tasks import Task, fingerprint, parse_answer, task_columns, task_of

PARTS = ("seeds", "validation", "test", "pool")
TASKS = "tasks"
OWN = "task.json"


@dataclass(frozen=True, kw_only=True)
class ReadTasks:
    """A `make`: the tasks, and for each of them `seeds` examples for prompts, `validation` items
    that drafts are tried on, `test` questions, and a `pool` of questions with candidate rationales
    that a teacher may choose from. No question is in two parts.

    The port "source": a folder with a folder of each task, published ones (commonsenseqa,
    strategyqa, gsm8k) or a user's own, of task.json (name, description, options, styles) and
    train.jsonl and test.jsonl (question, answer and, for the pool, candidates by style). Without
    the port: the built-in arithmetic. Rows are drawn by the stage's seed; where a task has fewer
    than requested, the pool is what is left, with a note.
    """

    tasks: tuple[str, ...]
    counts: Mapping[str, int]

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        found = {
            name: (ARITHMETIC, self._sums(work.rng))
            if name == ARITHMETIC.name
            else self._read(_folder(inputs), name, work.rng)
            for name in self.tasks
        }
        parts = {part: _table(found, part) for part in PARTS if self.counts.get(part, 0)}
        return {TASKS: task_columns([task for task, _ in found.values()]), **parts}

    def _sums(self, rng: Generator) -> dict[str, list[Question]]:
        every = questions(sum(self.counts.values()), rng)
        rows = [
            Question(
                question=one,
                answer=str(total(one)),
                candidates={style: make(one) for style, make in STYLES.items()},
            )
            for one in every
        ]
        return _parted({"train": rows, "test": []}, self.counts, "arithmetic")

    def _read(
        self, folder: Path, name: str, rng: Generator
    ) -> tuple[Task, dict[str, list[Question]]]:
        own = folder / name / OWN
        if own.is_file():
            task = task_of(own.read_text())
            rows = {part: _own(folder / name / f"{part}.jsonl") for part in ("train", "test")}
        elif name in PUBLISHED:
            task = PUBLISHED[name].task
            train = published_rows(folder, name, "train")
            same = PUBLISHED[name].train == PUBLISHED[name].test
            rows = {"train": train, "test": [] if same else published_rows(folder, name, "test")}
        else:
            raise MissingData(
                f"task '{name}': neither {own} nor one of {', '.join(PUBLISHED)}; write {OWN} with "
                "name, description and styles beside train.jsonl and test.jsonl"
            )
        for part, several in rows.items():
            rows[part] = [several[i] for i in torch.randperm(len(several), generator=rng).tolist()]
        return task, _parted(rows, self.counts, name)


def _folder(inputs: Mapping[str, Any]) -> Path:
    if "source" not in inputs:
        raise BadSetting("data: none given; published tasks need --set data=data:language")
    return Path(inputs["source"])


def _own(file: Path) -> list[Question]:
    """Rows of a user's own file, each checked."""
    rows = list[Question]()
    for number, row in read_jsonl(file):
        where = f"{file}, line {number}"
        question, answer = (str(row.get(k, "")).strip() for k in ("question", "answer"))
        if not question or not answer:
            raise BadData(f"{where}: question or answer is empty or missing")
        candidates: Any = row.get("candidates", {})
        if not isinstance(candidates, dict):
            raise BadData(f"{where}: candidates must map a style to a text")
        for style, text in candidates.items():
            if "<ans>" in str(text) and not parse_answer(str(text)):
                raise BadData(f"{where}: candidate '{style}' has an empty answer tag")
        texts = {str(k): str(v).partition("<ans>")[0].strip() for k, v in candidates.items()}
        rows.append(Question(question=question, answer=answer, candidates=texts))
    if not rows:
        raise BadData(f"{file}: holds no row")
    return rows


def _parted(
    rows: Mapping[str, list[Question]], counts: Mapping[str, int], name: str
) -> dict[str, list[Question]]:
    """Test rows of their own file where there is one; nothing that is in the test is elsewhere."""
    train, test = _unique(rows["train"], set()), _unique(rows["test"], set())
    wanted = counts["test"]
    if rows["test"]:
        test = test[:wanted]
    else:
        test, train = train[:wanted], train[wanted:]
    known = {fingerprint(one.question) for one in test}
    train, parts = _unique(train, known), {"test": test}
    for part in ("seeds", "validation"):
        parts[part], train = train[: counts[part]], train[counts[part] :]
    parts["pool"] = train[: counts.get("pool", 0)]
    for part, count in counts.items():
        if len(parts[part]) < count:
            if part != "pool" or not parts[part]:
                raise BadData(
                    f"task '{name}': {len(parts[part])} rows for {part}, {count} requested; set "
                    "for fewer or give more"
                )
            note(f"task '{name}': a pool of {len(parts[part])}, not {count}")
    return parts


def _unique(rows: list[Question], known: set[str]) -> list[Question]:
    """Rows whose question is neither in `known` nor before."""
    seen, kept = set(known), list[Question]()
    for row in rows:
        mark = fingerprint(row.question)
        if mark not in seen:
            seen.add(mark)
            kept.append(row)
    return kept


def _table(found: Mapping[str, tuple[Task, Mapping[str, list[Question]]]], part: str) -> Columns:
    rows = [(task, row) for task, parts in found.values() for row in parts[part]]
    return {
        "name": [task.name for task, _ in rows],
        "question": [row.question for _, row in rows],
        "answer": [row.answer for _, row in rows],
        "candidates": [json.dumps(row.candidates, ensure_ascii=False) for _, row in rows],
    }


__all__ = ["PARTS", "TASKS", "ReadTasks"]
