"""The scales of one op's two operands, found by an alternating grid search.

PTQ4ViT (ECCV 2022) as TinySAM (AAAI 2025, sec. 3.3) takes it: a reconstruction from the papers. An
op is a linear layer, a convolution or a matrix product; "weight" is its second operand also
where that is no weight, "activation" its first.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.errors import BadRecipe, BadSetting
from stillhouse.quantize.fake import check_bits, fake_quantize, quantize_gelu, quantize_softmax

Metric = Literal["hessian", "mse", "minmax"]
# how an activation is rounded: around zero; with a zero point; in two ranges
Form = Literal["symmetric", "asymmetric", "softmax", "gelu"]
LOWEST, HIGHEST = 0.01, 1.2  # candidates, as parts of the scale that covers all numbers
SPLITS = 20  # of a softmax: 2^0 ... 2^-19
SMALLEST = 1e-12  # a scale, where all numbers are zero


@dataclass(frozen=True, kw_only=True)
class Op:
    """`compute(activation, weight)`, and how its operands are rounded: the activation in `form`,
    the weight around zero with one scale, or one for each index of its axis `channels`.
    """

    compute: Callable[[Tensor, Tensor], Tensor]
    form: Form = "symmetric"
    channels: int | None = None

    def rounded_weight(self, weight: Tensor, scales: "Scales", *, bits: int) -> Tensor:
        """The weight on its grid."""
        scale = scales.weight
        if self.channels is not None:
            scale = scale.reshape([-1 if i == self.channels else 1 for i in range(weight.dim())])
        return fake_quantize(weight, scale, bits=bits)

    def rounded_activation(self, x: Tensor, scales: "Scales", *, bits: int) -> Tensor:
        """The activation on its grid, or its two."""
        if self.form == "softmax":
            return quantize_softmax(x, scales.activation, bits=bits)
        if self.form == "gelu":
            return quantize_gelu(x, scales.activation, bits=bits)
        return fake_quantize(x, scales.activation, bits=bits, zero_point=scales.zero_point)

    def quantized(self, x: Tensor, weight: Tensor, scales: "Scales", *, bits: int) -> Tensor:
        """What the op gives of the two rounded operands."""
        return self.compute(
            self.rounded_activation(x, scales, bits=bits),
            self.rounded_weight(weight, scales, bits=bits),
        )


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The scales of an op: `weight` [] or [channels]; `activation` [], which after a softmax is
    the split of the two ranges and after a GELU the positive scale; `zero_point` [], a whole
    number.
    """

    weight: Tensor
    activation: Tensor
    zero_point: Tensor


def op_of(layer: nn.Module) -> Op:
    """The op a layer computes, its bias included. Raises BadRecipe for other layers."""
    match layer:
        case nn.Linear():
            return Op(compute=lambda x, w: functional.linear(x, w, layer.bias))
        case nn.Conv2d(padding_mode="zeros"):
            return Op(
                compute=lambda x, w: layer._conv_forward(x, w, layer.bias),  # pyright: ignore[reportPrivateUsage]
                form="asymmetric",
                channels=0,
            )
        case nn.ConvTranspose2d():
            return Op(compute=lambda x, w: _transposed(layer, x, w), form="asymmetric", channels=1)
        case _:
            raise BadRecipe(
                f"quantize: a {type(layer).__name__} has no scales to search; "
                "give a Linear, a Conv2d with zeros around, a ConvTranspose2d or a Op"
            )


def _transposed(layer: nn.ConvTranspose2d, x: Tensor, weight: Tensor) -> Tensor:
    return functional.conv_transpose2d(
        x,
        weight,
        layer.bias,
        layer.stride,  # pyright: ignore[reportArgumentType]  torch says tuple[int, ...]
        layer.padding,  # pyright: ignore[reportArgumentType]
        layer.output_padding,  # pyright: ignore[reportArgumentType]
        layer.groups,
        layer.dilation,  # pyright: ignore[reportArgumentType]
    )


def minmax_scales(op: Op, x: Tensor, weight: Tensor, *, bits: int) -> Scales:
    """Scales that cover all numbers: max|x| / (2^(b-1) - 1/2); with a zero point (max - min) /
    (2^b - 1), zero among the numbers; after a softmax the smallest split 2^-k above all numbers, so
    that one range holds them.
    """
    most = 2 ** (bits - 1) - 0.5
    axes = [i for i in range(weight.dim()) if i != op.channels]
    scale = (weight.abs().amax(axes) / most).clamp(min=SMALLEST)
    zero = x.new_zeros(())
    if op.form == "softmax":
        above = [2.0**-k for k in range(SPLITS) if 2.0**-k > x.max().item()]
        split = x.new_tensor(min(above, default=1.0))
        return Scales(weight=scale, activation=split, zero_point=zero)
    if op.form != "asymmetric":
        top = x.max() if op.form == "gelu" else x.abs().max()
        return Scales(weight=scale, activation=(top / most).clamp(min=SMALLEST), zero_point=zero)
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    span = (high - low).clamp(min=SMALLEST)
    levels = 2**bits - 1
    return Scales(
        weight=scale,
        activation=span / levels,
        zero_point=torch.round(-low / span * levels) - 2 ** (bits - 1),
    )


def search_scales(
    layer: nn.Module | Op,
    inputs: Tensor | tuple[Tensor, Tensor],
    outputs: Tensor,
    gradients: Tensor | None,
    *,
    bits: int,
    metric: Metric = "hessian",
    candidates: int = 100,
    rounds: int = 3,
) -> Scales:
    """The scales that minimise sum((g * (O_q - O))^2) on calibration samples: the weight's given
    the activation's, then the other way round, `rounds` times.

    `inputs` are what a layer is given, or (activation, weight) of a `Op`; `outputs` O are what
    it then gives in floats, `gradients` g those of the task loss for O, of the same shape. Metric
    "mse" takes g = 1, "minmax" searches nothing. Candidates are linear in 0.01 ... 1.2 times the
    covering scale. A weight with a scale a channel has each judged on the outputs of that channel.
    Nothing is differentiated.

    Differs: the search begins at the covering scales and a candidate must do better than what is
    held, so that it never ends worse than it began; the zero point of an asymmetric activation
    is kept while its scale is searched.
    """
    _check(bits, metric, gradients, outputs, candidates, rounds)
    op = layer if isinstance(layer, Op) else op_of(layer)
    x, weight = _operands(layer, inputs)
    with torch.no_grad():
        start = minmax_scales(op, x, weight, bits=bits)
        if metric == "minmax":
            return start
        g = _normalised(gradients) if metric == "hessian" and gradients is not None else None
        search = _Search(op=op, x=x, weight=weight, outputs=outputs, g=g, bits=bits, start=start)
        return search.run(candidates, rounds)


def criterion(outputs: Tensor, found: Tensor, gradients: Tensor | None) -> Tensor:
    """sum((g * (O_q - O))^2) [], in doubles; g = 1 for None."""
    error = (found - outputs).double()
    return (error if gradients is None else error * gradients).square().sum()


def _normalised(gradients: Tensor) -> Tensor:
    """Only their ratios matter, and their squares must not vanish."""
    return gradients / gradients.abs().max().clamp(min=torch.finfo(gradients.dtype).tiny)


def _operands(
    layer: nn.Module | Op, inputs: Tensor | tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    if isinstance(layer, Op):
        if isinstance(inputs, Tensor):
            raise BadRecipe("quantize: a Op needs both operands (got one tensor)")
        return inputs
    weight = layer.weight
    if not (isinstance(inputs, Tensor) and isinstance(weight, Tensor)):
        raise BadRecipe("quantize: a layer needs one tensor of inputs")
    return inputs, weight


@dataclass(frozen=True, kw_only=True)
class _Search:
    op: Op
    x: Tensor
    weight: Tensor
    outputs: Tensor
    g: Tensor | None
    bits: int
    start: Scales

    def run(self, candidates: int, rounds: int) -> Scales:
        spread = (HIGHEST - LOWEST) / candidates
        factors = [LOWEST + i * spread for i in range(candidates)]
        held = self.start
        for _ in range(rounds):
            before = held
            held = self._better_activation(self._better_weight(held, factors), factors)
            if torch.equal(held.weight, before.weight) and torch.equal(
                held.activation, before.activation
            ):
                break  # the next round would find the same
        return held

    def _better_weight(self, held: Scales, factors: list[float]) -> Scales:
        x = self.op.rounded_activation(self.x, held, bits=self.bits)
        best, least = held.weight, self._weight_loss(x, held)
        for factor in factors:
            scale = self.start.weight * factor
            loss = self._weight_loss(x, replace(held, weight=scale))
            best = torch.where(loss < least, scale, best)
            least = torch.minimum(loss, least)
        return replace(held, weight=best)

    def _weight_loss(self, x: Tensor, scales: Scales) -> Tensor:
        """[] or [channels]."""
        weight = self.op.rounded_weight(self.weight, scales, bits=self.bits)
        found = self.op.compute(x, weight)
        if self.op.channels is None:
            return criterion(self.outputs, found, self.g)
        error = (found - self.outputs).double()
        each = (error if self.g is None else error * self.g).square().transpose(0, -3)
        # groups of a transposed convolution share the channels of its weight
        return each.flatten(1).sum(1).reshape(-1, len(scales.weight)).sum(0)

    def _better_activation(self, held: Scales, factors: list[float]) -> Scales:
        weight = self.op.rounded_weight(self.weight, held, bits=self.bits)
        if self.op.form == "softmax":
            tried = [self.x.new_tensor(2.0**-k) for k in range(SPLITS)]
        else:
            tried = [self.start.activation * factor for factor in factors]
        best, least = held.activation, self._loss(weight, held)
        for scale in tried:
            loss = self._loss(weight, replace(held, activation=scale))
            if loss < least:
                best, least = scale, loss
        return replace(held, activation=best)

    def _loss(self, weight: Tensor, scales: Scales) -> Tensor:
        x = self.op.rounded_activation(self.x, scales, bits=self.bits)
        return criterion(self.outputs, self.op.compute(x, weight), self.g)


def _check(
    bits: int,
    metric: str,
    gradients: Tensor | None,
    outputs: Tensor,
    candidates: int,
    rounds: int,
) -> None:
    check_bits(bits)
    if candidates < 1 or rounds < 1:
        raise BadSetting(
            f"quantize: candidates and rounds must be >= 1 (got {candidates}, {rounds})"
        )
    if metric == "hessian" and (gradients is None or gradients.shape != outputs.shape):
        shape = None if gradients is None else list(gradients.shape)
        raise BadSetting(
            f"quantize: metric 'hessian' needs gradients of the outputs' shape "
            f"{list(outputs.shape)} (got {shape})"
        )
