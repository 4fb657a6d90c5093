"""CommonsenseQA, StrategyQA and GSM8K as they are published, with candidate rationales in styles:
where the data hold rationales these are cut from them, where not they are made of the question.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.errors import BadData, MissingData
from stillhouse_language.arte.tasks import Task

Rows = Sequence[Mapping[str, Any]]  # Any: JSON values


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its answer, and candidate rationales by style."""

    question: str
    answer: str
    candidates: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Published:
    """A task and its files below data/language: those to train on and the one to test on (the same
    one where it is not split).
    """

    task: Task
    train: str
    test: str
    read: Callable[[Mapping[str, Any], str], Question]  # Any: a row's JSON values


def _first(text: str) -> str:
    """The first sentence."""
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]


def commonsense(row: Mapping[str, Any], where: str) -> Question:
    """A row of CommonsenseQA; the data hold no rationales."""
    choices: Mapping[str, str] = row["choices"]
    if isinstance(choices, list):
        choices = {one["label"]: one["text"] for one in choices}
    answer = str(row["answer"])
    if answer not in choices:
        raise BadData(f"{where}: answer {answer!r} is none of its choices {', '.join(choices)}")
    listed = " ".join(f"({label}) {text}" for label, text in choices.items())
    others = ", ".join(text for label, text in choices.items() if label != answer)
    stem, right = str(row["question"]).strip(), choices[answer]
    concept = str(row.get("concept", "")).strip()
    about = f"The question is about {concept}. " if concept else ""
    return Question(
        question=f"{stem} {listed}",
        answer=answer,
        candidates={
            "answer": "",
            "names": f"The best choice is {right}.",
            "concept": f"{about}What fits it best is {right}.",
            "eliminates": f"We can rule out {others}. What is left is {right}.",
        },
    )


def strategy(row: Mapping[str, Any], where: str) -> Question:  # noqa: ARG001
    """A row of StrategyQA, with a rationale written by people."""
    rationale = re.sub(r"^(Yes|No)\.\s*", "", " ".join(str(row["rationale"]).split()))
    answer = str(row["answer"]).strip()
    answer = {"true": "yes", "false": "no"}.get(answer.lower(), answer.lower())
    question = str(row["question"]).strip()
    return Question(
        question=question,
        answer=answer,
        candidates={
            "answer": "",
            "whole": rationale,
            "first": _first(rationale),
            "restated": f"The question asks: {question} {_first(rationale)}",
        },
    )


def grade_school(row: Mapping[str, Any], where: str) -> Question:
    """A row of GSM8K, with a worked solution."""
    solution, mark, answer = str(row["answer"]).rpartition("####")
    if not mark:
        raise BadData(f"{where}: no '#### <answer>' at the end")
    plain = re.sub(r"<<.*?>>", "", solution)
    equations = re.findall(r"<<(.*?)>>", solution)
    return Question(
        question=" ".join(str(row["question"]).split()),
        answer=answer.strip().replace(",", ""),
        candidates={
            "answer": "",
            "whole": " ".join(plain.split()),
            "equations": ", ".join(equations),
            "last": plain.strip().rpartition("\n")[2].strip() if plain.strip() else "",
        },
    )


PUBLISHED: Mapping[str, Published] = {
    "commonsenseqa": Published(
        task=Task(
            name="commonsenseqa",
            description="Choose the option that everyday knowledge makes most likely.",
            options=("A", "B", "C", "D", "E"),
            styles={
                "answer": "Give the letter alone.",
                "names": "Say in one sentence which choice is best, then give its letter.",
                "concept": "Say what the question is about, then which choice fits it.",
                "eliminates": "Rule out the choices that do not fit, then give what is left.",
            },
        ),
        train="commonsenseqa/train.jsonl.gz",
        test="commonsenseqa/dev.jsonl",
        read=commonsense,
    ),
    "strategyqa": Published(
        task=Task(
            name="strategyqa",
            description="Answer yes or no from what is generally known.",
            options=("yes", "no"),
            styles={
                "answer": "Give the answer alone.",
                "whole": "List every fact that decides the question, then answer.",
                "first": "Give the one fact that decides the question, then answer.",
                "restated": "Repeat the question, give one fact, then answer.",
            },
        ),
        train="strategyqa/examples.jsonl.gz",
        test="strategyqa/examples.jsonl.gz",
        read=strategy,
    ),
    "gsm8k": Published(
        task=Task(
            name="gsm8k",
            description="Solve the word problem; the answer is one number.",
            styles={
                "answer": "Give the number alone.",
                "whole": "Explain each step in a sentence with its calculation.",
                "equations": "Write the calculations alone.",
                "last": "Write the last calculation alone.",
            },
        ),
        train="gsm8k/train.jsonl.gz",
        test="gsm8k/test.jsonl",
        read=grade_school,
    ),
}


def published_rows(folder: Path, name: str, part: str) -> list[Question]:
    """The rows of a published task, "train" or "test"; raises MissingData or BadData."""
    known = PUBLISHED[name]
    file = folder / (known.train if part == "train" else known.test)
    return [known.read(row, f"{file}, line {n}") for n, row in read_jsonl(file)]


def read_jsonl(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and record of a JSONL file, gzipped where its name says so; raises MissingData or
    BadData with the line.
    """
    if not file.is_file():
        raise MissingData(f"{file}: not found")
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    for number, line in enumerate(text.decode("utf-8", errors="strict").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise BadData(f"{file}, line {number}: no JSON ({error})") from error
        if not isinstance(row, dict):
            raise BadData(f"{file}, line {number}: no JSON object")
        yield number, row
