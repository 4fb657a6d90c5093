"""Fake quantization: numbers rounded to those that b bits can hold, kept as floats.

The integer grid is that of two's complement: -2^(b-1) ... 2^(b-1) - 1. Gradients of the rounding
are zero, as torch has them.
"""

import torch
from torch import Tensor

from stillhouse.errors import BadSetting

GELU_MINIMUM = 0.16997  # how far below zero GELU goes
MIN_BITS, MAX_BITS = 2, 16


def fake_quantize(
    x: Tensor, scale: Tensor, *, bits: int, zero_point: Tensor | None = None
) -> Tensor:
    """s (clip(round(x / s) + z, -2^(b-1), 2^(b-1) - 1) - z), shape and dtype of `x` (TinySAM, AAAI
    2025, sec. 3.3, with z = 0 for None).

    `scale` (> 0) and `zero_point` (whole numbers) are scalars or broadcast against `x`. Halves are
    rounded to even.
    """
    half = 2 ** (bits - 1)
    zero = 0.0 if zero_point is None else zero_point
    return (torch.clamp(torch.round(x / scale) + zero, -half, half - 1) - zero) * scale


def quantize_softmax(x: Tensor, split: Tensor | float, *, bits: int) -> Tensor:
    """Two ranges for numbers in [0, 1] after a softmax (PTQ4ViT's twin uniform quantization): those
    below `split` with the scale split / (2^(b-1) - 1), the others with 1 / (2^(b-1) - 1).

    Each number falls in one of the two: its error is at most half that scale.
    """
    top = 2 ** (bits - 1) - 1
    fine = torch.clamp(torch.round(x * (top / split)), 0, top) * (split / top)
    coarse = torch.clamp(torch.round(x * top), 0, top) / top
    return torch.where(x < split, fine, coarse)


def quantize_gelu(x: Tensor, scale: Tensor | float, *, bits: int) -> Tensor:
    """Two ranges for numbers after a GELU: those >= 0 with `scale`, on 2^(b-1) levels; those
    below with the scale 0.16997 / 2^(b-1), which reaches GELU's minimum (PTQ4ViT).
    """
    half = 2 ** (bits - 1)
    fixed = GELU_MINIMUM / half
    above = torch.clamp(torch.round(x / scale), 0, half - 1) * scale
    below = torch.clamp(torch.round(x / fixed), -half, 0) * fixed
    return torch.where(x < 0, below, above)


def check_bits(bits: int) -> None:
    """Raises BadSetting for a width that no integer type of 16 bits or fewer holds."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise BadSetting(f"quantize: bits must be {MIN_BITS} ... {MAX_BITS} (got {bits})")
