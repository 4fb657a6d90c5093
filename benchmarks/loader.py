"""Claim: a training step that reads real JPEGs through the loader is at least 0.95 as fast as one
on batches that are in memory; and of any number of images, an opened set gives its first batch in
at most 2 s, at its start and where a resumed training goes on.

    cd benchmarks && ../.venv/bin/python -m loader
    cd benchmarks && ../.venv/bin/python -m loader --images 200000 --rounds 0

(`-m`, for worker processes start in no script.) JPEGs of 256 px are written as data_memory.py does,
`--distinct` of them, the others copies of their pixels, read at 224 px by stillhouse_vision,
stored in shards, and augmented by its CropFlip. torchvision's ResNet-18 trains on what the engine's
own `batches_from` gives, and on one batch of the same shapes, in turns in one process, with all
threads of the machine. While the batch in memory is trained on the workers fill their queues:
before each turn so many batches are read and dropped.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torchvision
from data_memory import CLASSES, make_images
from rounds import paired, summary, write
from torch import Tensor, nn

from stillhouse.data.loader import AHEAD, start_early, workers
from stillhouse.data.shards import load_data, save_data
from stillhouse.environment import environment
from stillhouse.recipe import Context
from stillhouse.training import Position, Setup, batches_from
from stillhouse.work import Work
from stillhouse_vision.augment import CropFlip
from stillhouse_vision.data import ReadImages
from stillhouse_vision.models.classifier import ImageSpec

PIXELS, SIZE, GOAL, FIRST_GOAL = 256, 224, 0.95, 2.0

Batch = Mapping[str, Tensor]
Record = Mapping[str, Any]  # Any: JSON


def stored(images: Path, folder: Path) -> Path:
    """The images as a stage leaves them."""
    spec = ImageSpec(size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    read = ReadImages(images=spec, classes=CLASSES, held_out=0.01, resize=True)
    save_data(folder, read({"source": images}, work=Work.seeded(0))["train"])
    return folder


def batches(data: Path, *, batch: int, step: int) -> Iterator[Batch]:
    """What a training reads that goes on at `step`."""
    setup = Setup(steps=1 << 30, batch=batch, augment=CropFlip(padding=16))
    none = data.with_name("none")
    ctx = Context(stage="benchmark", out=none, checkpoints=none, caches=none)
    return batches_from(Position(step=step), load_data(data), setup, ctx)


class Step:
    """One step of ResNet-18 with SGD."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torchvision.models.resnet18(num_classes=CLASSES)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def __call__(self, batch: Batch) -> None:
        images = batch["images"].float().div(127.5).sub(1)
        loss = nn.functional.cross_entropy(self.model(images), batch["labels"])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def compare(data: Path, given: argparse.Namespace) -> Record:
    """Seconds a step on images and on a batch in memory, round by round."""
    step, real = Step(), batches(data, batch=given.batch, step=0)
    kept = next(real)
    seconds: dict[str, list[float]] = {"memory": [], "images": []}
    for number in range(given.rounds + 1):
        names = ["memory", "images"] if number % 2 else ["images", "memory"]
        for name in names:
            list(islice(real, AHEAD * workers() + 1))  # what is ready
            feed = islice(real, given.steps) if name == "images" else [kept] * given.steps
            start = time.perf_counter()
            for each in feed:
                step(each)
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / given.steps)
    ratio = summary(paired(seconds["memory"], seconds["images"]))
    return {
        "seconds_a_step": {name: summary(values) for name, values in seconds.items()},
        "speed_of_images_over_memory": ratio,
        "rounds": seconds,
        "reached": ratio["median"] >= GOAL,
    }


def first_batches(data: Path, given: argparse.Namespace) -> Record:
    """Seconds from an opened folder to its first batch, in processes that have imported all."""
    rows = len(load_data(data))
    places = {"start": 0, "resumed": rows // given.batch // 2}
    found: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(given.tries):
        for name, step in places.items():
            words = [sys.executable, "-m", "loader", "--first", str(step), "--data", str(data)]
            words += ["--batch", str(given.batch)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            found[name].append(float(done.stdout))
    worst = max(max(values) for values in found.values())
    return {"seconds_to_first_batch": found, "rows": rows, "reached": worst <= FIRST_GOAL}


def first(data: Path, batch: int, step: int) -> float:
    """Seconds from here to a batch."""
    start = time.perf_counter()
    feed = batches(data, batch=batch, step=step)
    next(feed)
    return time.perf_counter() - start  # with `feed`: its end waits for workers that begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of reading images.")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--distinct", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="of one turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tries", type=int, default=3, help="of the first batch")
    parser.add_argument("--data", type=Path, help="a folder that is stored already")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    root = Path(__file__).parent.parent
    parser.add_argument("--out", type=Path, default=root / "docs" / "results" / "loader")
    given = parser.parse_args()
    if given.first is not None:
        print(first(given.data, given.batch, given.first))
        os._exit(0)  # no waiting for workers that nobody asks
    with tempfile.TemporaryDirectory() as folder:
        data = given.data
        if data is None:
            images = Path(folder) / "images"
            make_images(images, given.images, PIXELS, distinct=given.distinct)
            begin = time.monotonic()
            data = stored(images, Path(folder) / "data")
            print(f"{given.images:,} images stored in {time.monotonic() - begin:,.0f} s")
        size = sum(file.stat().st_size for file in data.iterdir())
        record: dict[str, Any] = {
            "claim": f"images at least {GOAL} of memory; a first batch in {FIRST_GOAL} s at most",
            "setting": {"images": given.images, "stored_mib": size / 2**20, "batch": given.batch},
            "threads": torch.get_num_threads(),
            "workers": workers(),
            "environment": environment("cpu"),
            "first": first_batches(data, given),
        }
        print(record["first"])
        if given.rounds:
            start_early()
            record["step"] = compare(data, given)
            print(record["step"]["speed_of_images_over_memory"])
    write(given.out / f"loader-{given.images}.json", record)


if __name__ == "__main__":
    main()
