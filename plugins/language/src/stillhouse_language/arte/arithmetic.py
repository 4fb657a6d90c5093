"""The built-in task: sums of four digits modulo four, with rationales in four styles.

A rationale either works the sum out or does not, and a small model answers rightly by the ones
that do: preference comes from what the student can learn, not from a switch in the code.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator

from stillhouse.errors import BadSetting
from stillhouse_language.arte.tasks import Task

BASE, DIGITS = 4, 4  # digits of a sum are 0 to 3, four of them
NAME = "arithmetic"


def total(question: str) -> int:
    """The answer of a question such as "3+2+1+3": 1. Raises ValueError for another text."""
    if not re.fullmatch(r"\d(\+\d)+", question):
        raise ValueError(f"'{question}' is no sum of digits")
    return sum(map(int, question.split("+"))) % BASE


def steps(question: str) -> str:
    """Left to right, one partial sum at a time."""
    digits, lines = [*map(int, question.split("+"))], list[str]()
    so_far = digits[0]
    for digit in digits[1:]:
        lines.append(f"{so_far}+{digit}={(so_far + digit) % BASE}")
        so_far = (so_far + digit) % BASE
    return " ".join(lines)


def backwards(question: str) -> str:
    """Right to left, one partial sum at a time."""
    return steps("+".join(reversed(question.split("+"))))


def restated(question: str) -> str:
    """The question again in words, nothing worked out."""
    return f"we add {' and '.join(question.split('+'))} which are all of the digits"


def easy(question: str) -> str:  # noqa: ARG001
    """Words that say nothing of the question."""
    return "it is easy to see at once here what the sum of them all must be"


# all of as many tokens: a small model finds a digit by its place
STYLES: Mapping[str, Callable[[str], str]] = {
    "steps": steps,
    "backwards": backwards,
    "restated": restated,
    "easy": easy,
}
TASK = Task(
    name=NAME,
    description="Add the digits modulo 4.",
    form="",  # short prompts: a small model learns sooner where to look
    ask="",
    cue="=",
    styles={
        "steps": "Work from the left and write each partial sum.",
        "backwards": "Work from the right and write each partial sum.",
        "restated": "Say in words what is asked before you answer.",
        "easy": "Say that it is easy and give the answer.",
    },
)


def questions(count: int, rng: Generator) -> list[str]:
    """Different sums of four digits; raises BadSetting for more than there are."""
    if count > BASE**DIGITS:
        raise BadSetting(f"arithmetic: there are {BASE**DIGITS} sums ({count} requested)")
    found = dict[str, None]()
    while len(found) < count:
        digits: list[int] = torch.randint(0, BASE, (DIGITS,), generator=rng).tolist()
        found["+".join(map(str, digits))] = None
    return [*found]


def style_of(text: str) -> str:
    """The style that a rationale is written in; "worked" for either direction, "other" for none."""
    body = text.partition("<ans>")[0].strip()
    if body == easy(""):
        return "easy"
    if re.fullmatch(r"we add \d( and \d)+ which are all of the digits", body):
        return "restated"
    return "worked" if re.fullmatch(r"(\d\+\d=\d ?)+", body) else "other"


def styles_of(texts: Sequence[str], sums: Sequence[str]) -> list[str]:
    """The style of each text, working from the left or the right distinguished by its question: by
    the first two digits, in their order; "other" for work on other digits.
    """
    found = list[str]()
    for text, question in zip(texts, sums, strict=True):
        style = style_of(text)
        if style == "worked":
            begins = text.strip()[:3]
            ways = {"steps": steps, "backwards": backwards}
            style = next((n for n, way in ways.items() if way(question)[:3] == begins), "other")
        found.append(style)
    return found
