"""Claim: a whole `stillhouse run vision/distill` on 8,000 JPEGs of 256 x 256 pixels (1.6 GB
decoded), evaluation included, takes at most 1.5 GiB of anonymous memory, each page counted once.

    uv run python benchmarks/data_memory.py
    uv run python benchmarks/data_memory.py --images 200000 --quality 100 \
        --held-out 0.001 --keep /large/disk/images --root /large/disk/root
    uv run python benchmarks/data_memory.py --images 200000 --pixels 512 --keep /large/disk

Smooth images with grain are written by Pillow into a folder a class: below a temporary
folder, or below `--keep`, where they are taken again. The run is the command line's, at scale tiny
with few steps. Memory: `Anonymous` of /proc/<pid>/smaps_rollup, summed over the process and all its
children, five times a second; what is mapped from files is not in it, since the kernel drops that
where memory is short. The same command is given again: how long it takes to see that nothing is to
do.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from rounds import write

from stillhouse.environment import environment

ROOT = Path(__file__).parent.parent
CLASSES, GOAL_MIB, SECONDS = 10, 1536, 0.2
QUALITY = 90  # of the JPEG files
BATCH = 8  # of a step: what a training takes is up to its batch
HELD_OUT = 0.025  # of the images, for the evaluation: 200 of 8,000
STAGE = re.compile(r"^stage ([a-z0-9-]+): done")

Record = Mapping[str, Any]  # Any: JSON


def write_image(job: tuple[Path, int, int, int]) -> int:
    """One image; bytes of its file. Classes differ in brightness: there is something to learn."""
    path, number, pixels, quality = job
    rng = np.random.default_rng(number)
    coarse = rng.uniform(0, 255, (8, 8, 3)) * 0.5 + 64 + 12 * (number % CLASSES - CLASSES / 2)
    smooth = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize(
        (pixels, pixels), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 12, (pixels, pixels, 1))
    seen = (np.asarray(smooth, dtype=np.float32) + grain).clip(0, 255).astype(np.uint8)
    Image.fromarray(seen).save(path, quality=quality)
    return path.stat().st_size


def make_images(
    folder: Path,
    count: int,
    pixels: int,
    *,
    distinct: int = 1 << 62,
    quality: int = QUALITY,
) -> int:
    """`count` images in a folder a class; bytes of all files. Those after the first `distinct` are
    copies of them with a comment of their own: the same pixels, but no two files are equal.
    """
    for number in range(CLASSES):
        (folder / f"class{number}").mkdir(parents=True, exist_ok=True)
    paths = [folder / f"class{n % CLASSES}" / f"{n:07d}.jpg" for n in range(count)]
    jobs = [
        (path, n, pixels, quality) for n, path in enumerate(paths[:distinct]) if not path.is_file()
    ]
    with Pool(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.imap_unordered(write_image, jobs, 64):
            pass
    for number, path in enumerate(paths[distinct:]):
        if not path.is_file():
            seen, said = paths[number % distinct].read_bytes(), b"%08d" % number
            # after the two bytes with which a JPEG begins: a comment, and its length with these two
            path.write_bytes(seen[:2] + b"\xff\xfe" + (len(said) + 2).to_bytes(2) + said + seen[2:])
    return sum(path.stat().st_size for path in paths)


def memory_mib(pid: int) -> dict[str, float]:
    """Of a process and all its children, in MiB; those that have just ended have none.

    "anonymous" is the sum of what each has, pages that a fork left in common counted in each;
    "own" counts a page once, and adds the shared memory through which workers hand over batches.
    """
    found = dict.fromkeys(("Anonymous", "Pss_Anon", "Pss_Shmem"), 0)
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
                for name, kib in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE):
                    if name in found:
                        found[name] += int(kib)
    own = found["Pss_Anon"] + found["Pss_Shmem"]
    return {"anonymous": found["Anonymous"] / 1024, "own": own / 1024}


@dataclass
class Peaks:
    """The most memory by stage, in MiB: that between the lines with which two stages end."""

    pid: int
    peak: Record = field(default_factory=dict[str, float])
    stages: dict[str, Record] = field(default_factory=dict[str, Record])
    over: bool = False

    def watch(self) -> None:
        while not self.over:
            found = memory_mib(self.pid)
            self.peak = {name: max(v, self.peak.get(name, 0.0)) for name, v in found.items()}
            time.sleep(SECONDS)

    def ended(self, stage: str) -> None:
        self.stages[stage], self.peak = self.peak, {}


@contextlib.contextmanager
def watched(pid: int) -> Generator[Peaks]:
    peaks = Peaks(pid)
    thread = threading.Thread(target=peaks.watch)
    thread.start()
    try:
        yield peaks
    finally:
        peaks.over = True
        thread.join()


def run(images: Path, folder: Path, given: argparse.Namespace) -> tuple[Record, float]:
    """The most memory by stage in MiB, and the seconds of the whole run."""
    settings = {
        "data": f"file:{images}",
        "size": given.pixels,
        "held_out": given.held_out,
        "teacher_steps": given.steps,
        "steps": given.steps,
        "batch": BATCH,
        "augment": "crop-flip",
        "cache": False,  # the teacher would go over all images for a few steps
    }
    command = [str(Path(sys.executable).with_name("stillhouse")), "run", "vision/distill"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    places = {"STILLHOUSE_ROOT": str(folder), "STILLHOUSE_HOME": str(folder / "home")}
    start = time.monotonic()
    with subprocess.Popen(
        command,
        env={**os.environ, **places, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        with watched(process.pid) as peaks:
            for line in process.stdout:
                print(f"  {line}", end="", flush=True)
                if found := STAGE.match(line):
                    peaks.ended(found[1])
            peaks.ended("report")
    if process.returncode:
        raise SystemExit(f"error: the run ended with {process.returncode}")
    return peaks.stages, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of a run on many images.")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument(
        "--distinct", type=int, default=8000, help="others are copies of their pixels"
    )
    parser.add_argument("--steps", type=int, default=20, help="of teacher and students")
    parser.add_argument("--quality", type=int, default=QUALITY, help="of the JPEG files")
    parser.add_argument("--held-out", type=float, default=HELD_OUT, help="for the evaluation")
    parser.add_argument("--keep", type=Path, help="where the images stay")
    parser.add_argument("--root", type=Path, help="where the run stays, and is called again")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "data-memory")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = given.keep or Path(folder) / "images"
        size = make_images(
            images,
            given.images,
            given.pixels,
            distinct=given.distinct,
            quality=given.quality,
        )
        print(f"{given.images:,} images of {given.pixels} px: {size / 2**20:,.0f} MiB")
        root = given.root or Path(folder) / "root"
        root.mkdir(exist_ok=True)
        peaks, seconds = run(images, root, given)
        _, again = run(images, root, given)
    highest = {n: max(p.get(n, 0.0) for p in peaks.values()) for n in ("anonymous", "own")}
    record: Record = {
        "claim": f"the run takes at most {GOAL_MIB} MiB of anonymous memory, a page counted once",
        "setting": {
            "images": given.images,
            "pixels": given.pixels,
            "jpeg_mib": size / 2**20,
            "decoded_mib": given.images * 3 * given.pixels**2 / 2**20,
            "steps": given.steps,
            "batch": BATCH,
            "held_out": given.held_out,
            "quality": given.quality,
        },
        "environment": environment("cpu"),
        "peak_mib": highest,
        "peak_mib_by_stage": peaks,
        "seconds": seconds,
        "seconds_with_nothing_to_do": again,
        "verdict": {"reached": highest["own"] <= GOAL_MIB},
    }
    write(given.out / f"{given.images}x{given.pixels}.json", record)
    for stage, peak in {**peaks, "highest": highest}.items():
        print(f"{stage:24}" + "".join(f"{name:>12}{mib:7,.0f} MiB" for name, mib in peak.items()))
    print(f"{seconds:,.0f} s")


if __name__ == "__main__":
    main()
