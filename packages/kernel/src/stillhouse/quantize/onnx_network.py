"""A network as an ONNX file that ONNX Runtime runs: a role like any other.

The bytes of the file are the model's weights, so that metrics, timings and figures call it as they
call a module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.assets import Assets, read_assets
from stillhouse.errors import CorruptArtifact, MissingData
from stillhouse.json_files import read_json
from stillhouse.objectives.objective import Tensors

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ONNX, RECORD = "model.onnx", "export.json"


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
        # callers read a role's device off its parameters; this one takes no room
        self.place = nn.Parameter(torch.zeros(0))
        self._session: InferenceSession | None = None
        self.register_load_state_dict_post_hook(_forget)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        if self._session is None:
            self._session = session(self.file.cpu().numpy().tobytes())
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


def session(
    content: bytes, *, optimized: Path | None = None, plain: bool = False
) -> "InferenceSession":
    """ONNX Runtime on the CPU with torch's number of threads; `optimized` is the file that gets the
    graph it runs, `plain` leaves the graph as it is.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # it warns when an optimized file is written
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def distance(found: Any, expected: Tensor, *, tolerance: float) -> str:  # Any: a numpy array
    """How far an output is off in the mean, where that is more than `tolerance` of its mean size;
    else "".
    """
    size = expected.abs().mean().item()
    gap = (torch.from_numpy(found) - expected).abs().mean().item()
    if gap <= tolerance * size:
        return ""
    return f"{gap:.2e} in the mean, its mean size is {size:.2e} (allowed: {tolerance:.0%} of it)"


def onnx_network(
    *,
    size: int,
    inputs: Sequence[str],
    outputs: Sequence[str],
    parameter_count: int,
    macs: int,
    source: Mapping[str, Any],  # noqa: ARG001  Any: JSON; {"build", "kwargs"} of what it was made from
    integers: Mapping[str, Any] | None = None,  # noqa: ARG001  Any: JSON; what `ToIntegers` counted
) -> nn.Module:
    """An `OnnxNetwork` of a file of `size` bytes; `source` and `integers` are kept in the spec as
    records.
    """
    return OnnxNetwork(
        size=size, inputs=inputs, outputs=outputs, parameter_count=parameter_count, macs=macs
    )


def save_onnx(
    out: Path,
    content: bytes,
    kwargs: Mapping[str, Any],  # Any: JSON values
    assets: Assets,
) -> None:
    """Write the new folder `out` with an `OnnxNetwork` of these bytes, and them as model.onnx;
    `kwargs` are those of `onnx_network` but `size`, `assets` those of the network it was made from.
    """
    save_model(out, replace(_network_of(content, kwargs), assets=assets))
    (out / ONNX).write_bytes(content)


def _network_of(content: bytes, kwargs: Mapping[str, Any]) -> Built:  # Any: JSON values
    """The `OnnxNetwork` of these bytes; `kwargs` are those of `onnx_network` but `size`."""
    spec = Model(build=onnx_network, kwargs={**kwargs, "size": len(content)})
    module = spec.new()
    assert isinstance(module, OnnxNetwork)
    module.file.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    return Built(spec=spec, module=module.eval())


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """The spec of the module that was exported, as `artifact.recorded` writes it."""

    build: str
    kwargs: Mapping[str, Any]  # Any: JSON values


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What export.json says of the network; inputs and outputs by name, in the file's order."""

    inputs: Mapping[str, Any]  # Any: JSON values
    outputs: Mapping[str, Any]
    parameters: int
    macs: int
    model: ExportedModel
    assets: Mapping[str, Any] = field(default_factory=dict[str, Any])  # as in model.json


def load_onnx(file: Path) -> Built:
    """The `OnnxNetwork` of an exported ONNX file, with export.json beside it.

    Raises MissingData without that, CorruptArtifact for files that cannot be read.
    """
    beside = file.with_name(RECORD)
    if not beside.is_file():
        raise MissingData(
            f"{file}: there is no {RECORD} beside it, which says what it is; give the folder that "
            "`stillhouse export --to onnx` wrote"
        )
    record = read_json(beside, Exported, redo="export it again")
    kwargs = {
        "inputs": list(record.inputs),
        "outputs": list(record.outputs),
        "parameter_count": record.parameters,
        "macs": record.macs,
        "source": {"build": record.model.build, "kwargs": dict(record.model.kwargs)},
    }
    content = file.read_bytes()
    try:
        session(content)
    except Exception as error:  # ONNX Runtime's errors share no class of its own
        reason = str(error).splitlines()[0]
        raise CorruptArtifact(f"{file}: no whole ONNX file ({reason}); export it again") from error
    return replace(_network_of(content, kwargs), assets=read_assets(record.assets, file.parent))
