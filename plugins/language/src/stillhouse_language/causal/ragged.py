"""Packed sequences and rows of one length.

B: sequences. S: tokens of the longest. T: tokens of all.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from stillhouse.data.data import Ragged


def padded(
    values: Integer[Tensor, " T"], offsets: Integer[Tensor, " B+1"], *, fill: int = 0
) -> tuple[Integer[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """Rows padded on the right by `fill`, and which of their places are real: rows[real] are the
    values again.
    """
    lengths = offsets[1:] - offsets[:-1]
    places = torch.arange(int(lengths.max()) if len(lengths) else 0, device=values.device)
    real = places < lengths[:, None]
    rows = values.new_full(tuple(real.shape), fill)
    rows[real] = values
    return rows, real


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    """Lists of token ids as a column."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    values = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    return Ragged(values=values, offsets=offsets)
