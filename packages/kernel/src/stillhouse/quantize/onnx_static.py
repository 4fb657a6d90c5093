"""Networks as ONNX files that ONNX Runtime runs, and the same ones quantized to int8.

Such a file is a role like any other: its bytes are the model's weights, so that metrics, timings
and figures call it as they call a module. `ToOnnx` makes it of a trained role, `QuantizeStatic`
makes the int8 one of that. Static: the ranges of activations are measured once, on samples, and
stored.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import Data
from stillhouse.digest import canonical
from stillhouse.errors import BadRecipe, BadSetting, ContractError
from stillhouse.export import MIN_OPSET, ONNX, onnx_difference, sample, write_onnx
from stillhouse.objectives.objective import Tensors
from stillhouse.profile import macs, parameters

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Method = Literal["minmax", "entropy", "percentile"]


class OnnxNetwork(nn.Module):
    """Named tensors to named tensors through an ONNX file, on the CPU, with torch's number of
    threads.

    The file is the buffer `file` (uint8 [size]). No gradient passes. `parameter_count` and `macs`
    are those of the network it was made from.
    """

    file: Tensor

    def __init__(
        self,
        *,
        size: int,
        inputs: Sequence[str],
        outputs: Sequence[str],
        parameter_count: int,
        macs: int,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.parameter_count, self.macs = parameter_count, macs
        self.register_buffer("file", torch.zeros(size, dtype=torch.uint8))
        # callers ask a role's parameters for its device; this one takes no room
        self.place = nn.Parameter(torch.zeros(0))
        self._session: InferenceSession | None = None
        self.register_load_state_dict_post_hook(_forget)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        if self._session is None:
            self._session = _session(self.file)
        given = {name: batch[name].detach().cpu().numpy() for name in self.inputs}
        found = self._session.run(list(self.outputs), given)
        device = self.place.device
        return {
            name: torch.from_numpy(value).to(device)
            for name, value in zip(self.outputs, found, strict=True)
        }


def _forget(module: nn.Module, _: Any) -> None:  # Any: the keys torch could not match
    """Other bytes, another session."""
    assert isinstance(module, OnnxNetwork)
    module._session = None  # pyright: ignore[reportPrivateUsage]


def _session(file: Tensor) -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    content = file.cpu().numpy().tobytes()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def onnx_network(
    *,
    size: int,
    inputs: Sequence[str],
    outputs: Sequence[str],
    parameter_count: int,
    macs: int,
    source: Mapping[str, Any],  # noqa: ARG001  Any: JSON; {"build", "kwargs"} of what it was made from
) -> nn.Module:
    """An `OnnxNetwork` of a file of `size` bytes; `source` is kept in the spec for whoever asks."""
    return OnnxNetwork(
        size=size, inputs=inputs, outputs=outputs, parameter_count=parameter_count, macs=macs
    )


@dataclass(frozen=True, kw_only=True)
class ToOnnx:
    """A `convert`: the `role` as an ONNX file in 32-bit floats, run by ONNX Runtime from here on.

    Ports: the role, and "data", whose first `samples` rows check the file: raises ContractError
    when an output differs from torch by more than `tolerance`. The folder also holds model.onnx.
    """

    role: str = "student"
    inputs: tuple[str, ...] = ("images",)
    outputs: tuple[str, ...] = ("logits",)
    opset: int = 18
    samples: int = 32
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.opset < MIN_OPSET:
            raise BadSetting(f"onnx: opset must be >= {MIN_OPSET} (got {self.opset})")

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, rng: Generator) -> None:  # noqa: ARG002
        built, data = _ports(inputs, self.role)
        batch = sample(data, self.samples, self.inputs)
        with tempfile.TemporaryDirectory(prefix="stillhouse-") as folder:
            file = Path(folder) / ONNX
            write_onnx(built.module, batch, self.outputs, file, opset=self.opset)
            difference = onnx_difference(file, built.module, batch, self.outputs)
            if not difference <= self.tolerance:
                raise ContractError(
                    f"{ONNX} differs from torch by {difference:.2e} on real inputs "
                    f"(allowed: {self.tolerance:.0e})"
                )
            content = file.read_bytes()
        one = {name: value[:1] for name, value in batch.items()}
        name = canonical(built.spec.build, at="model.build")["name"]
        kwargs = {
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "parameter_count": parameters(built.module),
            "macs": macs(built.module, one),
            "source": {"build": name, "kwargs": dict(built.spec.kwargs)},
        }
        _save(out, content, kwargs)


@dataclass(frozen=True, kw_only=True)
class QuantizeStatic:
    """A `convert`: an `OnnxNetwork` with int8 weights (a scale a channel) and uint8 activations, by
    ONNX Runtime's static quantization in QDQ form.

    Ports: the `role`, which `ToOnnx` made, and "data", `samples` rows of which (drawn by the
    stage's seed) measure the ranges of the activations: training data, never what is scored later.
    Only nodes of the types `ops` are quantized; those of `float_outputs` take quantized numbers in
    but give floats out, as a regressor's last layer should.
    """

    role: str = "student"
    samples: int = 256
    batch: int = 32
    method: Method = "minmax"
    ops: tuple[str, ...] = ("Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "GlobalAveragePool")
    float_outputs: tuple[str, ...] = ("Gemm", "MatMul")

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch < 1:
            raise BadSetting(
                f"quantize: samples and batch must be >= 1 (got {self.samples}, {self.batch})"
            )

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, rng: Generator) -> None:
        built, data = _ports(inputs, self.role)
        if not isinstance(built.module, OnnxNetwork):
            raise BadRecipe(
                f"quantize: '{self.role}' is a {type(built.module).__name__}; "
                "make it an ONNX file with ToOnnx first"
            )
        rows = _Rows(data, built.module.inputs, self.samples, self.batch, rng)
        content = _quantized(built.module.file, rows, self)
        kwargs = {k: v for k, v in built.spec.kwargs.items() if k != "size"}
        _save(out, content, kwargs)


def _ports(inputs: Mapping[str, Any], role: str) -> tuple[Built, Data]:
    if role not in inputs or "data" not in inputs:
        raise BadRecipe(f"onnx: needs the ports '{role}' and 'data' (got {sorted(inputs)})")
    return inputs[role], inputs["data"]


def _save(out: Path, content: bytes, kwargs: Mapping[str, Any]) -> None:  # Any: JSON values
    spec = Model(build=onnx_network, kwargs={**kwargs, "size": len(content)})
    module = spec.new()
    assert isinstance(module, OnnxNetwork)
    module.file.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    save_model(out, Built(spec=spec, module=module))
    (out / ONNX).write_bytes(content)


class _Rows:
    """Batches of arrays in the order a generator draws: what ONNX Runtime calibrates on."""

    def __init__(
        self, data: Data, names: Sequence[str], samples: int, batch: int, rng: Generator
    ) -> None:
        self.left = min(samples, len(data))
        self.names = tuple(names)
        self.batches: Iterator[Mapping[str, Tensor]] = data.batches(batch, rng=rng)

    def get_next(self) -> dict[str, Any] | None:  # Any: numpy arrays
        """The next batch, or None after the last."""
        if self.left <= 0:
            return None
        batch = next(self.batches)
        count = min(self.left, len(batch["id"]))
        self.left -= count
        return {name: batch[name][:count].numpy() for name in self.names}


def _quantized(file: Tensor, rows: _Rows, how: QuantizeStatic) -> bytes:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Any:  # Any: as the base class has it
            return rows.get_next()

    methods = {
        "minmax": quantization.CalibrationMethod.MinMax,
        "entropy": quantization.CalibrationMethod.Entropy,
        "percentile": quantization.CalibrationMethod.Percentile,
    }
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as folder, _quiet():
        before, ready, after = (Path(folder) / f"{name}.onnx" for name in ("a", "b", "c"))
        before.write_bytes(file.cpu().numpy().tobytes())
        # folds BatchNorm into the convolutions, without which the ranges would be of other numbers
        quant_pre_process(str(before), str(ready), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(ready),
            str(after),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(how.ops),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=methods[how.method],
            extra_options={"OpTypesToExcludeOutputQuantization": list(how.float_outputs)},
        )
        return after.read_bytes()


class _quiet:  # noqa: N801  read as a word in a with statement
    """ONNX Runtime's advice to do what is being done already stays off the screen."""

    def __enter__(self) -> None:
        self.before = logging.root.level
        logging.root.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.root.setLevel(self.before)
