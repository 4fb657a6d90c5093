"""Claim: PointDistiller's graph loss at n = 16,000 items, N = 6,000 graphs of k = 128 items peaks
below 1.5 GiB above the process before it, forward and backward.

    uv run python benchmarks/knn_memory.py

Each contestant is a process of its own, which first builds its inputs and does one tiny step (so
that no library is counted), and then one step of the real size. Peak: the process's highest
resident size (ru_maxrss) after the step less its resident size before it. `chunked` is the loss as
it is; `one chunk` the same without chunks; `edges` torch's own cdist, gather, Conv2d and
BatchNorm2d on the full [2C, N, K] tensors.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rounds import write
from torch import Tensor, nn

from stillhouse.code import code_version
from stillhouse.environment import environment
from stillhouse_pointcloud.objectives import LocalGraphDistillation

ROOT = Path(__file__).parent.parent
ITEMS, GRAPHS, NODES, TEACHER, STUDENT, OUT = 16_000, 6_000, 128, 64, 32, 32
GOAL, CHUNK, GIB = 1.5, 256, 2**30
FULLEST, TAU = 32, 32.0  # points in a pillar; tau 1 on counts divided by the fullest's
CONTESTANTS = ("chunked", "one chunk", "edges")

Record = Mapping[str, Any]  # Any: JSON


def distillation(chunk: int) -> LocalGraphDistillation:
    return LocalGraphDistillation(TEACHER, STUDENT, OUT, NODES, GRAPHS, TAU, chunk=chunk)


def inputs(items: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    teacher = torch.randn(items, TEACHER, generator=rng)
    student = torch.randn(items, STUDENT, generator=rng).requires_grad_()
    return teacher, student, torch.randint(1, FULLEST + 1, (items,), generator=rng)


def edges(
    module: LocalGraphDistillation, teacher: Tensor, student: Tensor, counts: Tensor
) -> Tensor:
    """The same loss with every distance and every edge in memory."""
    items = counts.sort(descending=True, stable=True).indices[:GRAPHS]
    with torch.no_grad():
        distances = torch.cdist(teacher[items], teacher)
        near = distances.topk(min(NODES, len(teacher)), dim=1, largest=False).indices
        del distances
    found: list[Tensor] = []
    for encoder, z in ((module.teacher, teacher), (module.student, student)):
        pair = torch.cat([z[near], z[items][:, None].expand(-1, near.shape[1], -1)], dim=2)
        gamma = nn.Sequential(encoder.conv, encoder.norm, nn.ReLU())
        found.append(gamma(pair.permute(2, 0, 1)[None]))
    squares = (found[0] - found[1]).square().sum(dim=(0, 1, 3))
    return ((counts[items] / TAU).softmax(dim=0) * squares).sum()


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def step(name: str, items: int) -> tuple[float, float]:
    """Loss, and the 2-norm of its gradient to the student."""
    torch.manual_seed(0)
    module = distillation(CHUNK if name == "chunked" else GRAPHS)
    teacher, student, counts = inputs(items)
    run = edges if name == "edges" else LocalGraphDistillation.__call__
    value = run(module, teacher, student, counts)
    value.backward()
    assert student.grad is not None
    return value.item(), float(student.grad.norm())


def contestant(name: str) -> None:
    """What a process of its own measures; printed as one line of JSON."""
    torch.set_num_threads(1)
    step(name, NODES)
    before, started = resident(), time.process_time()
    value, slope = step(name, ITEMS)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    record = {
        "before_gib": before / GIB,
        "peak_above_gib": (peak - before) / GIB,
        "cpu_seconds": seconds,
        "loss": value,
        "gradient_norm": slope,
    }
    print(json.dumps(record))


def measured(name: str) -> Record:
    command = [sys.executable, __file__, "--contestant", name]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, check=False)
    if ended.returncode:
        return {"failed": f"exit status {ended.returncode}"}
    return json.loads(ended.stdout.splitlines()[-1])


def verdict(found: Mapping[str, Record]) -> Record:
    ours, plain = found["chunked"], found["edges"]
    reached = "failed" not in ours and ours["peak_above_gib"] < GOAL
    gaps = {
        name: abs(ours[name] / plain[name] - 1)
        for name in ("loss", "gradient_norm")
        if name in ours and name in plain
    }
    return {"goal": f"peak < {GOAL} GiB", "reached": reached, "relative_gap_to_edges": gaps}


def table(found: Mapping[str, Record]) -> str:
    lines = [f"{'contestant':12}{'peak GiB':>10}{'CPU s':>8}{'loss':>12}{'gradient':>12}"]
    for name, one in found.items():
        lines.append(
            f"{name:12}{one['failed']}"
            if "failed" in one
            else f"{name:12}{one['peak_above_gib']:10.3f}{one['cpu_seconds']:8.2f}"
            f"{one['loss']:12.5f}{one['gradient_norm']:12.5f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Peak memory of PointDistiller's graph loss.")
    parser.add_argument("--contestant", choices=CONTESTANTS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "knn-memory")
    given = parser.parse_args(arguments)
    if given.contestant:
        contestant(given.contestant)
        return
    load = os.getloadavg()
    found = {name: measured(name) for name in CONTESTANTS}
    record: Record = {
        "claim": f"the graph loss peaks below {GOAL} GiB above the process before it",
        "setting": {
            "items": ITEMS,
            "graphs": GRAPHS,
            "items_a_graph": NODES,
            "channels": {"teacher": TEACHER, "student": STUDENT, "out": OUT},
            "graphs_a_chunk": CHUNK,
            "counted": "ru_maxrss after one forward and backward less resident before; one thread",
        },
        "code": code_version("stillhouse_pointcloud"),
        "environment": environment("cpu"),
        "load_average_before": load,
        "contestants": found,
        "verdict": verdict(found),
    }
    write(given.out / "knn-memory.json", record)
    print(table(found))
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
