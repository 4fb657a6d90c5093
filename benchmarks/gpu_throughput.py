"""Claim: on a GPU `fit` trains as many samples a second as a plain loop, in fp32 and bf16.

    python benchmarks/gpu_throughput.py        (exits 2 where there is no CUDA)

Distillation between two ResNet-56 at 32 px: `stillhouse.engine.fit` against a bare loop (with
torch.autocast for bf16), same weights, batches and formula, a process each, in rounds that
alternate, between two synchronisations. Needs torch and the kernel, no plugin.
"""

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from overhead_core import CE, DECAY, KD, LR, MOMENTUM, TEMPERATURE, formula, sgd
from rounds import Feed, Passes, State, Worker, interleaved, paired, summary, write
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).parent.parent
DEPTH, WIDTHS, SIDE, CLASSES, BATCHES = 56, (16, 32, 64), 32, 10, 16
PRECISIONS = ("fp32", "bf16")
WARM, GOAL = 60, 0.95

Record = Mapping[str, Any]  # Any: JSON
Batch = Mapping[str, Tensor]


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is 1 x 1 where the width changes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        same = before == width and stride == 1
        self.short = (
            nn.Identity() if same else nn.Conv2d(before, width, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(
            self.norm2(self.two(functional.relu(self.norm1(self.one(x))))) + self.short(x)
        )


class ResNet(nn.Module):
    """batch["images"] [B, 3, 32, 32] -> logits [B, classes]; depth 6n + 2."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        blocks: list[nn.Module] = []
        for before, width in itertools.pairwise((WIDTHS[0], *WIDTHS)):
            blocks.append(Block(before, width, 1 if width == WIDTHS[0] else 2))
            blocks += [Block(width, width, 1) for _ in range((depth - 2) // 6 - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x = self.blocks(functional.relu(self.norm(self.stem(batch["images"]))))
        return {"logits": self.head(x.mean((2, 3)))}


def networks() -> tuple[ResNet, ResNet]:
    """(teacher, student), the same weights in every process."""
    torch.manual_seed(0)
    return ResNet(DEPTH).eval().requires_grad_(False), ResNet(DEPTH).train()


def batches(size: int) -> list[dict[str, Tensor]]:
    """Batches in main memory, made beforehand, the same in every process."""
    rng = torch.Generator().manual_seed(1)
    return [
        {
            "images": torch.randn(size, 3, SIDE, SIDE, generator=rng),
            "labels": torch.randint(0, CLASSES, (size,), generator=rng),
            "id": torch.arange(number * size, (number + 1) * size),
        }
        for number in range(BATCHES)
    ]


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def feed(size: int, device: str, precision: str, student: nn.Module) -> Feed[dict[str, Tensor]]:
    first = batches(size)[0]

    def state() -> State:
        """The student's loss against the labels of the first batch, in eval mode."""
        student.eval()
        with torch.no_grad(), autocast(device, precision):
            logits = student({"images": first["images"].to(device)})["logits"]
        student.train()
        loss = functional.cross_entropy(logits.float().cpu(), first["labels"])
        return {"loss": float(loss), "environment": _environment(device)}

    return Feed(batches(size), clock, state)


def _environment(device: str) -> Record:
    from stillhouse.environment import environment

    cuda = torch.version.cuda, torch.backends.cudnn.version()
    return {**environment(device), "cuda": cuda[0], "cudnn": cuda[1]}


def autocast(device: str, precision: str) -> torch.autocast:
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16")


def bare(size: int, device: str, precision: str, _steps: int) -> None:
    teacher, student = (net.to(device) for net in networks())
    optimizer = sgd(student.parameters())
    for made in feed(size, device, precision, student):
        batch = {name: made[name].to(device, non_blocking=True) for name in ("images", "labels")}
        with autocast(device, precision):
            with torch.no_grad():
                target = teacher(batch)["logits"]
            loss = formula(student(batch)["logits"], target, batch["labels"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def fitted(size: int, device: str, precision: str, steps: int) -> None:
    from stillhouse.engine import fit
    from stillhouse.objectives import (
        Composed,
        Optimizer,
        Phase,
        Term,
        Weighted,
        cross_entropy_loss,
        kd_loss,
    )
    from stillhouse.recipe import Context
    from stillhouse.training import Setup

    models: dict[str, nn.Module] = dict(zip(("teacher", "student"), networks(), strict=True))
    optimizer = Optimizer(lr=LR, kwargs={"momentum": MOMENTUM, "weight_decay": DECAY})
    ce = Term(cross_entropy_loss, "student.logits", "batch.labels")
    kd = Term(kd_loss, "student.logits", "teacher.logits", temperature=TEMPERATURE)
    objective = Composed(
        phases={"distill": Phase(trains=("student",), optimizer=optimizer)},
        losses={
            "ce": Weighted(term=ce, weight=CE),
            "kd": Weighted(term=kd, weight=KD),
        },
    )
    given = iter(feed(size, device, precision, models["student"]))
    data = Passes(given, size=size, count=BATCHES)
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        # a checkpoint is due every 60 s; here most of those pass while others have their round
        ctx = Context(
            stage="gpu",
            out=at,
            checkpoints=at / "kept",
            caches=at,
            device=device,
            checkpoint_seconds=math.inf,
        )
        setup = Setup(steps=steps, batch=size, precision=precision)  # type: ignore[arg-type]
        fit(objective, models, data, setup=setup, ctx=ctx)


def measure(rounds: int, steps: int, size: int) -> dict[str, Any]:  # Any: JSON
    total = WARM + rounds * steps + 1
    names = [f"{who} {precision}" for precision in PRECISIONS for who in ("bare", "fit")]
    workers = [
        Worker(name, [sys.executable, __file__, "--worker", *name.split(), str(size), str(total)])
        for name in names
    ]
    for worker in workers:
        worker.ask("time", WARM)
    losses = {worker.name: worker.ask("state") for worker in workers}
    seconds = interleaved(workers, rounds, steps)
    for worker in workers:
        worker.close()
    results: dict[str, Any] = {}
    for precision in PRECISIONS:
        plain, ours = seconds[f"bare {precision}"], seconds[f"fit {precision}"]
        results[precision] = {
            "bare_samples_per_second": summary([size / s for s in plain]),
            "fit_samples_per_second": summary([size / s for s in ours]),
            "fit_to_bare": summary(paired(plain, ours)),
            "loss_after_warm_up": {
                who: losses[f"{who} {precision}"]["loss"] for who in ("bare", "fit")
            },
        }
    return {"results": results, "environment": losses[names[0]]["environment"]}


def table(record: Record) -> str:
    lines = [f"{'':6}{'bare samples/s':>16}{'fit samples/s':>16}{'fit / bare':>12}"]
    for name, one in record["results"].items():
        plain, ours = one["bare_samples_per_second"], one["fit_samples_per_second"]
        lines.append(
            f"{name:6}{plain['median']:16.0f}{ours['median']:16.0f}"
            f"{one['fit_to_bare']['median']:12.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Samples a second of fit and of a bare loop.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=60, help="iterations a round")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "gpu-throughput")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: no CUDA device; this benchmark needs an NVIDIA GPU", file=sys.stderr)
        raise SystemExit(2)
    record = {
        "claim": f"fit reaches at least {GOAL} of the bare loop's samples per second",
        "setting": {
            "rounds": given.rounds,
            "iterations_a_round": given.steps,
            "batch": given.batch,
            "networks": f"teacher and student ResNet-{DEPTH}, {SIDE} px",
            "counted": "wall time between synchronisations; host to device copies included",
        },
        **measure(given.rounds, given.steps, given.batch),
    }
    write(given.out / "gpu-throughput.json", record)
    print(table(record))
    print(f"written to {given.out}")


def work(who: str, precision: str, size: str, steps: str) -> None:
    contestant = {"bare": bare, "fit": fitted}[who]
    contestant(int(size), "cuda", precision, int(steps))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        main()
