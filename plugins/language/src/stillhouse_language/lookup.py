"""Looking up a few rows of a long table whose gradient is not to be a second table."""

from typing import Any

import torch
from torch import Tensor


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, width: int) -> Tensor:  # Any: torch's own
        ctx.save_for_backward(ids)
        ctx.table, ctx.width = table, width
        return table.detach()[:, :width][ids]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        (ids,), table = ctx.saved_tensors, ctx.table
        rows, places = ids.unique(return_inverse=True)
        flat = grads[0].reshape(-1, ctx.width)
        # sums of equal ids in one order, on any device: a resumed run ends with the same bits
        summed = torch.ops.aten.embedding_dense_backward(
            flat, places.reshape(-1), len(rows), -1, False
        )
        if table.grad is None:
            table.grad = torch.zeros_like(table)
        table.grad[rows, : ctx.width] += summed.to(table.grad.dtype)
        return None, None, None


def looked_up(table: Tensor, ids: Tensor, width: int) -> Tensor:
    """The first `width` columns of the rows `ids` of a table, a leaf that needs a gradient:
    [*ids, width]. backward() adds to `table.grad` in place: as torch's own embedding would, but
    without a gradient as large as the table for each of several lookups.

    For backward() alone: torch.autograd.grad sees no gradient of the table.
    """
    # an argument that needs a gradient makes torch call backward
    found: Any = _LookUp.apply(table, ids, width)  # Any: apply has no types
    return found
