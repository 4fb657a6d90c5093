"""Export: the student alone, as safetensors with its spec, as ONNX checked against torch, with a
model card.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.artifact import SPEC, Built, Model, recorded, save_model
from stillhouse.card import (
    CARD,
    INT8,
    Card,
    Usage,
    add_metadata,
    add_shapes,
    model_card,
    port_record,
    scores_record,
)
from stillhouse.data.data import Data
from stillhouse.errors import BadRecipe, BadSetting, ContractError, UnknownName
from stillhouse.profile import first_batch, macs, parameters
from stillhouse.quantize.onnx_network import ONNX, RECORD, OnnxNetwork
from stillhouse.work import Work

MIN_OPSET = 17
# of an input, the names of the axes behind the first that may have any length
Axes = Mapping[str, tuple[str, ...]]
FIXED: Axes = {}
LENGTHS = (1, 3, 7)  # of such an axis, at which a file is checked


@dataclass(frozen=True, kw_only=True)
class Export:
    """A `convert` that writes model.json, model.safetensors, model.onnx, export.json and README.md.

    Ports: the `role` to export, and "data", whose first `samples` rows check the ONNX file: the
    largest absolute difference to torch over every output must stay within `tolerance`. The batch
    axis is dynamic, and of an input in `dynamic` as many axes behind it as have a name there; the
    file is checked at several lengths of those. Else inputs keep the dtype and shape they have in
    the data. Raises ContractError when ONNX and torch disagree.

    Three more ports may be there: "onnx", the role as `ToOnnx` made it, whose file is then taken
    (and checked again); "int8", what `QuantizeStatic` made of that or `ToIntegers` of the role,
    which is added as model-int8.onnx; and "scores", an evaluation of the role, which the card
    repeats. `usage`, a module-level function, says how a model of its spec is used: that goes into
    the card, export.json and the metadata of the ONNX files. The role's assets go along.
    """

    role: str = "student"
    inputs: tuple[str, ...] = ("images",)
    outputs: tuple[str, ...] = ("logits",)
    dynamic: Axes = field(default_factory=dict[str, tuple[str, ...]])
    opset: int = 18
    samples: int = 32
    tolerance: float = 1e-3
    card: Card | None = None
    usage: Callable[[Model], Usage] | None = None

    def __post_init__(self) -> None:
        check_opset(self.opset, where="export")
        check_axes(self.dynamic, self.inputs, where="export")

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        if self.role not in inputs or "data" not in inputs:
            raise BadRecipe(
                f"export: needs the ports '{self.role}' and 'data' (got {sorted(inputs)})"
            )
        built: Built = inputs[self.role]
        save_model(out, built)
        batch = sample(inputs["data"], self.samples, self.inputs)
        given, axes = (built.module, batch, self.outputs), self.dynamic
        if "onnx" not in inputs:
            write_onnx(*given, out / ONNX, opset=self.opset, dynamic=axes)
        for port, name in (("onnx", ONNX), ("int8", INT8)):
            if port in inputs:
                (out / name).write_bytes(_bytes(inputs[port], port))
        check_onnx(out / ONNX, *given, tolerance=self.tolerance, dynamic=axes)
        usage = self.usage(built.spec) if self.usage else None
        record = self._record(built, batch, usage, inputs.get("scores", {}))
        if built.assets:
            record["assets"] = json.loads((out / SPEC).read_text())["assets"]
        add_shapes(record, out / ONNX)
        for name in (ONNX, INT8):
            if (out / name).is_file():
                add_metadata(out / name, record)
        (out / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        if self.card is not None:
            (out / CARD).write_text(model_card(self.card, usage, built, record))

    def _record(
        self,
        built: Built,
        batch: Mapping[str, Tensor],
        usage: Usage | None,
        scores: Mapping[str, float],
    ) -> dict[str, Any]:  # Any: JSON values
        with torch.no_grad():
            found = built.module.eval()(dict(batch))
        return {
            "model": recorded(built.spec),
            "task": self.card.task if self.card else "",
            "inputs": port_record(batch, usage),
            "outputs": port_record({name: found[name] for name in self.outputs}, usage),
            "classes": list(usage.classes) if usage else [],
            "preprocessing": dict(usage.preprocessing) if usage else {},
            **scores_record(scores),
            "parameters": parameters(built.module),
            "macs": macs(built.module, {name: value[:1] for name, value in batch.items()}),
            "opset": self.opset,
            "checked_samples": len(next(iter(batch.values()))),
            "agrees_within": self.tolerance,
        }


def _bytes(built: Built, port: str) -> bytes:
    if not isinstance(built.module, OnnxNetwork):
        raise BadRecipe(f"export: port '{port}' is no ONNX file; make it with ToOnnx")
    return built.module.file.cpu().numpy().tobytes()


def sample(data: Data, count: int, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The columns `names` of the first `count` rows, on the CPU."""
    batch = first_batch(data, min(count, len(data)), torch.device("cpu"))
    for name in names:
        if name not in batch:
            raise BadRecipe(f"export: the data have no column '{name}' (they have {sorted(batch)})")
    return {name: batch[name] for name in names}


def resized(batch: Mapping[str, Tensor], dynamic: Axes, length: int) -> dict[str, Tensor]:
    """The batch with `length` entries along the first of the dynamic axes, and along each next one
    more: those there are, repeated.
    """
    found = dict(batch)
    names = list(dict.fromkeys(name for axes in dynamic.values() for name in axes))
    for key, axes in dynamic.items():
        for axis, name in enumerate(axes, 1):
            places = torch.arange(length + names.index(name)) % found[key].shape[axis]
            found[key] = found[key].index_select(axis, places)
    return found


def resizings(batch: Mapping[str, Tensor], dynamic: Axes) -> list[dict[str, Tensor]]:
    """The first row of a batch at `LENGTHS` of the dynamic axes; nothing where there are none."""
    first = {name: value[:1] for name, value in batch.items()}
    return [resized(first, dynamic, length) for length in LENGTHS if dynamic]


class _Positional(nn.Module):
    """The module with tensors for arguments and results, as ONNX has them."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names, self.outputs = module, names, outputs

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        found = self.module(dict(zip(self.names, values, strict=True)))
        return tuple(found[name] for name in self.outputs)


def write_onnx(
    module: nn.Module,
    batch: Mapping[str, Tensor],
    outputs: tuple[str, ...],
    path: Path,
    *,
    opset: int,
    dynamic: Axes = FIXED,
) -> None:
    """Write `module` as one ONNX file with a dynamic batch axis, and those that `dynamic` names,
    through torch's exporter.

    The file does not say where the code lay: the same network is the same bytes in any checkout.
    """
    names = tuple(batch)
    # the exporter takes an axis of length 1 for a constant
    batch = resized(batch, dynamic, 2)
    batch = {name: torch.cat([v, v]) if len(v) == 1 else v for name, v in batch.items()}
    axes = {name: ("batch", *dynamic.get(name, ())) for name in names}
    dims = {axis: torch.export.Dim(axis) for one in axes.values() for axis in one}
    shapes = tuple({i: dims[axis] for i, axis in enumerate(axes[name])} for name in names)
    with _quiet_exporter():
        torch.onnx.export(
            _Positional(module.eval(), names, outputs),
            tuple(batch.values()),
            str(path),
            input_names=list(names),
            output_names=list(outputs),
            dynamic_shapes={"values": shapes},
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _forget_places(path)


@contextlib.contextmanager
def _quiet_exporter() -> Generator[None]:
    """Without what torch's exporter warns of: its own deprecations, and constants that its
    optimizer leaves to be computed later. What the file gives is compared with the module.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _forget_places(path: Path) -> None:
    """Take out what the exporter notes for its own developers: the source line of each node, with
    the whole path of its file.
    """
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
    path.write_bytes(model.SerializeToString(deterministic=True))


def onnx_difference(
    path: Path, module: nn.Module, batch: Mapping[str, Tensor], outputs: tuple[str, ...]
) -> float:
    """The largest absolute difference between ONNX Runtime (CPU) and torch over the outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(list(outputs), {name: value.numpy() for name, value in batch.items()})
    with torch.no_grad():
        made = module.eval()(dict(batch))
        expected = {name: made[name] for name in outputs}  # some are computed on access
    pairs = zip(outputs, found, strict=True)
    gaps = [(expected[name] - torch.from_numpy(value)).abs().max() for name, value in pairs]
    return float(torch.stack(gaps).max())  # NaN where one is


def check_onnx(
    path: Path,
    module: nn.Module,
    batch: Mapping[str, Tensor],
    outputs: tuple[str, ...],
    *,
    tolerance: float,
    dynamic: Axes = FIXED,
) -> None:
    """Raises ContractError where the file and torch differ by more than `tolerance`, at any of
    several lengths of the dynamic axes.
    """
    for one in (batch, *resizings(batch, dynamic)):
        difference = onnx_difference(path, module, one, outputs)
        if not difference <= tolerance:
            raise ContractError(
                f"{path.name} differs from torch by {difference:.2e} on real inputs "
                f"(allowed: {tolerance:.0e})"
            )


def check_opset(opset: int, *, where: str) -> None:
    """Raises BadSetting for an opset that the exporter no longer writes."""
    if opset < MIN_OPSET:
        raise BadSetting(f"{where}: opset must be >= {MIN_OPSET} (got {opset})")


def check_axes(dynamic: Axes, inputs: tuple[str, ...], *, where: str) -> None:
    """Raises UnknownName for dynamic axes of what is no input."""
    for name in dynamic:
        if name not in inputs:
            raise UnknownName("input", name, inputs, where=f"{where}: dynamic")
