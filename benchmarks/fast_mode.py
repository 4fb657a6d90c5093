"""Claim: precision "fast" makes a step of distillation at least 1.4 times as fast as a plain loop
and torchdistill (ResNet-56 to ResNet-20, 32 px), 1.3 times from ResNet-50 to ResNet-18 at 224 px;
the exact mode at least 0.98 of the loop's speed.

    uv run python benchmarks/fast_mode.py                  (CPU, one thread)
    uv run python benchmarks/fast_mode.py --device cuda    (exits 2 where there is no CUDA)

No cache of the teacher. Same weights, batches and formula, a process each, in rounds that
alternate; what precision "fast" tries at its first step is in the warm-up. torchdistill runs in
the peers' environment of overhead.py, on CUDA and CPU in fp32, as it comes. On CUDA the plain loop
and `fit` run in bf16 too, by torch.autocast, and the batches, larger there, are on the GPU
beforehand: the step is measured, not the copies.
"""

import argparse
import hashlib
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from overhead_core import CE, DECAY, KD, LR, MOMENTUM, TEMPERATURE, formula, sgd
from rounds import Feed, Passes, State, Worker, interleaved, paired, summary, write
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
BATCHES, WARM, LONG = 4, 6, 20_000
NAMES = ("bare", "exact", "fast", "torchdistill")
CUDA_NAMES = ("bare", "bare-bf16", "exact", "exact-bf16", "fast", "torchdistill")
BASES = ("bare", "bare-bf16", "torchdistill")
Record = Mapping[str, Any]  # Any: JSON
Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two networks of stillhouse_vision, and the batches they see."""

    teacher: str
    student: str
    side: int
    batch: int
    cuda_batch: int
    classes: int
    goal: float


PAIRS = {
    "cifar": Pair(
        teacher="cifar-resnet56",
        student="cifar-resnet20",
        side=32,
        batch=64,
        cuda_batch=128,
        classes=10,
        goal=1.4,
    ),
    "imagenet": Pair(
        teacher="torchvision:resnet50",
        student="torchvision:resnet18",
        side=224,
        batch=8,
        cuda_batch=128,
        classes=1000,
        goal=1.3,
    ),
    # the teacher in bf16 where the processor has it (AVX512_BF16, AMX)
    "lite0": Pair(
        teacher="timm:tf_efficientnet_lite0",
        student="cifar-resnet20",
        side=128,
        batch=16,
        cuda_batch=128,
        classes=1000,
        goal=1.4,
    ),
}


class Plain(nn.Module):
    """A role as an ordinary network: images in, logits out."""

    def __init__(self, role: nn.Module) -> None:
        super().__init__()
        self.role = role

    def forward(self, images: Tensor) -> Tensor:
        return self.role({"images": images})["logits"]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What every contestant starts from."""

    pair: Pair
    device: str

    @property
    def size(self) -> int:
        return self.pair.batch if self.device == "cpu" else self.pair.cuda_batch

    def roles(self) -> dict[str, nn.Module]:
        """The same weights in every process; BatchNorms of the teacher have seen a batch."""
        from stillhouse_vision.models import ImageSpec, model

        images = ImageSpec(size=self.pair.side)
        torch.manual_seed(0)
        names = {"teacher": self.pair.teacher, "student": self.pair.student}
        made = {
            r: model(n, classes=self.pair.classes, images=images).new() for r, n in names.items()
        }
        first = {name: values[:8].cpu() for name, values in self.batches()[0].items()}
        with torch.no_grad():
            made["teacher"].train()(first)
        made["teacher"].eval().requires_grad_(False)
        made["student"].train()
        return made

    def batches(self) -> list[dict[str, Tensor]]:
        rng, size = torch.Generator().manual_seed(1), self.size
        made = [
            {
                "images": torch.rand(size, 3, self.pair.side, self.pair.side, generator=rng),
                "labels": torch.randint(0, self.pair.classes, (size,), generator=rng),
                "id": torch.arange(number * size, (number + 1) * size),
            }
            for number in range(BATCHES)
        ]
        return [{key: values.to(self.device) for key, values in one.items()} for one in made]

    def feed(self, student: nn.Module, record: Mapping[str, Any]) -> Feed[dict[str, Tensor]]:
        """`record` is filled while it trains (Any: JSON)."""

        def state() -> State:
            from stillhouse.environment import environment

            values = [v.detach().cpu().contiguous() for v in student.state_dict().values()]
            bits = hashlib.sha256(b"".join(v.numpy().tobytes() for v in values)).hexdigest()
            weights = torch.cat([v.flatten().double() for v in values])
            norm = float(weights.norm())
            return {"sha256": bits, "norm": norm, **record, "environment": environment(self.device)}

        return Feed(self.batches(), time.process_time if self.device == "cpu" else _clock, state)

    def moved(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = batch["images"], batch["labels"]
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def _clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def bare(contest: Contest, precision: str) -> None:
    roles = contest.roles()
    teacher, student = (Plain(roles[name]).to(contest.device) for name in ("teacher", "student"))
    optimizer = sgd(student.parameters())
    for batch in contest.feed(roles["student"], {}):
        images, labels = contest.moved(batch)
        with torch.autocast(contest.device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            with torch.no_grad():
                target = teacher(images)
            loss = formula(student(images), target, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def fitted(contest: Contest, precision: str) -> None:
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

    roles, record = contest.roles(), dict[str, Any]()  # Any: JSON
    optimizer = Optimizer(lr=LR, kwargs={"momentum": MOMENTUM, "weight_decay": DECAY})
    ce = Term(cross_entropy_loss, "student.logits", "batch.labels")
    kd = Term(kd_loss, "student.logits", "teacher.logits", temperature=TEMPERATURE)
    objective = Composed(
        phases={"distill": Phase(trains=("student",), optimizer=optimizer)},
        losses={"ce": Weighted(term=ce, weight=CE), "kd": Weighted(term=kd, weight=KD)},
    )
    feed = iter(contest.feed(roles["student"], record))
    data = Passes(feed, size=contest.size, count=BATCHES)
    notes: list[str] = []
    record["notes"] = notes
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        ctx = Context(
            stage="fast",
            out=at,
            checkpoints=at / "kept",
            caches=at,
            device=contest.device,
            observe=lambda event: notes.append(event.text) if "fast:" in event.text else None,
            checkpoint_seconds=math.inf,
        )
        setup = Setup(steps=LONG, batch=contest.size, precision=precision)  # type: ignore[arg-type]
        fit(objective, roles, data, setup=setup, ctx=ctx)


def torchdistill(contest: Contest) -> None:
    from torchdistill.core.distillation import get_distillation_box

    roles, device = contest.roles(), torch.device(contest.device)
    teacher, student = (Plain(roles[name]).to(device) for name in ("teacher", "student"))
    io = {"module_path": ".", "module_io": "output"}
    kwargs = {
        f"{role}_{key}": value for role in ("student", "teacher") for key, value in io.items()
    }
    kwargs |= {"temperature": TEMPERATURE, "alpha": CE, "reduction": "batchmean"}
    terms = {"kd": {"criterion": {"key": "KDLoss", "kwargs": kwargs}, "weight": 1.0}}
    rates = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
    config = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": rates},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    box = get_distillation_box(
        teacher, student, {}, config, device, None, distributed=False, lr_factor=1
    )
    box.teacher_model.eval()  # it stays in train mode by default
    box.pre_epoch_process(epoch=0)
    for batch in contest.feed(roles["student"], {}):
        images, labels = contest.moved(batch)
        box.pre_forward_process()
        loss = box.forward_process(images, targets=labels, supp_dict=None)
        box.post_forward_process(loss)


def measure(name: str, device: str, rounds: int, steps: int) -> dict[str, Any]:  # Any: JSON
    from overhead import peers_python

    names = NAMES if device == "cpu" else CUDA_NAMES
    names = names[:-1] if name == "lite0" else names  # the peers' environment has no timm
    vision = str(ROOT / "plugins" / "vision" / "src")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [vision, os.environ.get("PYTHONPATH", "")])
    )
    python = sys.executable if name == "lite0" else str(peers_python())
    workers = [Worker(who, [python, __file__, "--worker", who, name, device]) for who in names]
    for worker in workers:
        worker.ask("time", WARM)
    states = {worker.name: worker.ask("state") for worker in workers}
    seconds = interleaved(workers, rounds, steps)
    for worker in workers:
        worker.close()
    speed = {
        who: {
            "ms": summary([1000 * s for s in seconds[who]]),
            **{
                f"speed_of_{base}": summary(paired(seconds[base], seconds[who]))
                for base in BASES
                if base in seconds
            },
            "state": {k: v for k, v in states[who].items() if k != "environment"},
        }
        for who in names
    }
    environment = states["bare"]["environment"]
    return {"contestants": speed, "goal": PAIRS[name].goal, "environment": environment}


def table(pairs: Record) -> str:
    lines: list[str] = []
    for name, found in pairs.items():
        bases = [base for base in BASES if base in found["contestants"]]
        heads = "".join(f"{'of ' + base:>24}" for base in bases)
        lines.append(f"{name:14}{'ms/step':>10}{heads}")
        for who, one in found["contestants"].items():
            speeds = "".join(f"{_shown(one[f'speed_of_{base}']):>24}" for base in bases)
            lines.append(f"{who:14}{one['ms']['median']:10.2f}{speeds}")
            lines += [f"    {note}" for note in one["state"].get("notes", ())]
    return "\n".join(lines)


def _shown(speed: Mapping[str, float]) -> str:
    return f"{speed['median']:.3f} [{speed['median_low']:.3f}, {speed['median_high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--steps", type=int, default=4, help="iterations a round")
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=["cifar", "imagenet"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "fast-mode")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device; leave out --device cuda", file=sys.stderr)
        raise SystemExit(2)
    record: dict[str, Any] = {  # Any: JSON
        "setting": {
            "rounds": given.rounds,
            "iterations_a_round": given.steps,
            "device": given.device,
            "threads": 1,
            "counted": "processor time" if given.device == "cpu" else "wall time, synchronised",
        },
        "load_average_before": os.getloadavg(),
        "pairs": {n: measure(n, given.device, given.rounds, given.steps) for n in given.pairs},
        "load_average_after": os.getloadavg(),
    }
    write(given.out / f"fast-mode-{given.device}.json", record)
    print(table(record["pairs"]))
    print(f"load average {record['load_average_before']}, written to {given.out}")


def work(who: str, pair: str, device: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    contest = Contest(pair=PAIRS[pair], device=device)
    match who:
        case "bare" | "bare-bf16":
            bare(contest, "bf16" if who.endswith("bf16") else "fp32")
        case "torchdistill":
            torchdistill(contest)
        case _:
            fitted(contest, {"exact": "fp32", "exact-bf16": "bf16"}.get(who, who))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        main()
