"""Claim: with a teacher of 10 times the student's MACs, the teacher cache makes an epoch >= 3 times
as fast at the same final loss, and never serves what was computed for something else.

    uv run python benchmarks/teacher_cache.py

The stages are the kernel's own (Make, Train with and without `Cache`), run by `run_stage`; models
and augmentation are stillhouse_vision's. Epochs are timed between the progress events of a run.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import plots
import torch
from rounds import paired, summary, write
from torch import Tensor

from stillhouse import engine  # noqa: F401  imported here, so that no timed run pays for it
from stillhouse.artifact import Artifact, Model
from stillhouse.cache import Cache
from stillhouse.code import code_version
from stillhouse.environment import environment
from stillhouse.objectives import (
    Composed,
    Optimizer,
    Phase,
    Term,
    Weighted,
    cross_entropy_loss,
    kd_loss,
)
from stillhouse.profile import macs
from stillhouse.recipe import Event, Recipe
from stillhouse.runs import Runs, run_stage
from stillhouse.stages.make import Make
from stillhouse.stages.train import Train
from stillhouse.work import Work
from stillhouse_vision.augment import CropFlip
from stillhouse_vision.models.catalogue import model
from stillhouse_vision.models.classifier import ImageSpec

ROOT = Path(__file__).parent.parent
# teacher, student: common pairs with at least 10 times the MACs; the first one carries the claim
PAIRS = (("wrn-40-2", "wrn-16-1"), ("resnet56", "resnet8"))
GOAL_RATIO, GOAL_SPEED, DIGITS = 10.0, 3.0, 1e-5
ROWS, BATCH, VIEWS, EPOCHS, CLASSES, SIDE = 256, 64, 2, 2, 10, 32
IMAGES = ImageSpec()

Record = Mapping[str, Any]  # Any: JSON


@dataclass(frozen=True, kw_only=True)
class Digits:
    """The first `rows` of scikit-learn's handwritten digits from `start` on, as 32 px RGB."""

    rows: int
    start: int = 0

    def __call__(
        self,
        inputs: Mapping[str, Any],
        *,
        work: Work,
    ) -> Mapping[str, Mapping[str, Tensor]]:
        from sklearn.datasets import load_digits

        pictures, labels = load_digits(return_X_y=True)
        chosen = slice(self.start, self.start + self.rows)
        small = torch.tensor(pictures[chosen]).view(-1, 1, 8, 8) * (255 / 16)
        images = small.round().to(torch.uint8).repeat(1, 3, 1, 1)
        for axis in (2, 3):
            images = images.repeat_interleave(SIDE // 8, dim=axis)
        return {"train": {"images": images, "labels": torch.tensor(labels[chosen]).long()}}


def spec(name: str) -> Model:
    return model(name, classes=CLASSES, images=IMAGES)


def phase(role: str) -> Phase:
    sgd = Optimizer(lr=0.02, kwargs={"momentum": 0.9, "weight_decay": 5e-4})
    return Phase(trains=(role,), optimizer=sgd)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A teacher (trained for one step: what it says does not matter here) and its student."""

    teacher: str
    student: str
    cache: Cache | None = None
    data: Digits = field(default_factory=lambda: Digits(rows=ROWS))
    epochs: int = EPOCHS
    teacher_seed: int = 1
    augment: CropFlip = field(default_factory=CropFlip)

    def recipe(self) -> Recipe:
        plain = Composed(
            phases={"train": phase("teacher")},
            losses={
                "ce": Weighted(term=Term(cross_entropy_loss, "teacher.logits", "batch.labels"))
            },
        )
        distill = Composed(
            phases={"train": phase("student")},
            losses={
                "ce": Weighted(
                    term=Term(cross_entropy_loss, "student.logits", "batch.labels"), weight=0.1
                ),
                "kd": Weighted(
                    term=Term(kd_loss, "student.logits", "teacher.logits", temperature=4.0),
                    weight=0.9,
                ),
            },
        )
        teacher = Train(
            name="teacher",
            objective=plain,
            inputs={"data": "data.train"},
            fresh={"teacher": spec(self.teacher)},
            steps=1,
            batch=BATCH,
            seed=self.teacher_seed,
        )
        student = Train(
            name="student",
            objective=distill,
            inputs={"data": "data.train", "teacher": "teacher.teacher"},
            fresh={"student": spec(self.student)},
            steps=self.epochs * (self.data.rows // BATCH),
            batch=BATCH,
            augment=self.augment,
            views=VIEWS,
            cache={} if self.cache is None else {"teacher": self.cache},
        )
        data = Make(name="data", make=self.data, inputs={}, ports=("train",))
        stages = (data, teacher, student)
        return Recipe(name="teacher-cache", reference="benchmark", stages=stages)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a student's training took and gave."""

    epoch_cpu: Sequence[float]  # seconds of each epoch but the first
    epoch_wall: Sequence[float]
    fill_cpu: float | None  # seconds until the last row was stored; None without a cache
    computed_rows: int | None
    reused_rows: int | None
    losses: Sequence[float]  # of each step
    weights: Tensor


class Watch:
    """Notes when each step ended and when the cache was full."""

    def __init__(self) -> None:
        self.started = time.process_time()
        self.filled: float | None = None
        self.steps: dict[int, tuple[float, float]] = {}

    def __call__(self, event: Event) -> None:
        if event.text.startswith("teacher cache"):
            self.filled = time.process_time()
        elif event.done and not event.text:
            self.steps[event.done] = (time.process_time(), time.perf_counter())

    def epochs(self, length: int) -> tuple[list[float], list[float]]:
        ends = [self.steps[step] for step in sorted(self.steps) if step % length == 0]
        pairs = list(itertools.pairwise(ends))
        return [b[0] - a[0] for a, b in pairs], [b[1] - a[1] for a, b in pairs]


def run(trial: Trial, folder: Path) -> Outcome:
    """Run the trial's student anew; data, teacher and cache are kept where they hold."""
    recipe = trial.recipe()
    runs = Runs(
        root=folder, recipe="bench/teacher-cache", variant=f"{trial.teacher}-{trial.data.rows}"
    )
    shutil.rmtree(runs.folder / "student", ignore_errors=True)
    for name in ("data", "teacher"):
        run_stage(recipe, recipe.stage(name), runs)
    watch = Watch()
    student = recipe.stage("student")
    made = run_stage(recipe, student, replace(runs, observe=watch))
    cpu, wall = watch.epochs(trial.data.rows // BATCH)
    cache = _measured(runs).get("teacher_cache", {}).get("teacher", {})
    return Outcome(
        epoch_cpu=cpu,
        epoch_wall=wall,
        fill_cpu=None if watch.filled is None else watch.filled - watch.started,
        computed_rows=cache.get("computed_rows"),
        reused_rows=cache.get("reused_rows"),
        losses=_losses(runs),
        weights=_weights(made["student"]),
    )


def _measured(runs: Runs) -> Record:
    return json.loads((runs.folder / "student.run.json").read_text())["measured"]


def _losses(runs: Runs) -> list[float]:
    head, *rows = (runs.folder / "student.curves.tsv").read_text().splitlines()
    column = head.split("\t").index("loss")
    return [float(row.split("\t")[column]) for row in rows]


def _weights(artifact: Artifact) -> Tensor:
    state = artifact.open().module.state_dict()
    return torch.cat([value.flatten().double() for value in state.values()])


def ratio(teacher: str, student: str) -> tuple[int, int]:
    """MACs of one picture through each."""
    batch = {"images": torch.zeros(1, 3, SIDE, SIDE)}
    large, small = (macs(spec(name).new().eval(), batch) for name in (teacher, student))
    return large, small


def speed(teacher: str, student: str, rounds: int, folder: Path) -> dict[str, Any]:  # Any: JSON
    """Live, fp32-cached and fp16-cached students; live and fp32 in rounds that alternate."""
    live = Trial(teacher=teacher, student=student)
    stored = replace(live, cache=Cache(dtype="fp32"))
    half = replace(live, cache=Cache(dtype="fp16"))
    fill = run(stored, folder)
    outcomes: dict[str, list[Outcome]] = {"without": [], "with": []}
    for number in range(rounds):
        order = [("without", live), ("with", stored)]
        for name, trial in order if number % 2 else order[::-1]:
            outcomes[name].append(run(trial, folder))
    large, small = ratio(teacher, student)
    epochs = {
        name: [statistics.median(one.epoch_cpu) for one in found]
        for name, found in outcomes.items()
    }
    wall = {
        name: statistics.median([statistics.median(one.epoch_wall) for one in found])
        for name, found in outcomes.items()
    }
    return {
        "teacher": teacher,
        "student": student,
        "teacher_macs": large,
        "student_macs": small,
        "macs_ratio": large / small,
        "epoch_cpu_seconds": {name: summary(values) for name, values in epochs.items()},
        "epoch_cpu_seconds_rounds": epochs,
        "epoch_wall_seconds": wall,
        "speed_up": summary(paired(epochs["without"], epochs["with"])),
        "fill_cpu_seconds": fill.fill_cpu,
        "fill_rows": fill.computed_rows,
        "reused_rows_later": [one.reused_rows for one in outcomes["with"]][-1],
        "fp32": gaps(outcomes["without"][0], outcomes["with"][0]),
        "fp16": gaps(outcomes["without"][0], run(half, folder)),
    }


def gaps(live: Outcome, stored: Outcome) -> Record:
    """How far the cached training is from the live one: loss of the last epoch, weights."""
    last = len(live.losses) // EPOCHS
    ends = [statistics.fmean(one.losses[-last:]) for one in (live, stored)]
    return {
        "final_loss_without": ends[0],
        "final_loss_with": ends[1],
        "final_loss_gap": abs(ends[1] / ends[0] - 1),
        "weights_gap": float((stored.weights - live.weights).norm() / live.weights.norm()),
    }


def staleness(folder: Path) -> Record:
    """Rows computed when nothing, the teacher, the data, the augmentation's seed or the storage
    changed: none the first time, all the others, and none when everything is put back.
    """
    data = Digits(rows=BATCH)
    base = Trial(teacher="cnn8", student="cnn2", cache=Cache(), data=data, epochs=VIEWS)
    changes = {
        "first run": base,
        "nothing": base,
        "teacher": replace(base, teacher_seed=2),
        "data": replace(base, data=replace(data, start=BATCH)),
        "augmentation seed": replace(base, augment=CropFlip(seed=1)),
        "storage": replace(base, cache=Cache(dtype="fp16")),
        "all put back": base,
    }
    found = {name: run(trial, folder).computed_rows for name, trial in changes.items()}
    return {"rows_times_views": data.rows * VIEWS, "computed_rows": found}


def verdict(pairs: Sequence[Record], stale: Record) -> Record:
    main, rows = pairs[0], stale["computed_rows"]
    kept = {"nothing", "all put back"}
    return {
        "goal": f">= {GOAL_SPEED} per epoch at >= {GOAL_RATIO} of the MACs, loss to 5 digits",
        "macs_ratio_reached": all(pair["macs_ratio"] >= GOAL_RATIO for pair in pairs),
        "speed_up_reached": main["speed_up"]["median"] >= GOAL_SPEED,
        "final_loss_equal": all(pair["fp32"]["final_loss_gap"] < DIGITS for pair in pairs),
        "never_stale": all(
            count == (0 if name in kept else stale["rows_times_views"])
            for name, count in rows.items()
        ),
    }


def table(record: Record) -> str:
    lines = [
        f"{'pair':24}{'MACs':>8}{'without s':>11}{'with s':>9}{'speed-up':>10}"
        f"{'fill s':>8}{'loss gap fp32':>15}{'fp16':>10}"
    ]
    for one in record["pairs"]:
        seconds = one["epoch_cpu_seconds"]
        lines.append(
            f"{one['teacher'] + ' > ' + one['student']:24}{one['macs_ratio']:7.1f}x"
            f"{seconds['without']['median']:11.3f}{seconds['with']['median']:9.3f}"
            f"{one['speed_up']['median']:9.2f}x{one['fill_cpu_seconds']:8.2f}"
            f"{one['fp32']['final_loss_gap']:15.1e}{one['fp16']['final_loss_gap']:10.1e}"
        )
    stale = record["staleness"]
    lines += [
        f"rows computed after change of: {name}: {n}" for name, n in stale["computed_rows"].items()
    ]
    lines += [f"{name}: {value}" for name, value in record["verdict"].items()]
    return "\n".join(lines)


def draw(pairs: Sequence[Record], path: Path) -> None:
    rows = [
        plots.Row(
            label=f"{one['teacher']} > {one['student']}\n{text} cache",
            values=one["epoch_cpu_seconds_rounds"][name],
            ours=name == "with",
            note=f"{one['epoch_cpu_seconds'][name]['median']:.2f} s"
            + (f"   {one['speed_up']['median']:.1f}x" if name == "with" else ""),
        )
        for one in pairs
        for name, text in (("without", "without"), ("with", "with"))
    ]
    drawn = plots.figure(8, 0.9 + 0.6 * len(rows))
    axes = drawn.subplots()
    plots.strip(axes, rows, f"CPU seconds an epoch of {ROWS} pictures (after the fill)")
    axes.set_xlim(left=0)
    plots.save(drawn, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Epoch time with and without the teacher cache.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "teacher-cache")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["STILLHOUSE_HOME"] = str(folder / "home")
        record: dict[str, Any] = {
            "claim": "the teacher cache makes an epoch at least 3 times as fast",
            "setting": {
                "rounds": given.rounds,
                "pictures": ROWS,
                "pixels": SIDE,
                "batch": BATCH,
                "views": VIEWS,
                "epochs_a_run": EPOCHS,
                "counted": "processor time of the process, one thread; medians over rounds",
            },
            "code": code_version("stillhouse"),
            "environment": environment("cpu"),
            "load_average_before": os.getloadavg(),
            "pairs": [speed(*pair, given.rounds, folder) for pair in PAIRS],
            "staleness": staleness(folder),
        }
    record["verdict"] = verdict(record["pairs"], record["staleness"])
    write(given.out / "teacher-cache.json", record)
    draw(record["pairs"], given.out / "teacher-cache.svg")
    print(table(record))
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
