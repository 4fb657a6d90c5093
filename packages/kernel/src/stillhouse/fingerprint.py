"""What a training is: its objective, data, frozen roles and setup, so that `fit` goes on only from
a checkpoint of the same.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stillhouse.checkpoint import CHECKSUMS
from stillhouse.data.data import Data, Ragged, Rows, TensorData
from stillhouse.data.stored import StoredData
from stillhouse.digest import arrays_digest, digest, text_digest
from stillhouse.errors import UnhashableRecipe
from stillhouse.objectives.objective import Objective
from stillhouse.recipe import Context
from stillhouse.training import Setup

NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


def fingerprint(
    objective: Objective,
    frozen: Mapping[str, Mapping[str, str]],
    data: Data,
    *,
    setup: Setup,
    ctx: Context,
) -> dict[str, Any]:  # Any: JSON values
    """By name; `frozen` maps a role to the checksum of each of its parameters and buffers. The data
    of a stage go by their digest, other data by their content (see `data_digest`).
    """
    roles = {
        f"role '{role}'": CHECKSUMS + text_digest(json.dumps(dict(sorted(bits.items()))))
        for role, bits in sorted(frozen.items())
    }
    return {
        "objective": _hashed(objective),
        "data": ctx.digests.get("data") or data_digest(data, setup.batch),
        **roles,
        "augmentation": _hashed(setup.augment),
        **{name: getattr(setup, name) for name in ("steps", "batch", "seed", "views", "precision")},
        # only where it is set: checkpoints of before it was there serve
        **({"plain": True} if setup.plain else {}),
    }


def data_digest(data: Data, batch: int) -> str:
    """sha256 of all columns of data in memory; of other data, their length and first batch."""
    if isinstance(data, TensorData):
        return _columns(data.columns)
    if isinstance(data, StoredData):
        return data.digest
    if isinstance(data, Rows):
        return text_digest(data_digest(data.data, batch) + arrays_digest({"index": data.index}))
    first: Mapping[str, Tensor] = next(iter(data.batches(batch, rng=None)), {})
    return text_digest(f"{len(data)} {_columns(first)}")


def _columns(columns: Mapping[str, Tensor | Ragged | list[str]]) -> str:
    total = hashlib.sha256()
    for name, column in sorted(columns.items()):
        match column:
            case Ragged():
                found = arrays_digest({**_array(column.values), "offsets": column.offsets})
            case list():
                found = text_digest(json.dumps(column))
            case _:
                found = arrays_digest(_array(column.cpu()))
        total.update(f"{name} {found}\n".encode())
    return total.hexdigest()


def _array(values: Tensor) -> dict[str, Tensor]:
    """The values, or their bytes where numpy has no such type."""
    if not values.is_floating_point() or values.dtype in NUMPY_FLOATS:
        return {"values": values}
    return {f"values {values.dtype}": values.contiguous().view(torch.uint8)}


def _hashed(value: object) -> str:
    try:
        return digest(value)
    except UnhashableRecipe:  # `fit` takes any objective; a recipe's is hashed all through
        return f"{type(value).__module__}:{type(value).__qualname__}"
