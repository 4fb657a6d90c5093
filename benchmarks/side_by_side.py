"""Runs a recipe on one large machine: stages that do not wait for each other run side by side.

    python benchmarks/side_by_side.py sam/tinysam --scale small --set size=512 --workers 12

`stillhouse run` takes one stage after the other, as a small machine needs it. A GPU is left idle by
the small networks of scale `small`; here up to `workers` processes of `stillhouse stage` share it,
and each has the CPU's cores divided by their number: as many all along, since another number of
threads adds in another order, and some trainings end elsewhere for it. Stages that are finished
are skipped, so a run that was cut off goes on. Writes the recipe's report, and into --out its
report.json, report.md and pictures, and the seconds of each stage. With --minutes nothing new is
started after that time, and the report holds what there is. Exits 1 when a stage failed, after all
that did not need it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from stillhouse.cli.target import Target, make_target

POLL = 0.2  # seconds
TAIL = 1500  # characters of a failed stage's output


@dataclass(frozen=True, kw_only=True)
class Running:
    """A stage's process, its output, and when it began."""

    process: subprocess.Popen[bytes]
    log: Path
    begun: float


def main() -> int:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--scale", default="small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    target = make_target(given.recipe, given.scale, given.set)
    target.runs().note_settings(target.settings)
    given.out.mkdir(parents=True, exist_ok=True)
    seconds, failed = run(target, given.device, given.workers, 60 * given.minutes)
    (given.out / "seconds.json").write_text(json.dumps(seconds, indent=1) + "\n")
    told = subprocess.run(command("report", target.ref), check=False)
    folder = target.runs().folder / "report"
    for name in ("report.json", "report.md"):
        if (folder / name).is_file():
            shutil.copy(folder / name, given.out / name)
    for picture in sorted(target.runs().folder.glob("*/scores/**/*.png")):
        shutil.copy(
            picture,
            given.out / f"{picture.relative_to(target.runs().folder).parts[0]}-{picture.name}",
        )
    return 1 if failed or told.returncode else 0


def command(*words: str) -> list[str]:
    """A call of the command line in this interpreter."""
    return [sys.executable, "-m", "stillhouse", *words]


def run(
    target: Target, device: str, workers: int, limit: float
) -> tuple[dict[str, float], list[str]]:
    """Seconds of each stage that was finished, and the stages that failed."""
    recipe, begun = target.recipe, time.monotonic()
    upstream = {stage.name: set(recipe.upstream(stage)) for stage in recipe.stages}
    waiting = list(upstream)
    seconds: dict[str, float] = {}
    failed: list[str] = []
    running: dict[str, Running] = {}
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    while waiting or running:
        for name in list(waiting):
            if not upstream[name].isdisjoint(failed):
                waiting.remove(name)
                failed.append(name)
            elif time.monotonic() - begun > limit:
                waiting.remove(name)
            elif len(running) < workers and upstream[name] <= seconds.keys():
                waiting.remove(name)
                running[name] = begin(target, name, device, threads)
        for name, one in list(running.items()):
            code = one.process.poll()
            if code is None:
                continue
            del running[name]
            took = time.monotonic() - one.begun
            print(
                f"{time.monotonic() - begun:6.0f} s  {name}: {took:.1f} s, exit {code}", flush=True
            )
            if code:
                failed.append(name)
                print(one.log.read_text(errors="replace")[-TAIL:], flush=True)
            else:
                seconds[name] = took
        if running and time.monotonic() - begun > limit + 60:
            for one in running.values():
                one.process.terminate()
        time.sleep(POLL)
    return seconds, failed


def begin(target: Target, name: str, device: str, threads: int) -> Running:
    """Start a stage with so many threads of the CPU."""
    log = target.runs().folder / f"{name}.log"
    words = command("stage", target.ref, name, "--device", device, "--as-run")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            words,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
    return Running(process=process, log=log, begun=time.monotonic())


if __name__ == "__main__":
    raise SystemExit(main())
