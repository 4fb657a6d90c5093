"""What an architecture costs."""

from collections.abc import Mapping

import torch

from stillhouse.artifact import Model
from stillhouse.profile import macs
from stillhouse_vision.models import ImageSpec


def cost_of(model: Model, images: ImageSpec) -> Mapping[str, float]:
    """parameters, and macs of one image.

    Global random numbers stay as they were. Computed with real weights: on the meta device a norm
    takes a detour that makes this two to three times as slow.
    """
    with torch.random.fork_rng(devices=[]):
        module = model.new().eval()
    batch = {"images": torch.zeros(1, images.channels, images.size, images.size)}
    return {
        "parameters": float(sum(p.numel() for p in module.parameters())),
        "macs": float(macs(module, batch)),
    }


def digits(index: int, base: int, count: int) -> list[int]:
    """`index` in `base` as `count` digits, the most significant one first.

    Raises IndexError below 0 and from base^count on.
    """
    if not 0 <= index < base**count:
        raise IndexError(f"architecture {index} of {base**count}")
    return [index // base**place % base for place in reversed(range(count))]


def changed(place: int, turn: int, values: list[int], base: int) -> list[int]:
    """`values` with the digit at `place` turned by `turn` of its base - 1 others."""
    return [(v + 1 + turn) % base if i == place else v for i, v in enumerate(values)]
