"""Claim: a one-step student needs at least 30 times fewer evaluations of its network than its
teacher's 18-step Heun sampler, and at least 20 times less time an image; a step of distribution
matching takes at most 1.05 times what the passes of its three networks do.

    uv run python benchmarks/diffusion_speed.py [--rounds 15] [--out docs/results/diffusion-speed]

One process, one thread, processor time; contestants alternate, and who begins changes from round to
round. Networks are those of `diffusion/msd` at small, with drawn weights: what they draw does not
change what is computed. A cycle of training is `ratio` steps of the fake score and one of the
generator. Beside it stand its passes alone (forward and backward of the same networks on inputs of
the same shapes), and these with the updates of the optimizers.
"""

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rounds import in_turns, paired, summary, write
from torch import Generator, Tensor, nn

from stillhouse.code import code_version
from stillhouse.engine import fit
from stillhouse.environment import environment
from stillhouse.recipe import Context
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Train
from stillhouse.training import Setup
from stillhouse_diffusion.phases import MatchDistribution, pixels
from stillhouse_diffusion.recipes.msd_settings import Msd
from stillhouse_diffusion.sampling import HeunSampler, OneStepStudent

ROOT = Path(__file__).parent.parent
RECIPE = "diffusion/msd"
FEWER, FASTER, MOST = 30.0, 20.0, 1.05
BATCHES = (1, 32)
CYCLES = 3

Record = dict[str, Any]  # Any: JSON


class Stamped:
    """The same batch again and again, with the processor time at which each was asked for."""

    def __init__(self, batch: Mapping[str, Tensor]) -> None:
        self.batch, self.stamps = dict(batch), list[float]()

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def batches(self, size: int, *, rng: Generator | None) -> Iterator[Mapping[str, Tensor]]:
        assert size == len(self)
        assert rng is not None
        self.stamps.append(time.process_time())
        yield dict(self.batch)


def used(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def sampling(settings: Msd, rounds: int) -> Record:
    """The teacher's sampler against its student, by the number of images at once."""
    denoiser = settings.network(settings.widths).new().eval()
    noise = settings.noise()
    sampler = HeunSampler(
        denoiser, steps=settings.heun_steps, low=noise.low, high=noise.high, rho=noise.rho
    )
    student = OneStepStudent(denoiser, sigma=noise.high)
    found: Record = {"evaluations": {"teacher": sampler.evaluations, "student": 1}, "images": {}}
    for count in BATCHES:
        given = {"noise": torch.randn(count, *settings.shape), "labels": torch.arange(count) % 10}

        def sampled(
            module: nn.Module, given: Mapping[str, Tensor] = given, count: int = count
        ) -> float:
            with torch.no_grad():
                return 1000 * used(lambda: module(given)) / count

        times = in_turns(
            {"teacher": lambda: sampled(sampler), "student": lambda: sampled(student)}, rounds
        )
        found["images"][str(count)] = {
            "ms_an_image": {name: summary(values) for name, values in times.items()},
            "times_faster": summary(paired(times["teacher"], times["student"])),
        }
    return found


def training(settings: Msd, rounds: int) -> Record:
    """A cycle of distribution matching by `fit`, its passes alone, and these with the updates."""
    stage = make_recipe(RECIPE, settings).stage("k1-0-s0")
    assert isinstance(stage, Train)
    assert isinstance(stage.objective, MatchDistribution)
    torch.manual_seed(0)
    teacher = settings.network(settings.widths).new()
    models = {role: copy.deepcopy(teacher) for role in ("teacher", "fake", "student")}
    count = settings.batch
    batch = {
        "id": torch.arange(count),
        "images": torch.randint(0, 256, (count, *settings.shape), dtype=torch.uint8),
        "labels": torch.arange(count) % settings.classes,
    }
    passes = Passes(stage.objective, models, batch, settings)

    def fitted() -> float:
        data, ratio = Stamped(batch), settings.ratio
        setup = Setup(steps=ratio * (1 + CYCLES) + 1, batch=count)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ctx = Context(
                stage="speed",
                out=folder,
                checkpoints=folder / "checkpoints",
                caches=folder,
                checkpoint_seconds=float("inf"),
            )
            fit(stage.objective, models, data, setup=setup, ctx=ctx)
        # the first cycle warms up
        return (data.stamps[ratio * (1 + CYCLES)] - data.stamps[ratio]) / CYCLES

    times = in_turns(
        {
            "fit": fitted,
            "passes": lambda: used(lambda: passes.cycle(CYCLES, updates=False)) / CYCLES,
            "passes_and_updates": lambda: used(lambda: passes.cycle(CYCLES, updates=True)) / CYCLES,
        },
        rounds,
    )
    ratios = {name: paired(times["fit"], times[name]) for name in times if name != "fit"}
    return {
        "batch": count,
        "ratio": settings.ratio,
        "seconds_a_cycle": {name: summary(values) for name, values in times.items()},
        "fit_over": {name: summary(values) for name, values in ratios.items()},
    }


class Passes:
    """What the networks of distribution matching compute in a cycle, and nothing else."""

    def __init__(
        self,
        objective: MatchDistribution,
        models: Mapping[str, nn.Module],
        batch: Mapping[str, Tensor],
        settings: Msd,
    ) -> None:
        self.nets = {role: copy.deepcopy(module).eval() for role, module in models.items()}
        images = pixels(batch["images"])
        self.given = {
            "images": images,
            "sigma": torch.full((len(images),), settings.high),
            "labels": batch["labels"],
        }
        self.ratio = settings.ratio
        self.clip = settings.clip
        self.optimizers = {
            role: torch.optim.AdamW(
                self.nets[role].parameters(),
                lr=1e-6,
                weight_decay=settings.decay,
            )
            for role in objective.phases
        }

    def forward(self, role: str) -> None:
        with torch.no_grad():
            self.nets[role](self.given)

    def learn(self, role: str, *, updates: bool) -> None:
        net = self.nets[role]
        net(self.given)["denoised"].square().mean().backward()
        if updates:
            nn.utils.clip_grad_norm_(net.parameters(), self.clip)
            self.optimizers[role].step()
        net.zero_grad()

    def cycle(self, count: int, *, updates: bool) -> None:
        for _ in range(count):
            self.learn("student", updates=updates)
            self.forward("teacher")
            self.forward("fake")
            for _ in range(self.ratio):
                self.forward("student")
                self.learn("fake", updates=updates)


def table(record: Record) -> str:
    evaluations = record["sampling"]["evaluations"]
    lines = [
        f"evaluations an image: teacher {evaluations['teacher']}, student {evaluations['student']}"
    ]
    for count, each in record["sampling"]["images"].items():
        ms = each["ms_an_image"]
        lines.append(
            f"{count} at once: {ms['teacher']['median']:.2f} ms an image by the teacher, "
            f"{ms['student']['median']:.2f} by the student: "
            f"{each['times_faster']['median']:.1f} times faster (goal {FASTER:g})"
        )
    for name, ratio in record["training"]["fit_over"].items():
        lines.append(
            f"a cycle by fit over its {name.replace('_', ' ')}: {ratio['median']:.3f} "
            f"(goal {MOST:g} over its passes)"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/diffusion-speed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = make_settings(RECIPE, "small", {"precision": "fp32"})
    assert isinstance(settings, Msd)
    before = os.getloadavg()
    record: Record = {
        "claim": "30 times fewer evaluations and 20 times faster than 18-step Heun; a step of DM "
        "within 1.05 of its passes",
        "code": code_version("stillhouse_diffusion"),
        "environment": environment("cpu"),
        "load_average_before": before,
        "rounds": given.rounds,
        "widths": list(settings.widths),
        "sampling": sampling(settings, given.rounds),
        "training": training(settings, given.rounds),
    }
    evaluations = record["sampling"]["evaluations"]
    record["passed"] = {
        "fewer": evaluations["teacher"] / evaluations["student"] >= FEWER,
        "faster": all(
            each["times_faster"]["median"] >= FASTER
            for each in record["sampling"]["images"].values()
        ),
        "step": record["training"]["fit_over"]["passes"]["median"] <= MOST,
    }
    print(table(record))
    print(f"load {before[0]:.1f} before; {record['passed']}")
    write(given.out / "diffusion-speed.json", record)


if __name__ == "__main__":
    main()
