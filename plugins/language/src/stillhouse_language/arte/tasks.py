"""A task in words: its prompts, and how an answer is read and compared."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stillhouse.data.data import Columns, RowData
from stillhouse.errors import BadData

OPEN, CLOSE = "<ans>", "</ans>"
ANSWER = re.compile(r"<ans>(.*?)</ans>", re.DOTALL)
ITEM = re.compile(
    r"<Question_\d+>\s*<input>(.*?)</input>\s*<target>(.*?)</target>\s*</Question_\d+>", re.DOTALL
)
QUESTION, CUE = "Question: ", "Answer: Let's think step by step."
FORMAT = f"Put the final answer inside {OPEN} and {CLOSE}."


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: a description, the labels that an answer may be (none: any text), and by style the
    instructions under which a teacher drafts rationales.

    `form` says how the answer is to be given, `ask` and `cue` stand before and behind a question:
    the same in scoring, fine-tuning and testing.
    """

    name: str
    description: str
    options: tuple[str, ...] = ()
    styles: Mapping[str, str]
    form: str = FORMAT
    ask: str = QUESTION
    cue: str = CUE

    def naive(self, question: str) -> str:
        """The prompt of scoring, fine-tuning and testing: task, question, think step by step."""
        return f"{self.opening()}{self.item(question)}"

    def item(self, question: str) -> str:
        """A question that is to be answered."""
        return f"{self.ask}{question}\n{self.cue}"

    def shown(self, question: str, response: str) -> str:
        """A question with its answer, before another one."""
        return f"{self.item(question)}{response}\n\n"

    def opening(self) -> str:
        """What every prompt of the task begins with."""
        return f"{self.description} {self.form}\n\n" if self.form else ""

    def styled(self, style: str, question: str) -> str:
        """The prompt of a draft in a style."""
        return f"{self.styles[style]}\n{self.naive(question)}"

    def example(self, question: str, response: str) -> str:
        """The opening with one worked example, behind which another question comes."""
        return f"{self.opening()}{self.shown(question, response)}"

    def questions(self, seeds: Sequence[tuple[str, str]], count: int) -> str:
        """The prompt of new questions with their answers, by the example of `seeds`."""
        listed = "\n".join(tagged(n, *seed) for n, seed in enumerate(seeds, 1))
        return (
            f"{self.description} Here are {len(seeds)} questions of this kind.\n{listed}\n"
            f"Write {count} new ones in the same form.\n"
        )

    def record(self) -> str:
        """As JSON text; styles keep their order."""
        return json.dumps(asdict(self), ensure_ascii=False)


def tagged(number: int, question: str, answer: str) -> str:
    """A question and its answer in the form of new ones."""
    inner = f"<input>{question}</input><target>{answer}</target>"
    return f"<Question_{number}>{inner}</Question_{number}>"


def response(rationale: str, answer: str) -> str:
    """A rationale and the answer in its tag, as it follows a prompt; raises BadData for an empty
    answer.
    """
    if not answer.strip():
        raise BadData("a response's answer tag is empty; give an answer or leave the row out")
    return f"{f' {rationale.strip()}' if rationale.strip() else ''} {OPEN}{answer.strip()}{CLOSE}"


def parse_questions(text: str) -> list[tuple[str, str]]:
    """Questions and answers of what a model wrote: whole, tagged and not empty; others are left
    out.
    """
    found = [(q.strip(), a.strip()) for q, a in ITEM.findall(text)]
    return [(q, a) for q, a in found if q and a]


def parse_answer(text: str) -> str:
    """What stands in the first answer tag; "" where there is none or it is empty."""
    found = ANSWER.search(text)
    return found.group(1).strip() if found else ""


def same_answer(given: str, wanted: str) -> bool:
    """Whether two answers are one: case, brackets, a final full stop and a number's form do not
    count; an empty one is never right.
    """
    one, other = _plain(given), _plain(wanted)
    return bool(one) and one == other


def _plain(answer: str) -> str:
    text = " ".join(answer.split()).lower().removesuffix(".").strip()
    if text.startswith("(") and ")" in text:
        text = text[1 : text.index(")")] if len(text) <= 4 or text.endswith(")") else text
    number = text.replace(",", "").removeprefix("$").strip()
    if re.fullmatch(r"[+-]?\d+(\.\d+)?", number):
        return f"{float(number):g}" if len(number) < 15 else number
    return text


def fingerprint(question: str) -> str:
    """What two questions share that are the same but for case, spaces and signs."""
    return " ".join(re.findall(r"\w+|[+*/=<>-]", question.lower()))


def tasks_of(data: RowData) -> dict[str, Task]:
    """Tasks by name, of data with a column "task" of their records; raises BadData."""
    return {task.name: task for task in map(task_of, texts(data, "task"))}


def task_of(record: str) -> Task:
    """The task of its JSON text; raises BadData, one line."""
    try:
        found: Any = json.loads(record)
        return Task(
            name=str(found["name"]),
            description=str(found["description"]),
            options=tuple(map(str, found.get("options", ()))),
            styles={str(k): str(v) for k, v in found["styles"].items()},
            **{key: str(found[key]) for key in ("form", "ask", "cue") if key in found},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadData(
            f"a task needs name, description and styles as JSON ({type(error).__name__}: {error})"
        ) from error


def texts(data: RowData, column: str) -> list[str]:
    """A column of texts; raises BadData where it is none."""
    found = data.columns.get(column)
    if not isinstance(found, list):
        raise BadData(f"no column '{column}' of texts (there are {', '.join(data.columns)})")
    return found


def task_columns(tasks: Sequence[Task]) -> Columns:
    """The tasks as data."""
    return {"task": [task.record() for task in tasks]}
