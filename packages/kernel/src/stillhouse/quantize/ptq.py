"""Post-training quantization of all ops of a network, simulated in torch (TinySAM, AAAI 2025,
sec. 3.3): no training, a few calibration samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from stillhouse.artifact import Built, Model, recorded, save_model, spec_of
from stillhouse.data.data import Data, rows_of
from stillhouse.errors import BadRecipe, BadSetting, ContractError
from stillhouse.objectives.logits import kl_terms
from stillhouse.quantize.fake import check_bits
from stillhouse.quantize.ops import Ops
from stillhouse.quantize.scales import Metric, Op, Scales, minmax_scales, search_scales
from stillhouse.work import Work

if TYPE_CHECKING:
    from pathlib import Path

    from stillhouse.objectives.objective import Tensors

# what an output says: logits of one class of the last axis; a logit a number; the number itself
Likelihood = Literal["categorical", "bernoulli", "normal"]
Progress = Callable[[int, int, str], None]  # how many of how many are done, and what they are


def silent(done: int, total: int, text: str) -> None:
    """Reports nothing."""


class QuantizedNetwork(nn.Module):
    """`net` with both operands of each op rounded to `bits`; biases, additions and
    normalisations stay floats.

    The scales are the buffers weight_<i>, activation_<i>, zero_point_<i> of op i in order of
    execution; `ops` says of each its "form", the weight's "axis" of channels and how many
    "channels" there are (null: one scale). Raises ContractError when a forward computes another
    number of ops. Numbers stay 32-bit floats: for what integers bring, see `onnx_qdq`.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        bits: int,
        ops: Sequence[Mapping[str, Any]],  # Any: JSON values
    ) -> None:
        super().__init__()
        self.net, self.bits, self.ops = net, bits, tuple(ops)
        for i, op in enumerate(self.ops):
            count: int | None = op["channels"]
            self.register_buffer(f"weight_{i}", torch.ones(() if count is None else (count,)))
            self.register_buffer(f"activation_{i}", torch.ones(()))
            self.register_buffer(f"zero_point_{i}", torch.zeros(()))

    def scales(self, index: int) -> Scales:
        """Those of an op."""
        return Scales(
            weight=self.get_buffer(f"weight_{index}"),
            activation=self.get_buffer(f"activation_{index}"),
            zero_point=self.get_buffer(f"zero_point_{index}"),
        )

    def keep(self, index: int, scales: Scales) -> None:
        """Take these for an op."""
        self.get_buffer(f"weight_{index}").copy_(scales.weight)
        self.get_buffer(f"activation_{index}").copy_(scales.activation)
        self.get_buffer(f"zero_point_{index}").copy_(scales.zero_point)

    def rounded(self, index: int, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        """An op of rounded operands."""
        return op.quantized(x, weight, self.scales(index), bits=self.bits)

    def computed(
        self, batch: "Tensors", each: Callable[[int, Op, Tensor, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """The outputs of `net` with its ops computed by `each`."""
        mode = Ops(each, forms=[op["form"] for op in self.ops])
        with mode:
            found = self.net(batch)
        if mode.count != len(self.ops):
            raise ContractError(
                f"quantize: {mode.count} ops, but {len(self.ops)} were calibrated; "
                "the network must compute the same ones for every input"
            )
        return found

    def forward(self, batch: "Tensors") -> dict[str, Tensor]:
        return self.computed(batch, self.rounded)


def quantized(
    *,
    network: Mapping[str, Any],  # Any: JSON; {"build", "kwargs"} of the network in floats
    bits: int,
    products: Sequence[Mapping[str, Any]],  # the ops, as every saved model.json calls them
) -> nn.Module:
    """A `QuantizedNetwork` of a network of `stillhouse` or a plugin; PluginError for another's."""
    return QuantizedNetwork(spec_of(network).new(), bits=bits, ops=products)


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """A `convert`: the `role` with all linear layers, 2-d (transposed) convolutions and matrix
    products rounded to `bits`, weights and activations alike, by scales searched on `samples` rows
    of port "data" (drawn by the stage's seed): training data, never what is scored later.

    `outputs` says which of the network's outputs the task loss reads and as what; `metric` as in
    `search_scales`. One scale a tensor, for convolutions one an output channel of the weight; after
    a softmax and a GELU two ranges.

    Differs: a matrix product has one scale for all heads, where PTQ4ViT has one a head. Task loss:
    see `task_gradients`.
    """

    role: str = "student"
    bits: int = 8
    metric: Metric = "hessian"
    samples: int = 8
    candidates: int = 100
    rounds: int = 3
    inputs: tuple[str, ...] = ("images",)
    outputs: Mapping[str, Likelihood] = field(
        default_factory=lambda: dict[str, Likelihood](logits="categorical")
    )

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.samples < 1:
            raise BadSetting(f"quantize: samples must be >= 1 (got {self.samples})")

    def __call__(self, inputs: Mapping[str, Any], out: "Path", *, work: Work) -> None:
        if self.role not in inputs or "data" not in inputs:
            raise BadRecipe(
                f"quantize: needs the ports '{self.role}' and 'data' (got {sorted(inputs)})"
            )
        built: Built = inputs[self.role]
        batch = drawn(inputs["data"], self.samples, self.inputs, work.rng)
        save_model(out, self.applied(built, batch, progress=work.progress))

    def applied(self, built: Built, batch: "Tensors", *, progress: Progress = silent) -> Built:
        """The quantized model, calibrated on `batch`; its weights are those of `built`."""
        net = built.module.eval().requires_grad_(False)
        covering, ops = _covering(net, batch, self.bits)
        kwargs = {
            "network": recorded(built.spec),
            "bits": self.bits,
            "products": ops,
        }
        module = QuantizedNetwork(net, bits=self.bits, ops=ops).eval()
        for index, scales in enumerate(covering):
            module.keep(index, scales)
        if self.metric != "minmax":
            self._search(module, batch, progress)
        spec = Model(build=quantized, kwargs=kwargs)
        return replace(built, spec=spec, module=module)

    def _search(self, module: QuantizedNetwork, batch: "Tensors", progress: Progress) -> None:
        hessian = self.metric == "hessian"
        gradients = task_gradients(module, batch, self.outputs) if hessian else None
        for index in range(len(module.ops)):
            op, x, weight, outputs = _captured(module, batch, index)
            g = None if gradients is None else gradients[index]
            found = search_scales(
                op,
                (x, weight),
                outputs,
                g,
                bits=self.bits,
                # what no scored output depends on has no gradient to be led by
                metric="mse" if g is None else self.metric,
                candidates=self.candidates,
                rounds=self.rounds,
            )
            module.keep(index, found)
            progress(index + 1, len(module.ops), "ops")


def drawn(data: Data, samples: int, names: Sequence[str], rng: Generator) -> dict[str, Tensor]:
    """The columns `names` of `samples` rows that a generator draws: the same for the same seed."""
    batch = next(iter(data.batches(min(samples, len(data)), rng=rng)))
    for name in names:
        if name not in batch:
            raise BadRecipe(
                f"quantize: the data have no column '{name}' (they have {sorted(batch)})"
            )
    rows = rows_of(batch, torch.arange(len(batch["id"])))
    return {name: rows[name] for name in names}


def task_gradients(
    module: QuantizedNetwork, batch: "Tensors", outputs: Mapping[str, Likelihood]
) -> list[Tensor | None]:
    """dL/dO of each op's output O at the network as it is quantized now, L the sum over
    `outputs` of KL(float || quantized); None where no output depends on O.

    Categorical and Bernoulli outputs are logits, normal ones means of unit variance; KL in nats,
    mean over distributions. Rounding of activations passes gradients straight through.

    Differs: PTQ4ViT's released search takes the gradient of KL(y || y) at the float network, which
    is zero but for the rounding of floats. Here L is not: the quantized outputs differ.
    """
    held: dict[int, Tensor] = {}

    def each(index: int, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        scales = module.scales(index)
        rounded = op.rounded_activation(x, scales, bits=module.bits)
        second = op.rounded_weight(weight, scales, bits=module.bits)
        out = op.compute(_straight(x, rounded), _straight(weight, second))
        held[index] = out if out.requires_grad else out.detach().requires_grad_()
        return held[index].clone()  # a caller may write into it

    with torch.no_grad():
        expected = module.net(dict(batch))
    with torch.enable_grad():
        found = module.computed(dict(batch), each)
        loss = sum(
            (divergence(found[name], expected[name], how) for name, how in outputs.items()),
            start=torch.zeros(()),
        )
        tensors = [held[i] for i in range(len(module.ops))]
        return list(torch.autograd.grad(loss, tensors, allow_unused=True))


def _straight(x: Tensor, rounded: Tensor) -> Tensor:
    return x + (rounded - x).detach()


def divergence(found: Tensor, expected: Tensor, likelihood: Likelihood) -> Tensor:
    """KL(expected || found) [] in nats, mean over distributions; `expected` is detached."""
    expected = expected.detach()
    if likelihood == "normal":
        return 0.5 * (found - expected).square().mean()
    if likelihood == "bernoulli":
        p = torch.sigmoid(expected)
        entropy = functional.binary_cross_entropy_with_logits(expected, p)
        return functional.binary_cross_entropy_with_logits(found, p) - entropy
    log_q, log_p = functional.log_softmax(found, dim=-1), functional.log_softmax(expected, dim=-1)
    return kl_terms(log_q, log_p).sum(-1).mean()


def _covering(
    net: nn.Module, batch: "Tensors", bits: int
) -> tuple[list[Scales], list[dict[str, Any]]]:  # Any: JSON values
    """Min-max scales of each op, and what it is."""
    scales: list[Scales] = []
    ops: list[dict[str, Any]] = []

    def each(index: int, op: Op, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG001
        scales.append(minmax_scales(op, x, weight, bits=bits))
        axis = op.channels
        channels = None if axis is None else weight.shape[axis]
        ops.append({"form": op.form, "axis": axis, "channels": channels})
        return op.compute(x, weight)

    with torch.no_grad(), Ops(each, forms=None):
        net(dict(batch))
    return scales, ops


def _captured(
    module: QuantizedNetwork, batch: "Tensors", wanted: int
) -> tuple[Op, Tensor, Tensor, Tensor]:
    """An op, its operands and its output in floats: one at a time, for the memory of it."""
    caught: list[tuple[Op, Tensor, Tensor, Tensor]] = []

    def each(index: int, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        out = op.compute(x, weight)
        if index == wanted:
            caught.append((op, x.clone(), weight, out.clone()))
        return out

    with torch.no_grad():
        module.computed(dict(batch), each)
    return caught[0]
