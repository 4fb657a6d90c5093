"""Test questions with the tokens of their prompts, which measures of cost and the ONNX file's check
run on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.artifact import Built
from stillhouse.data.data import Columns, RowData
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_language.arte.reading import TASKS
from stillhouse_language.arte.tasks import tasks_of, texts
from stillhouse_language.causal.model import CausalLM
from stillhouse_language.causal.ragged import ragged
from stillhouse_language.causal.tokens import tokenizer_of


@dataclass(frozen=True, kw_only=True)
class TokenizeTest:
    """A `make`: the rows of port "test" with `tokens` of the model at port "student". Raises
    BadData for a prompt that is longer than its context.
    """

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        built: Built = inputs["student"]
        read, tests = tokenizer_of(built, where="test"), inputs["test"]
        assert isinstance(tests, RowData)
        assert isinstance(built.module, CausalLM)
        tasks, rows = tasks_of(inputs[TASKS]), list[list[int]]()
        for name, question in zip(texts(tests, "name"), texts(tests, "question"), strict=True):
            rows.append(read.prompt(tasks[name].naive(question)))
            if len(rows[-1]) > built.module.context:
                raise BadData(
                    f"test question {len(rows) - 1}: {len(rows[-1]):,} tokens with its prompt, the "
                    f"model's context is {built.module.context:,}; leave it out"
                )
        columns = {k: v for k, v in tests.columns.items() if k != "id"}
        return {"test": {**columns, "tokens": ragged(rows)}}
