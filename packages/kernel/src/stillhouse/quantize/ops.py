"""The ops of a forward pass, one after the other, whoever computes them.

Found where torch is called, not by module: an op inside an attention is one like any other.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from stillhouse.errors import BadRecipe, ContractError
from stillhouse.quantize.scales import Form, Op

# torch's function: the names of its two operands, its form, the axis of the weight's channels
KINDS: Mapping[str, tuple[tuple[str, str], Form, int | None]] = {
    "linear": (("input", "weight"), "symmetric", None),
    "conv2d": (("input", "weight"), "asymmetric", 0),
    "conv_transpose2d": (("input", "weight"), "asymmetric", 1),
    "matmul": (("input", "other"), "symmetric", None),
    "__matmul__": (("self", "other"), "symmetric", None),
    "bmm": (("input", "mat2"), "symmetric", None),
}
SOURCES: Mapping[str, Form] = {"softmax": "softmax", "gelu": "gelu"}
# what gives the same numbers in another shape
MOVES = frozenset(
    (
        *("reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze", "__getitem__"),
        *("permute", "transpose", "movedim", "swapaxes", "contiguous", "clone", "dropout"),
    )
)
REFUSED = frozenset({"multi_head_attention_forward", "_native_multi_head_attention"})

Each = Callable[[int, Op, Tensor, Tensor], Tensor]


class Ops(TorchFunctionMode):
    """While entered, every linear layer, 2-d (transposed) convolution and matrix product is
    computed by `each(index, op, activation, weight)`, its index counted from 0.

    torch's fused attention is taken apart in op, softmax, op. `forms` are those of an
    earlier pass, by index; for None they are found: what a linear layer or an op takes from a
    softmax or a GELU, perhaps reshaped, is of that form. Other operations (einsum, 1-d and 3-d
    convolutions) pass untouched. Raises BadRecipe for torch's own multi-head attention, which
    hides its ops.
    """

    def __init__(self, each: Each, *, forms: Sequence[Form] | None) -> None:
        super().__init__()
        self.each, self.forms, self.count = each, forms, 0
        # tensors are held so that their ids stay theirs
        self.origins: dict[int, tuple[Tensor, Form]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],  # Any: torch's functions
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name, named = getattr(func, "__name__", ""), kwargs or {}
        if name in REFUSED:
            raise BadRecipe(
                "quantize: nn.MultiheadAttention hides its ops; write the attention with "
                "linear layers and scaled_dot_product_attention"
            )
        if name == "scaled_dot_product_attention":
            return self._attention(*args, **named)
        if name in KINDS:
            return self._found(func, name, args, named)
        found = func(*args, **named)
        if self.forms is None:
            self._follow(name, args, found)
        return found

    def _found(
        self,
        func: Callable[..., Tensor],
        name: str,
        args: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Tensor:
        operands, form, axis = KINDS[name]
        rest = {key: value for key, value in named.items() if key not in operands}
        x, weight = (
            args[i] if i < len(args) else named[operand] for i, operand in enumerate(operands)
        )
        return self._op(lambda a, b: func(a, b, *args[2:], **rest), form, axis, x, weight)

    def _op(
        self,
        compute: Callable[[Tensor, Tensor], Tensor],
        form: Form,
        axis: int | None,
        x: Tensor,
        weight: Tensor,
    ) -> Tensor:
        if self.forms is None:
            known = self.origins.get(id(x))
            form = known[1] if known is not None and form == "symmetric" else form
        elif self.count < len(self.forms):
            form = self.forms[self.count]
        else:
            raise ContractError(
                f"quantize: more ops than the {len(self.forms)} that were calibrated; "
                "the network must compute the same ones for every input"
            )
        index, self.count = self.count, self.count + 1
        return self.each(index, Op(compute=compute, form=form, channels=axis), x, weight)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if is_causal or enable_gqa or dropout_p > 0:
            raise BadRecipe(
                "quantize: attention with is_causal, enable_gqa or dropout cannot be taken apart; "
                "give it a mask instead"
            )
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores = self._op(torch.matmul, "symmetric", None, query, key.transpose(-2, -1))
        scores = scores * factor
        if attn_mask is not None:
            scores = (
                scores.masked_fill(~attn_mask, -torch.inf)
                if attn_mask.dtype == torch.bool
                else scores + attn_mask
            )
        weights = functional.softmax(scores, dim=-1)
        return self._op(torch.matmul, "softmax", None, weights, value)

    def _follow(self, name: str, args: tuple[Any, ...], found: object) -> None:
        if not isinstance(found, Tensor):
            return
        if name in SOURCES:
            self.origins[id(found)] = (found, SOURCES[name])
        elif name in MOVES and args and id(args[0]) in self.origins:
            self.origins[id(found)] = (found, self.origins[id(args[0])][1])
