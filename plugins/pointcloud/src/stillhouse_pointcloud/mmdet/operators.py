"""mmcv's operators that have no CPU implementation: what stops, and what would do.

Which run was measured: docs/pointcloud.md, "What runs without CUDA", made by
`benchmarks/mmcv_operators.py`.
"""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from stillhouse.errors import BadSetting

# messages of mmcv's dispatcher, and of an operator, for a device that it is not made for
MISSING = (
    re.compile(r"(\w+?)(?:_impl)?: implementation for device (\w+)(?::\d+)? not found"),
    re.compile(r"(\w+) is not implemented on (CPU)"),
)
# what some operators check of CUDA, or of their tensors, before they are dispatched
CUDA_NEEDED = re.compile(
    r"Torch not compiled with CUDA|Found no NVIDIA driver|No CUDA GPUs|must be (?:a )?CUDA"
    r"|type torch\.cuda\.\w+ not available|not compiled with (?:CUDA|GPU) support",
    re.IGNORECASE,
)
ADVICE = (
    "run it on a GPU with mmcv compiled for CUDA (FORCE_CUDA=1 and nvcc when it is installed), or "
    "take pointpillars-kitti or centerpoint-nuscenes, which train and predict on the CPU "
    "(`--device cpu`)"
)

# the first operator without a CPU implementation that a part of a configuration runs, by its type
CUDA_ONLY: Mapping[str, str] = {
    "SparseEncoder": "get_indice_pairs",
    "PointNet2SAMSG": "furthest_point_sample.forward",
}


def cuda_only(config: Mapping[str, Any]) -> str:  # Any: JSON values
    """The operator for which a detector of this configuration needs CUDA; "" where none is known:
    then `named_operators` raises it when it runs.
    """
    kinds = [one.get("type", "") for one in config.values() if isinstance(one, Mapping)]
    found = (CUDA_ONLY.get(kind.rpartition(".")[2], "") for kind in kinds)
    return next(filter(None, found), "")


@contextmanager
def named_operators(detector: str) -> Generator[None]:
    """Turns the failure of an operator without an implementation for the device into a BadSetting
    that names it; other errors pass.
    """
    try:
        yield
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        message = str(error)
        found = next((one for pattern in MISSING if (one := pattern.search(message))), None)
        if found:
            raise BadSetting(
                f"{detector}: mmcv's operator '{found[1]}' has no implementation for "
                f"{found[2].lower()} here; {ADVICE}"
            ) from error
        if CUDA_NEEDED.search(message):
            raise BadSetting(
                f"{detector}: mmcv's operator '{_raising(error)}' needs CUDA; {ADVICE}"
            ) from error
        raise


def _raising(error: BaseException) -> str:
    """The innermost function of mmcv or mmdetection3d that the error came through."""
    name, trace = "unknown", error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in ("mmcv", "mmdet3d"):  # by module: a path may say either
            name = f"{module.rpartition('.')[2]}.{trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return name
