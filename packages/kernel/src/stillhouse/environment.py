"""What a run ran on: recorded beside the results, never part of a key."""

import functools
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = (
    "stillhouse",
    "torch",
    "torchvision",
    "mmengine",
    "timm",
    "numpy",
    "safetensors",
    "onnx",
    "onnxruntime",
)


@functools.cache
def environment(device: str) -> dict[str, Any]:  # Any: JSON
    """Python, torch, processor, cores, threads, GPU, memory and the versions of the packages that
    matter.
    """
    import psutil
    import torch

    gpu = (
        torch.cuda.get_device_name()
        if device.startswith("cuda") and torch.cuda.is_available()
        else None
    )
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
