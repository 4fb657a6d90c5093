"""Texts as tokens: tokenizers as assets, and prompts with responses as columns to train on."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.artifact import Built
from stillhouse.data.data import Column, Ragged
from stillhouse.errors import BadData, MissingData
from stillhouse.objectives.language import IGNORED
from stillhouse_language.causal.model import CausalLM
from stillhouse_language.causal.ragged import ragged

ASSET = "tokenizer"
PROBE = "Question: 12 + 3?\nAnswer: 15. The end"


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer of transformers, without special tokens of its own accord but a start token
    where the model has one.
    """

    inner: Any  # Any: a PreTrainedTokenizerFast

    @property
    def start(self) -> list[int]:
        """The start token where the tokenizer puts one before a text; nothing else."""
        first: list[int] = self.inner("a")["input_ids"][:1]
        bos: int | None = self.inner.bos_token_id
        return first if bos is not None and first == [bos] else []

    @property
    def end(self) -> int:
        """What ends a response; raises BadData where the tokenizer has no such token."""
        found: int | None = self.inner.eos_token_id
        if found is None:
            raise BadData("tokenizer: it has no end-of-text token; give one with eos_token")
        return found

    def ids(self, text: str) -> list[int]:
        """The tokens of a text alone."""
        found: list[int] = self.inner(text, add_special_tokens=False)["input_ids"]
        return found

    def prompt(self, text: str) -> list[int]:
        """Those of a text from the start on."""
        return [*self.start, *self.ids(text)]

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        found: str = self.inner.decode(
            [*ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return found


@functools.lru_cache(maxsize=8)
def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder; raises MissingData or BadData, one line."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not folder.is_dir():
        raise MissingData(f"{folder}: no folder with a tokenizer's files")
    try:
        found: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as first:  # of formats and versions, anything
        try:
            found = PreTrainedTokenizerFast.from_pretrained(str(folder))
        except Exception:
            reason = (str(first).splitlines() or [type(first).__name__])[0][:200]
            raise BadData(f"{folder}: holds no tokenizer that can be read ({reason})") from first
    return Tokenizer(inner=found)


def tokenizer_of(built: Built, *, where: str) -> Tokenizer:
    """The tokenizer that goes with a model. Raises MissingData where none does, BadData for one of
    another model.
    """
    if ASSET not in built.assets:
        raise MissingData(f"{where}: the model has no tokenizer among its assets")
    found = open_tokenizer(built.assets[ASSET])
    if isinstance(built.module, CausalLM):
        check_tokenizer(found, built.module.config, where=where)
    return found


def check_tokenizer(tokenizer: Tokenizer, config: Any, *, where: str) -> None:  # Any: a config
    """Raise BadData for a tokenizer that is not the model's: more tokens than the model has, or
    another start or end token.
    """
    size, tokens = int(config.vocab_size), len(tokenizer.inner)
    if tokens > size:
        raise BadData(
            f"{where}: the tokenizer is another model's: it has {tokens:,} tokens, the model's "
            f"vocabulary {size:,}"
        )
    if (highest := max(tokenizer.ids(PROBE), default=0)) >= size:
        raise BadData(
            f"{where}: the tokenizer is another model's: it gives token {highest:,}, the model's "
            f"vocabulary has {size:,}"
        )
    ends = getattr(config, "eos_token_id", None)
    known = {ends} if isinstance(ends, int) else {*(ends or ())}
    if known and tokenizer.inner.eos_token_id not in known:
        raise BadData(
            f"{where}: the tokenizer is another model's: its end token is "
            f"{tokenizer.inner.eos_token_id}, the model's {', '.join(map(str, sorted(known)))}"
        )


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """What two tokenizers share exactly if they number the same tokens alike."""
    entries: Mapping[str, int] = tokenizer.inner.get_vocab()
    return hashlib.sha256(json.dumps(sorted(entries.items())).encode()).hexdigest()


def trainable(
    tokenizer: Tokenizer, rows: Iterable[tuple[str, str]], *, context: int, where: str
) -> dict[str, Column]:
    """Columns of prompts and responses to train on: `tokens`, prompt, response and end token, and
    `labels`, the token that each position predicts, -100 where that is the prompt's.

    Raises BadData for an empty response and for a row that is longer than `context`: nothing is
    cut or dropped unsaid.
    """
    tokens, labels = list[list[int]](), list[list[int]]()
    for number, (prompt, response) in enumerate(rows):
        before, after = tokenizer.prompt(prompt), tokenizer.ids(response)
        if not after or not before:
            raise BadData(f"{where}: row {number} has an empty prompt or response")
        whole = [*before, *after, tokenizer.end]
        if len(whole) > context:
            raise BadData(
                f"{where}: row {number} has {len(whole):,} tokens, the model's context is "
                f"{context:,}; shorten it or leave it out"
            )
        tokens.append(whole)
        labels.append(labels_of(len(before), whole))
    return {"tokens": ragged(tokens), "labels": _wide(ragged(labels))}


def labels_of(prompt: int, tokens: Sequence[int]) -> list[int]:
    """What each position predicts of a sequence whose first `prompt` tokens are given."""
    return [IGNORED] * (prompt - 1) + [*tokens[prompt:]] + [IGNORED]


def _wide(column: Ragged) -> Ragged:
    return Ragged(values=column.values.long(), offsets=column.offsets)
