"""What a run ran on: recorded beside the results, never part of a key."""

import functools
import importlib.metadata
import os
import platform
from collections.abc import Iterator
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
# how the names of a processor's vector flags begin, on x86 and on ARM
VECTORS = ("sse4", "avx", "fma", "amx", "asimd", "sve", "i8mm")


@functools.cache
def environment(device: str) -> dict[str, Any]:  # Any: JSON
    """Python, torch, processor with its vector flags, cores, threads, GPU, memory and the versions
    of the packages that matter.
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
        "cpu": next(_listed("model name"), platform.processor() or platform.machine()),
        "vector_flags": " ".join(_vector_flags()),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _vector_flags() -> list[str]:
    """What Linux lists of the processor's vector and matrix instructions; elsewhere none."""
    flags = next(_listed("flags"), "") or next(_listed("Features"), "")  # x86, ARM
    return sorted(flag for flag in flags.split() if flag.startswith(VECTORS))


def _listed(name: str) -> Iterator[str]:
    """The values of this name in Linux's list of processors."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            yield value.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
