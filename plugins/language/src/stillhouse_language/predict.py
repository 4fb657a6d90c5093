"""Predict the classes or continuations of texts by a trained student."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stillhouse.artifact import Built
from stillhouse.errors import BadData, MissingData
from stillhouse_language.causal.predict import continued, is_generator
from stillhouse_language.readers import KINDS, kind_of, read_texts
from stillhouse_language.tokenizing import model_tokenizer, padded, padding_of

SHOWN = 60  # characters of a text in a row


def predict(
    model: Built, inputs: Sequence[Path | str], *, longest: int = 64, temperature: float = 0.0
) -> Sequence[Mapping[str, Any]]:
    """A row a text: what a generator writes behind it (`continued`: at most `longest` tokens, drawn
    at a `temperature`), or its class by a classifier (`classified`).
    """
    if is_generator(model):
        return continued(model, inputs, longest=longest, temperature=temperature)
    return classified(model, inputs)


def classified(model: Built, inputs: Sequence[Path | str]) -> Sequence[Mapping[str, Any]]:
    """A row a text: its class and the probability of each class. An input is a text, or a file or
    folder of texts (`read_texts`). Raises BadData for a text longer than the model reads, and for a
    model that is no text classifier.
    """
    kwargs = model.spec.kwargs.get("source", {}).get("kwargs", model.spec.kwargs)  # of an ONNX file
    if "names" not in kwargs or "architecture" not in kwargs:
        raise BadData(f"{model.spec.build.__qualname__}: no classifier of texts")
    texts = [text for given in inputs for text in _texts(given)]
    tokenizer = model_tokenizer(model.assets, "student")
    most = int(kwargs["architecture"]["positions"])
    return [
        _row(model, kwargs["names"], text, _ids(tokenizer, text, most, number), tokenizer)
        for number, text in enumerate(texts, 1)
    ]


def _texts(given: Path | str) -> list[str]:
    if isinstance(given, Path):
        return list(read_texts(given))
    if kind_of(Path(given)) in KINDS and not given.split()[1:]:
        raise MissingData(f"{given} not found; give an existing file, or a text")
    return [given]


def _ids(tokenizer: Any, text: str, most: int, number: int) -> list[int]:  # Any: a Tokenizer
    ids: list[int] = tokenizer.encode(text).ids
    if not text.strip():
        raise BadData(f"text {number}: is empty")
    if len(ids) > most:
        raise BadData(f"text {number}: {len(ids)} tokens, and the model reads {most}; cut it")
    return ids


def _row(
    model: Built, names: Sequence[str], text: str, ids: list[int], tokenizer: Any
) -> Mapping[str, Any]:  # Any: what a cell shows
    batch = padded([ids], length=len(ids), padding=padding_of(tokenizer))
    with torch.no_grad():
        shares = model.module(batch)["logits"][0].softmax(-1).tolist()
    best = max(range(len(names)), key=shares.__getitem__)
    shown = text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
    return {
        "text": shown,
        "class": names[best],
        **{name: round(share, 3) for name, share in zip(names, shares, strict=True)},
    }
