"""A network whose ops are rounded, as an ONNX file whose ops ONNX Runtime computes with
integers.
"""

import difflib
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, recorded
from stillhouse.errors import BadRecipe, BadSetting, ContractError, UnknownName
from stillhouse.export import MIN_OPSET, Axes, check_axes, check_opset, resizings, write_onnx
from stillhouse.leftovers import temporary
from stillhouse.profile import macs, parameters
from stillhouse.quantize.fake import GELU_MINIMUM
from stillhouse.quantize.onnx_network import ONNX, distance, save_onnx, session
from stillhouse.quantize.ptq import QuantizedNetwork, drawn
from stillhouse.quantize.scales import SMALLEST, Op, Scales
from stillhouse.work import Work

if TYPE_CHECKING:
    from stillhouse.objectives.objective import Tensors

BITS = 8
# what ONNX Runtime puts in the place of an op with its roundings
KERNELS = frozenset(
    {
        *("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger"),
        *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm"),
    }
)


@dataclass(frozen=True, kw_only=True)
class ToIntegers:
    """A `convert`: a `QuantizedNetwork` of 8 bits (what `Quantize` made) as an ONNX file that ONNX
    Runtime runs with integers, in QDQ form: activations uint8, weights int8, with the scales found.

    Ports: the `role`, and "data", `samples` rows of which (drawn by the stage's seed; with that of
    `Quantize`, the same) measure the ranges of what convolutions give. Raises ContractError when
    an output, on these rows, is off that of the same ops rounded in torch by more than
    `tolerance` of its mean size; so too at other lengths of the axes in `dynamic`, which is as of
    `Export`. `parts` names the modules whose ops become integers
    ("sam.image_encoder"; none: all): what stays a float is not rounded, and small ops are no
    faster as integers. Transposed convolutions stay floats. The spec's "integers" says how many
    "ops" the network has, how many the file has "rounded", and the "kernels" that ONNX Runtime
    took for them.

    Differs: ONNX has no two ranges. After a softmax the scale is the largest number measured over
    255, after a GELU 255 levels go from -0.17 to the largest number that the two ranges reach. ONNX
    Runtime computes a convolution with integers only if what it gives is rounded too: where a
    op reads it, with that one's scale, which all others then read as well, else on 255 levels
    over the range measured. After a ReLU these begin at zero, and end where a ReLU6 does. BatchNorm
    moves into the scales of the weights before it. A matrix product has one scale for all heads.
    Processors without VNNI add pairs of products in 16 bits, which may overflow.
    """

    role: str = "student"
    parts: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("images",)
    outputs: tuple[str, ...] = ("logits",)
    dynamic: Axes = field(default_factory=dict[str, tuple[str, ...]])
    opset: int = 18
    samples: int = 8
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        check_opset(self.opset, where="integers")
        check_axes(self.dynamic, self.inputs, where="integers")
        if self.samples < 1:
            raise BadSetting(f"integers: samples must be >= 1 (got {self.samples})")

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        if self.role not in inputs or "data" not in inputs:
            raise BadRecipe(
                f"integers: needs the ports '{self.role}' and 'data' (got {sorted(inputs)})"
            )
        built: Built = inputs[self.role]
        network = _checked(built.module, self.role)
        batch = drawn(inputs["data"], self.samples, self.inputs, work.rng)
        chosen = _Rounded(network, self.parts, batch)
        content, rounded = self._file(chosen, batch)
        for some in (batch, *resizings(batch, self.dynamic)):
            self._check(content, chosen.simulated(some), some)
        one = {name: value[:1] for name, value in batch.items()}
        kwargs = {
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "parameter_count": parameters(network),
            "macs": macs(network.net, one),
            "source": recorded(built.spec),
            "integers": {
                "ops": len(network.ops),
                "rounded": rounded,
                "kernels": integer_kernels(content),
            },
        }
        save_onnx(out, content, kwargs, built.assets)

    def _file(self, rounded: "_Rounded", batch: "Tensors") -> tuple[bytes, int]:
        """The file, and how many of its ops have rounded operands."""
        import onnx_ir as ir

        from stillhouse.quantize.onnx_graph import (
            fold,
            ranged,
            round_outputs,
            rounded_ops,
            store_biases,
        )

        with temporary() as folder:
            file = folder / ONNX
            with rounded.watching():
                opset, axes = self.opset, self.dynamic
                write_onnx(rounded, batch, self.outputs, file, opset=opset, dynamic=axes)
            model = ir.load(str(file))
            fold(model.graph)
            ranges = _ranges(_bytes(model), ranged(model.graph), batch)
            round_outputs(model.graph, ranges)
            store_biases(model.graph)
            return _bytes(model), rounded_ops(model.graph)

    def _check(self, content: bytes, expected: "Tensors", batch: "Tensors") -> None:
        given = {name: value.numpy() for name, value in batch.items()}
        found = session(content).run(list(self.outputs), given)
        for name, value in zip(self.outputs, found, strict=True):
            if off := distance(value, expected[name], tolerance=self.tolerance):
                raise ContractError(
                    f"integers: '{name}' is off the rounded network's by {off}; leave fragile "
                    "parts out of `parts`"
                )


class _Rounded(nn.Module):
    """A quantized network for the exporter: ONNX's own rounding of the operands in `parts`."""

    def __init__(self, network: QuantizedNetwork, parts: Sequence[str], batch: "Tensors") -> None:
        super().__init__()
        self.network = network
        known = dict(network.net.named_modules())
        for part in parts:
            if part not in known:
                near = difflib.get_close_matches(part, known, n=8, cutoff=0)
                raise UnknownName("part", part, near)
        inside = [part for part in known if any(f"{part}.".startswith(f"{p}.") for p in parts)]
        self.watched = [known[part] for part in inside]
        self.everything, self.depth = not parts, 0
        scales = [network.scales(i) for i in range(len(network.ops))]
        forms = [op["form"] for op in network.ops]
        tops = _tops(network, batch)
        self.grids = [_grids(*one) for one in zip(forms, scales, tops, strict=True)]

    @contextmanager
    def watching(self) -> Generator[None]:
        """Knows while it is entered whether a part is being computed."""

        def deeper(by: int) -> Any:  # Any: hooks of two kinds
            def hook(*_: object) -> None:
                self.depth += by

            return hook

        handles = [one.register_forward_pre_hook(deeper(1)) for one in self.watched]
        handles += [one.register_forward_hook(deeper(-1)) for one in self.watched]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def forward(self, batch: "Tensors") -> dict[str, Tensor]:
        return self.network.computed(batch, self._each)

    def simulated(self, batch: "Tensors") -> dict[str, Tensor]:
        """What the network gives with the same operands rounded, in torch."""

        def each(index: int, op: Op, x: Tensor, weight: Tensor) -> Tensor:
            if not self._takes(op):
                return op.compute(x, weight)
            return self.network.rounded(index, op, x, weight)

        with self.watching(), torch.no_grad():
            return self.network.computed(batch, each)

    def _takes(self, op: Op) -> bool:
        transposed = op.channels == 1
        return not transposed and bool(self.everything or self.depth)

    def _each(self, index: int, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        if not self._takes(op):
            return op.compute(x, weight)
        (scale, zero), weight_scale = self.grids[index]
        x = _rounding(x, scale, zero, None)
        zeros = torch.zeros_like(weight_scale, dtype=torch.int8)
        return op.compute(x, _rounding(weight, weight_scale, zeros, op.channels))


def _tops(network: QuantizedNetwork, batch: "Tensors") -> list[float]:
    """The largest number of each op's activation on a batch, all ops rounded."""
    tops: list[float] = []

    def each(index: int, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        tops.append(x.max().item())
        return network.rounded(index, op, x, weight)

    with torch.no_grad():
        network.computed(dict(batch), each)
    return tops


def _grids(form: str, scales: Scales, top: float) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """(scale, zero point) of the activation in uint8, and the scale of the weight in int8; `top` is
    the largest number measured, of which a softmax over many keys has no large one.
    """
    if form == "softmax":
        scale, zero = max(top, SMALLEST) / 255, 0
    elif form == "gelu":
        scale = (scales.activation.item() * (2 ** (BITS - 1) - 1) + GELU_MINIMUM) / 255
        zero = round(GELU_MINIMUM / scale)
    else:
        scale, zero = scales.activation.item(), int(scales.zero_point.item()) + 2 ** (BITS - 1)
    return (torch.tensor(scale), torch.tensor(zero, dtype=torch.uint8)), scales.weight.clone()


def _rounding(x: Tensor, scale: Tensor, zero: Tensor, axis: int | None) -> Tensor:
    """QuantizeLinear and DequantizeLinear, where a graph is being recorded."""

    def node(kind: str, first: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.onnx.ops.symbolic(
            kind,
            (first, scale, zero),
            None if axis is None else {"axis": axis},
            dtype=dtype,
            shape=x.shape,
            version=MIN_OPSET,
        )

    return node("DequantizeLinear", node("QuantizeLinear", x, zero.dtype), x.dtype)


def _checked(module: nn.Module, role: str) -> QuantizedNetwork:
    if not isinstance(module, QuantizedNetwork):
        raise BadRecipe(
            f"integers: '{role}' is a {type(module).__name__}; make its scales with Quantize first"
        )
    if module.bits != BITS:
        raise BadSetting(
            f"integers: '{role}' is of {module.bits} bits, ONNX Runtime computes with {BITS}; "
            f"give Quantize bits={BITS}"
        )
    return module


def _bytes(model: Any) -> bytes:  # Any: onnx_ir is imported late
    import onnx_ir as ir

    return ir.to_proto(model).SerializeToString(deterministic=True)


def integer_kernels(content: bytes) -> dict[str, int]:
    """How many kernels of each type that multiply integers ONNX Runtime runs for a file, on the
    CPU of this machine.
    """
    import onnx

    with temporary() as folder:
        file = folder / ONNX
        session(content, optimized=file)
        counts = Counter(node.op_type for node in onnx.load(str(file)).graph.node)
    return {kind: count for kind, count in sorted(counts.items()) if kind in KERNELS}


def _ranges(
    content: bytes, names: Sequence[str], batch: "Tensors"
) -> dict[str, tuple[float, float]]:
    """The smallest and the largest number of tensors of a file, row by row of a batch."""
    import onnx
    from onnx import TensorProto, helper

    if not names:
        return {}  # ONNX Runtime takes no names for all of them
    model = onnx.load_from_string(content)
    ends = [(name, kind) for kind in ("ReduceMin", "ReduceMax") for name in names]
    for name, kind in ends:
        model.graph.node.append(helper.make_node(kind, [name], [f"{kind}.{name}"], keepdims=0))
        result = helper.make_tensor_value_info(f"{kind}.{name}", TensorProto.FLOAT, [])
        model.graph.output.append(result)
    whole = session(model.SerializeToString(), plain=True)
    wanted = [f"{kind}.{name}" for name, kind in ends]
    found: list[list[float]] = []
    for i in range(len(next(iter(batch.values())))):
        row = {name: value[i : i + 1].numpy() for name, value in batch.items()}
        found.append([float(np.asarray(one)) for one in whole.run(wanted, row)])
    measured = torch.tensor(found)
    low, high = measured[:, : len(names)].amin(0), measured[:, len(names) :].amax(0)
    return {name: (low[i].item(), high[i].item()) for i, name in enumerate(names)}
