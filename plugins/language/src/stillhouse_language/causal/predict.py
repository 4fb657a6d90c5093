"""Texts continued by a trained student, from the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stillhouse.artifact import Built
from stillhouse.errors import BadData
from stillhouse_language.arte.tasks import CLOSE, parse_answer
from stillhouse_language.causal.generation import Sampling, generate
from stillhouse_language.causal.model import CausalLM
from stillhouse_language.causal.tokens import tokenizer_of


def continued(
    model: Built, inputs: Sequence[Path | str], *, longest: int = 64, temperature: float = 0.0
) -> Sequence[Mapping[str, Any]]:
    """A row an input, a text or a file that holds one: what the student writes behind it, at most
    `longest` tokens, up to the end of an answer's tag; and the answer in that. Raises BadData for
    an empty text or one that leaves no room in the context.
    """
    read = tokenizer_of(model, where="predict")
    assert isinstance(model.module, CausalLM)
    rows, rng = list[Mapping[str, Any]](), torch.Generator().manual_seed(0)
    sampling = Sampling(max_new=longest, temperature=temperature, stop=CLOSE)
    for given in inputs:
        text = given.read_text(encoding="utf-8") if isinstance(given, Path) else given
        text = text.replace("\\n", "\n").removesuffix("\n")
        if not text.strip():
            raise BadData(f"predict: the text {str(given)!r} is empty")
        (found,) = generate(model.module, read, [read.prompt(text)], sampling=sampling, rng=rng)
        rows.append({"text": text, "continuation": found.strip(), "answer": parse_answer(found)})
    return rows


def is_generator(model: Built) -> bool:
    """Whether a model is one that `continued` is for."""
    return isinstance(model.module, CausalLM)
