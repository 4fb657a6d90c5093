"""Claim: a model of 1 B parameters stored in bf16 is loaded in bf16 with a peak below 1.1 times its
weights above the process before it.

    uv run python benchmarks/load_memory.py

60 layers of 4096 x 4096 are saved once, in bf16. Each way of loading is a process of its own, which
first loads a small model (so that no library is counted). Peak: VmHWM of /proc/self/status after
loading less before. `load_model` gives bf16, `load_model in fp32` the module's own dtype; `build,
then fill` builds the module with fresh weights, casts it and has safetensors' load_model fill it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rounds import write

ROOT = Path(__file__).parent.parent
# the plugin of the kernel's tests: it has the network
SITE = ROOT / "packages" / "kernel" / "tests" / "site"
LAYERS, WIDTH, GOAL = 60, 4096, 1.1
WAYS = ("load_model", "load_model in fp32", "build, then fill")

Record = Mapping[str, Any]  # Any: JSON


def save(folder: Path, width: int, layers: int) -> None:
    from stillhouse_toy import Wide

    from stillhouse.artifact import Built, Model, save_model

    spec = Model(build=Wide, kwargs={"width": width, "depth": layers})
    torch.set_default_dtype(torch.bfloat16)
    save_model(folder, Built(spec=spec, module=spec.new()))


def peak() -> int:
    """Bytes; not ru_maxrss, which begins with the peak of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def load(folder: Path, way: str) -> torch.nn.Module:
    from safetensors.torch import load_model as fill

    from stillhouse.artifact import WEIGHTS, load_model

    if way == WAYS[0]:
        return load_model(folder, dtype=torch.bfloat16).module
    if way == WAYS[1]:
        return load_model(folder).module
    from stillhouse.artifact import spec_of

    module = spec_of(json.loads((folder / "model.json").read_text())).new().to(torch.bfloat16)
    fill(module, str(folder / WEIGHTS))
    return module


def contestant(way: str, root: Path) -> Record:
    """What a process of its own measures."""
    torch.set_num_threads(1)
    load(root / "small", way)
    before, started = peak(), time.process_time()
    module = load(root / "large", way)
    grown, seconds = peak() - before, time.process_time() - started
    size = sum(parameter.nbytes for parameter in module.parameters())
    return {
        "weights_mib": size / 2**20,
        "peak_above_mib": grown / 2**20,
        "peak_to_weights": grown / size,
        "cpu_seconds": seconds,
    }


def measured(way: str, root: Path) -> Record:
    command = [sys.executable, __file__, "--way", way, "--root", str(root)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=_places()).stdout
    return json.loads(told.splitlines()[-1])


def _places() -> dict[str, str]:
    paths = os.pathsep.join([str(SITE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of loading a large model.")
    parser.add_argument("--way", choices=(*WAYS, "save"))
    parser.add_argument("--root", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "load-memory")
    given = parser.parse_args()
    if given.way == "save":
        save(given.root / "small", 8, 1)
        save(given.root / "large", WIDTH, LAYERS)
        return
    if given.way:
        print(json.dumps(contestant(given.way, given.root)))
        return
    from stillhouse.environment import environment

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--way", "save", "--root", folder]
        subprocess.run(command, check=True, env=_places())
        found = {way: measured(way, Path(folder)) for way in WAYS}
    record: Record = {
        "claim": f"1 B parameters in bf16 are loaded with a peak below {GOAL} of their bytes",
        "setting": {"layers": LAYERS, "width": WIDTH, "parameters": LAYERS * WIDTH * WIDTH},
        "environment": environment("cpu"),
        "contestants": found,
        "verdict": {"reached": found[WAYS[0]]["peak_to_weights"] < GOAL},
    }
    write(given.out / "load-memory.json", record)
    for way, one in found.items():
        print(f"{way:22}{one['peak_above_mib']:9.0f} MiB{one['peak_to_weights']:7.2f} of weights")


if __name__ == "__main__":
    main()
