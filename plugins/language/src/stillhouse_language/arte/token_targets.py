"""Examples as rows of one length, for a teacher whose token distributions are kept beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.artifact import Built
from stillhouse.data.data import Columns, Ragged, RowData
from stillhouse.errors import BadData
from stillhouse.objectives.language import IGNORED
from stillhouse.work import Work
from stillhouse_language.causal.model import CausalLM
from stillhouse_language.causal.ragged import padded
from stillhouse_language.causal.tokens import tokenizer_of, vocabulary_digest


@dataclass(frozen=True, kw_only=True)
class PadRows:
    """A `make`: the examples of the port "data" padded to the longest: `tokens` and `labels` [N, S]
    and `counted` [N, S], where the next token is the response's; port "train". A cache keeps
    outputs of one shape a row.

    Raises BadData where the models at the ports "teacher" and "student" do not number the same
    tokens alike: a distribution over the one's says nothing of the other's.
    """

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        data: RowData = inputs["data"]
        teacher, student = (_vocabulary(inputs[role], role) for role in ("teacher", "student"))
        if teacher != student:
            raise BadData(
                "row tokens: teacher and student have other vocabularies "
                f"({teacher[0]:,} and {student[0]:,} tokens); leave the row out, or give models "
                "that share one"
            )
        tokens, labels = data.columns["tokens"], data.columns["labels"]
        assert isinstance(tokens, Ragged)
        assert isinstance(labels, Ragged)
        rows, _ = padded(tokens.values.long(), tokens.offsets)
        marks, _ = padded(labels.values, labels.offsets, fill=IGNORED)
        return {"train": {"tokens": rows, "labels": marks, "counted": marks != IGNORED}}


def _vocabulary(built: Built, role: str) -> tuple[int, str]:
    """How many tokens a model has logits of, and the digest of what they are."""
    found = tokenizer_of(built, where=f"row tokens: {role}")
    assert isinstance(built.module, CausalLM)
    return int(built.module.config.vocab_size), vocabulary_digest(found)
