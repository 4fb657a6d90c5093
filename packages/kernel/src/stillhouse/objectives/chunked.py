"""A loss over tokens of a long vocabulary whose memory does not grow with the number of tokens.

N: tokens. D: width of the hidden states. V: classes, the vocabulary. n: tokens of a chunk.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from stillhouse.errors import BadData, BadRecipe, BadSetting
from stillhouse.objectives.declared import is_sample_mean

CHUNK = 512  # tokens: 312 MB of float32 logits at 152,000 classes


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """Logits [*N, V] that are not computed yet: x = scale (hidden weight^T + bias), then
    softcap tanh(x / softcap) where `softcap` is given.

    Under autocast, or in bf16, the product is of that type; losses compute in float32.
    """

    hidden: Float[Tensor, "*N D"]
    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self) -> Float[Tensor, "*N V"]:
        """All of them at once."""
        return self.of(F.linear(self.hidden, self.weight, self.bias))

    def into(self, room: Float[Tensor, "n V"], rows: Tensor | slice) -> Float[Tensor, "m V"]:
        """hidden weight^T + bias of rows, in memory that is there."""
        given = self.hidden[rows]
        product = torch.mm(given, self.weight.T, out=room[: len(given)])
        return product if self.bias is None else product.add_(self.bias)

    def of(self, product: Float[Tensor, "*N V"]) -> Float[Tensor, "*N V"]:
        """The logits of hidden weight^T + bias."""
        x = product if self.scale == 1 else product * self.scale
        return x if self.softcap is None else self.softcap * torch.tanh(x / self.softcap)


Target = Tensor | Head
MeanLoss = Callable[..., Tensor]  # (logits [n, V], *targets [n, ...]) -> []


def chunked(
    loss: MeanLoss,
    student: Head,
    *targets: Target,
    mask: Bool[Tensor, "*N"] | None = None,
    chunk: int = CHUNK,
) -> Float[Tensor, ""]:
    """loss(student.logits(), *targets), with at most `chunk` rows of logits in memory at a time.

    `loss` is a function that declares a `SampleMean`, or a `functools.partial` of one. A target is
    a tensor [*N, ...], or the teacher's `Head`, whose logits are computed by chunks as well; both
    are constants. `mask` says which tokens count: the mean is over these (0 for none), and nothing
    is computed for the others. The gradients of hidden, weight and bias are computed with the
    value, chunk by chunk, and summed in at least float32; there are no second derivatives. Raises
    BadData for a target or mask of another number of tokens.
    """
    if chunk < 1:
        raise BadSetting(f"chunked: chunk must be >= 1 token (got {chunk})")
    if not is_sample_mean(loss.func if isinstance(loss, functools.partial) else loss):
        raise BadRecipe(
            f"chunked: {_name(loss)} declares no SampleMean, so its value is no mean over chunks"
        )
    tokens = student.hidden.shape[:-1]
    for what, given in (*((f"target {n}", t) for n, t in enumerate(targets, 1)), ("mask", mask)):
        found = given.hidden if isinstance(given, Head) else given
        if found is not None and found.shape[: len(tokens)] != tokens:
            raise BadData(
                f"chunked: {what} is of {list(found.shape)}, hidden states of tokens {list(tokens)}"
            )
    job = _Job(
        loss=loss,
        student=_constant(student),
        targets=[_rows(target, len(tokens)) for target in targets],
        kept=None if mask is None else mask.reshape(-1).nonzero()[:, 0],
        chunk=chunk,
        learns=torch.is_grad_enabled(),
    )
    value: Tensor = _Chunked.apply(job, student.hidden, student.weight, student.bias)
    return value


def _name(loss: MeanLoss) -> str:
    return str(getattr(loss, "__name__", loss))


def _rows(target: Target, leading: int) -> Target:
    """A target with one axis in place of `leading`, without a gradient."""
    if isinstance(target, Head):
        return _constant(target)
    return target.detach().reshape(-1, *target.shape[leading:])


def _constant(head: Head) -> Head:
    """A head of hidden states [N, D], without a gradient."""
    return replace(
        head,
        hidden=head.hidden.detach().reshape(-1, head.hidden.shape[-1]),
        weight=head.weight.detach(),
        bias=None if head.bias is None else head.bias.detach(),
    )


def _cast(target: Target, dtype: torch.dtype) -> Target:
    """A head in the type that its product is computed in."""
    if not isinstance(target, Head):
        return target
    return replace(
        target,
        hidden=target.hidden.to(dtype),
        weight=target.weight.to(dtype),
        bias=None if target.bias is None else target.bias.to(dtype),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    loss: MeanLoss
    student: Head
    targets: Sequence[Target]
    kept: Tensor | None  # the tokens that count; None: all
    chunk: int
    learns: bool

    @property
    def count(self) -> int:
        return len(self.student.hidden if self.kept is None else self.kept)

    def chunks(self) -> Iterator[tuple[Tensor | slice, float]]:
        """Rows, and their share of all that count."""
        for start in range(0, self.count, self.chunk):
            stop = min(start + self.chunk, self.count)
            part = slice(start, stop)
            yield part if self.kept is None else self.kept[part], (stop - start) / self.count


class _Sums:
    """The gradients of one pass, of what needs any."""

    def __init__(self, head: Head, needs: Sequence[bool]) -> None:
        def zeros(x: Tensor | None, needed: bool, *least: torch.dtype) -> Tensor | None:
            if x is None or not needed:
                return None
            return torch.zeros_like(x, dtype=functools.reduce(torch.promote_types, least, x.dtype))

        self.hidden = zeros(head.hidden, needs[0])
        self.weight = zeros(head.weight, needs[1], torch.float32)
        self.bias = zeros(head.bias, needs[2], torch.float32)

    def add(self, rows: Tensor | slice, head: Head, gradient: Tensor) -> None:
        """`gradient` [n, V] of the rows' product with the weight."""
        if self.hidden is not None:
            self.hidden[rows] = (gradient @ head.weight).to(self.hidden.dtype)
        if self.weight is not None:
            if gradient.dtype == self.weight.dtype:
                self.weight.addmm_(gradient.mT, head.hidden[rows])
            else:
                self.weight += gradient.mT @ head.hidden[rows]
        if self.bias is not None:
            self.bias += gradient.sum(0, dtype=self.bias.dtype)


class _Chunked(torch.autograd.Function):
    """Value and gradients in one pass over the chunks."""

    @staticmethod
    def forward(
        ctx: Any,  # Any: torch's context, here and below
        job: _Job,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        needs = [job.learns and needed for needed in ctx.needs_input_grad[1:]]
        sums = _Sums(job.student, needs)
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        device = hidden.device.type
        narrow = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if narrow else hidden.dtype
        head, targets = _cast(job.student, dtype), [_cast(t, dtype) for t in job.targets]
        assert isinstance(head, Head)
        with torch.autocast(device, enabled=False):
            # one tensor for the products of all chunks: new memory costs as much as work on it
            rooms = [
                one.weight.new_empty(min(job.chunk, job.count), len(one.weight))
                for one in (head, *targets)
                if isinstance(one, Head)
            ]
            for rows, share in job.chunks():
                room = iter(rooms)
                product = head.into(next(room), rows).detach()
                with torch.set_grad_enabled(any(needs)):
                    product.requires_grad_(any(needs))
                    inputs = [
                        target.of(target.into(next(room), rows))
                        if isinstance(target, Head)
                        else target[rows]
                        for target in targets
                    ]
                    value = share * job.loss(head.of(product), *inputs)
                total += value.detach()
                if any(needs):
                    sums.add(rows, head, *torch.autograd.grad(value, product))
                del product, value
        found = (sums.hidden, sums.weight, sums.bias)
        ctx.save_for_backward(*found)
        ctx.like = [(x.shape, x.dtype) if x is not None else None for x in (hidden, weight, bias)]
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given = zip(ctx.saved_tensors, ctx.like, strict=True)
        return None, *(
            None if x is None else (x * grads[0]).to(like[1]).reshape(like[0]) for x, like in given
        )
