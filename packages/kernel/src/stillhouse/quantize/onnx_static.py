"""A trained role as an ONNX file, and that file quantized to int8.

Static: the ranges of the activations are measured once, on samples, and stored.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from stillhouse.artifact import Built, recorded
from stillhouse.data.data import Data
from stillhouse.errors import BadRecipe, BadSetting, ContractError
from stillhouse.export import Axes, check_axes, check_onnx, check_opset, sample, write_onnx
from stillhouse.leftovers import temporary
from stillhouse.profile import macs, parameters
from stillhouse.quantize.onnx_network import ONNX, OnnxNetwork, distance, save_onnx, session
from stillhouse.work import Work

SOFTMAX = ("Softmax", "LogSoftmax")
# what lies between an addition and the softmax that it is for
BETWEEN = (
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"),
    *("Mul", "Div"),
)
Method = Literal["minmax", "percentile"]


@dataclass(frozen=True, kw_only=True)
class ToOnnx:
    """A `convert`: the `role` as an ONNX file in 32-bit floats, run by ONNX Runtime from here on.

    Ports: the role, and "data", whose first `samples` rows check the file: raises ContractError
    when an output differs from torch by more than `tolerance`. `dynamic` as of `Export`. The folder
    also holds model.onnx.
    """

    role: str = "student"
    inputs: tuple[str, ...] = ("images",)
    outputs: tuple[str, ...] = ("logits",)
    dynamic: Axes = field(default_factory=dict[str, tuple[str, ...]])
    opset: int = 18
    samples: int = 32
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        check_opset(self.opset, where="onnx")
        check_axes(self.dynamic, self.inputs, where="onnx")

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        built, data = _ports(inputs, self.role)
        batch = sample(data, self.samples, self.inputs)
        with temporary() as folder:
            file = folder / ONNX
            given, axes = (built.module, batch, self.outputs), self.dynamic
            write_onnx(*given, file, opset=self.opset, dynamic=axes)
            check_onnx(file, *given, tolerance=self.tolerance, dynamic=axes)
            content = file.read_bytes()
        one = {name: value[:1] for name, value in batch.items()}
        kwargs = {
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "parameter_count": parameters(built.module),
            "macs": macs(built.module, one),
            "source": recorded(built.spec),
        }
        save_onnx(out, content, kwargs, built.assets)


@dataclass(frozen=True, kw_only=True)
class QuantizeStatic:
    """A `convert`: an `OnnxNetwork` with int8 weights (a scale a channel) and uint8 activations, by
    ONNX Runtime's static quantization in QDQ form.

    Ports: the `role`, which `ToOnnx` made, and "data", `samples` rows of which (drawn by the
    stage's seed) measure the ranges of the activations: training data, never what is scored later.
    Only nodes of the types `ops` are quantized; those of `float_outputs` take quantized numbers in
    but give floats out, as a regressor's last layer should. What is added on the way to a softmax
    stays floats: beside a mask's large numbers all scores would be one. Raises ContractError when
    an output, on the first rows of those drawn, is off the float file's by more than `tolerance` of
    its mean size.

    Differs: ONNX Runtime's "entropy" is not offered: `quantize_static` gives it as many bins as
    quantized bins, of which the whole range is the only choice: MinMax's file, byte for byte.
    """

    role: str = "student"
    samples: int = 256
    batch: int = 32
    method: Method = "minmax"
    ops: tuple[str, ...] = ("Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "GlobalAveragePool")
    float_outputs: tuple[str, ...] = ("Gemm", "MatMul")
    tolerance: float = 0.2

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch < 1:
            raise BadSetting(
                f"quantize: samples and batch must be >= 1 (got {self.samples}, {self.batch})"
            )

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        built, data = _ports(inputs, self.role)
        if not isinstance(built.module, OnnxNetwork):
            raise BadRecipe(
                f"quantize: '{self.role}' is a {type(built.module).__name__}; "
                "make it an ONNX file with ToOnnx first"
            )
        rows = _Rows(data, built.module.inputs, self.samples, self.batch, work.rng)
        content = _quantized(built.module.file, rows, self)
        self._check(content, built.module, rows.first)
        kwargs = {k: v for k, v in built.spec.kwargs.items() if k != "size"}
        save_onnx(out, content, kwargs, built.assets)

    def _check(self, content: bytes, floats: OnnxNetwork, rows: Mapping[str, Any]) -> None:
        """The int8 file against the float one, which `ToOnnx` compared with torch."""
        batch = {name: torch.from_numpy(value) for name, value in rows.items()}
        expected = floats(batch)
        found = session(content).run(list(floats.outputs), dict(rows))
        for name, value in zip(floats.outputs, found, strict=True):
            if off := distance(value, expected[name], tolerance=self.tolerance):
                raise ContractError(
                    f"quantize: '{name}' of the int8 file is off the float one's by {off}; leave "
                    "operators out of `ops`, or allow more with `tolerance`"
                )


def _ports(inputs: Mapping[str, Any], role: str) -> tuple[Built, Data]:
    if role not in inputs or "data" not in inputs:
        raise BadRecipe(f"onnx: needs the ports '{role}' and 'data' (got {sorted(inputs)})")
    return inputs[role], inputs["data"]


class _Rows:
    """Batches of arrays in the order a generator draws: what ONNX Runtime calibrates on."""

    def __init__(
        self, data: Data, names: Sequence[str], samples: int, batch: int, rng: Generator
    ) -> None:
        self.left = min(samples, len(data))
        self.first: dict[str, Any] = {}  # Any: numpy arrays; the first batch that was given
        self.names = tuple(names)
        self.batches: Iterator[Mapping[str, Tensor]] = data.batches(batch, rng=rng)

    def get_next(self) -> dict[str, Any] | None:  # Any: numpy arrays
        """The next batch, or None after the last."""
        if self.left <= 0:
            return None
        batch = next(self.batches)
        count = min(self.left, len(batch["id"]))
        self.left -= count
        given = {name: batch[name][:count].numpy() for name in self.names}
        self.first = self.first or given
        return given


def _quantized(file: Tensor, rows: _Rows, how: QuantizeStatic) -> bytes:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Any:  # Any: as the base class has it
            return rows.get_next()

    methods = {
        "minmax": quantization.CalibrationMethod.MinMax,
        "percentile": quantization.CalibrationMethod.Percentile,
    }
    with temporary() as folder, _quiet():
        before, ready, after = (folder / f"{name}.onnx" for name in ("a", "b", "c"))
        before.write_bytes(file.cpu().numpy().tobytes())
        # folds BatchNorm into the convolutions, without which the ranges would be of other numbers
        quant_pre_process(str(before), str(ready), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(ready),
            str(after),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(how.ops),
            nodes_to_exclude=_before_softmax(ready),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=methods[how.method],
            extra_options={"OpTypesToExcludeOutputQuantization": list(how.float_outputs)},
        )
        return after.read_bytes()


def _before_softmax(file: Path) -> list[str]:
    """The additions whose sum a softmax reads, perhaps in another shape."""
    import onnx

    graph = onnx.load(str(file)).graph
    makers = {name: node for node in graph.node for name in node.output}
    found: list[str] = []
    for node in graph.node:
        name = node.input[0] if node.op_type in SOFTMAX else ""
        while name in makers and makers[name].op_type in (*BETWEEN, "Add"):
            maker = makers[name]
            if maker.op_type == "Add":
                found.append(maker.name)
            name = maker.input[0]
    return found


class _quiet:  # noqa: N801  read as a word in a with statement
    """ONNX Runtime's advice to do what is being done already stays off the screen."""

    def __enter__(self) -> None:
        self.before = logging.root.level
        logging.root.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.root.setLevel(self.before)
