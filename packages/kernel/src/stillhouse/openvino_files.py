"""An exported student as OpenVINO's own files, by the `openvino` that is installed."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillhouse.errors import ContractError, MissingExtra
from stillhouse.quantize.onnx_network import distance, session

ROWS, LENGTH = 2, 3  # of the axes that may have any length: the first, all others
# mean difference to ONNX Runtime over the mean size of an output, of floats and of int8
TOLERANCE, INT8_TOLERANCE = 1e-3, 0.1


def write_openvino(file: Path, out: Path) -> list[str]:
    """Write the ONNX `file` as <its name>.xml and .bin in the folder `out`; their names.

    Both are run once on drawn numbers, OpenVINO on the CPU in 32-bit floats. Raises MissingExtra
    without the package, ContractError where an output differs from ONNX Runtime's.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra(
            "export --to openvino", "openvino", install="uv pip install openvino"
        ) from error
    # not openvino.convert_model, which reports its use over the network
    core: Any = openvino.Core()  # Any: openvino types nothing
    place = out / f"{file.stem}.xml"
    openvino.save_model(core.read_model(str(file)), str(place), compress_to_fp16=False)
    compiled: Any = core.compile_model(str(place), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    runtime = session(file.read_bytes())
    given = {each.name: _drawn(each.type, each.shape) for each in runtime.get_inputs()}
    names = [each.name for each in runtime.get_outputs()]
    found = compiled([given[each.name] for each in runtime.get_inputs()])
    tolerance = INT8_TOLERANCE if "int8" in file.stem else TOLERANCE
    for number, (name, expected) in enumerate(zip(names, runtime.run(names, given), strict=True)):
        off = distance(np.asarray(found[number]), torch.from_numpy(expected), tolerance=tolerance)
        if off:
            raise ContractError(f"{file.name}: OpenVINO's '{name}' is {off}")
    return [place.name, place.with_suffix(".bin").name]


def _drawn(kind: str, shape: list[Any]) -> "np.ndarray[Any, Any]":  # Any: numbers and names of axes
    """Numbers for an input of ONNX Runtime's type "tensor(float)" and the like."""
    rng = np.random.default_rng(0)
    sizes = [
        axis if isinstance(axis, int) else (LENGTH if place else ROWS)
        for place, axis in enumerate(shape)
    ]
    match kind.removeprefix("tensor(").removesuffix(")"):
        case "uint8":
            return rng.integers(0, 256, sizes, dtype=np.uint8)
        case "float":
            return rng.random(sizes, dtype=np.float32)
        case other:  # numbers of tokens, of classes, masks: two are there in any of them
            return rng.integers(0, 2, sizes).astype(other)
