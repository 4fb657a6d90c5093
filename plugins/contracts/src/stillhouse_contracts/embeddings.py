"""Vectors of tokens learned by Word2Vec and FastText, in place of fixed ones: the paper's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import RowData
from stillhouse.errors import BadSetting, MissingExtra
from stillhouse.work import Work
from stillhouse_contracts.models import TokenVectors
from stillhouse_contracts.tokens import VOCABULARY

WINDOW, PASSES = 5, 5  # tokens either side; readings of the texts


class VectorTable(nn.Module):
    """A table of token vectors alone: what networks are built on (their "embed.table")."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.embed = TokenVectors(width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"vectors": self.embed(batch)[0]}


@dataclass(frozen=True, kw_only=True)
class LearnVectors:
    """A `convert`: the texts of the port "data" to a `VectorTable` of `width`, half of each row by
    Word2Vec and half by FastText (CBOW, min_count 1), with the stage's seed and one worker: the
    same bits in each run. Tokens that no text has get Word2Vec's zeros and FastText's n-grams.
    Raises BadSetting for an odd width, MissingExtra without gensim.
    """

    width: int

    def __post_init__(self) -> None:
        if self.width % 2 or self.width < 2:
            raise BadSetting(
                f"vectors must be even with embedding=word2vec, half for each of Word2Vec and "
                f"FastText (got {self.width})"
            )

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: as opened
        out: Path,
        *,
        work: Work,
    ) -> None:
        data: RowData = inputs["data"]
        tokens = data.columns["tokens"]
        assert isinstance(tokens, Tensor)
        texts = [[VOCABULARY[i] for i in row if i] for row in tokens.tolist()]
        spec = Model(build=VectorTable, kwargs={"width": self.width})
        module = VectorTable(width=self.width)
        module.embed.table.copy_(learned_vectors(texts, self.width, seed=work.seed % 2**31))
        save_model(out, Built(spec=spec, module=module))


def learned_vectors(texts: Sequence[Sequence[str]], width: int, *, seed: int) -> Tensor:
    """The table [V, width] of normalised tokens, scaled to a mean length of 1; zeros for padding.
    Raises MissingExtra without gensim.
    """
    try:
        from gensim.models import FastText, Word2Vec
    except ImportError as error:
        raise MissingExtra(
            "embedding=word2vec", "gensim", install="uv sync --extra contracts-embeddings"
        ) from error
    half = width // 2
    given: dict[str, Any] = {  # Any: arguments of several types
        "sentences": [list(text) for text in texts],
        "vector_size": half,
        "window": WINDOW,
        "min_count": 1,
        "sg": 0,
        "epochs": PASSES,
        "seed": seed,
        "workers": 1,
    }
    words = Word2Vec(**given).wv
    grams = FastText(**given, bucket=20_000).wv
    table = np.zeros((len(VOCABULARY), width), dtype=np.float32)
    for place, token in enumerate(VOCABULARY[1:], 1):
        if token in words.key_to_index:
            table[place, :half] = words[token]
        table[place, half:] = grams[token]
    for part in (slice(0, half), slice(half, width)):
        lengths = np.linalg.norm(table[:, part], axis=1)
        table[:, part] *= 2**-0.5 / max(float(lengths[lengths > 0].mean()), 1e-12)
    return torch.from_numpy(table)
