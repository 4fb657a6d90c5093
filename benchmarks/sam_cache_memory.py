"""Claim: with stored teacher embeddings the training of a small SAM needs less memory and time.

    uv run python benchmarks/sam_cache_memory.py

One student of sam/tinysam (+ tokens and output) of a teacher as large as SAM's ViT-B without
windows (random weights: memory does not depend on them), 256 px, batch 2, one thread. A process
each, so that the peak is its own: the teacher asked in every step; its embeddings stored while the
run begins; its embeddings there already, as for every student after the first. Peak of the resident
set as the kernel reports it, seconds a step of the steps after the first.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rounds import write

RECIPE, STAGE = "sam/tinysam", "stages-0"
SETTINGS = {
    "data": "builtin:stillhouse_sam.samples:scenes",
    "photos": "builtin:stillhouse_sam.samples:scenes",
    "size": 256,
    "grid": 16,
    "channels": 256,
    "heads": 8,
    "mlp": 2048,
    "teacher_model": "sam-768x12",
    "student": "tiny_vit_5m_224",
    "steps": 6,
    "teacher_steps": 1,
    "box_steps": 0,
    "batch": 2,
    "scenes": 0,
    "seeds": 1,
}
WAYS = ("asked in every step", "stored as the run begins", "stored before")
RESULT = Path(__file__).parent.parent / "docs/results/sam-cache-memory/sam-cache-memory.json"


def main() -> None:
    """Each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--root", type=Path)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measured(given.root, given.way)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {way: once(Path(folder), way) for way in WAYS}
    least = found["stored before"]["peak_mib"] / found["asked in every step"]["peak_mib"]
    record = {"claim": __doc__, "ways": found, "stored_over_asked_peak": least}
    write(RESULT, record)
    print(json.dumps(record, indent=1))


def once(root: Path, way: str) -> dict[str, Any]:
    """What a new process measures."""
    words = [sys.executable, __file__, "--way", way, "--root", str(root)]
    told = subprocess.run(words, check=True, capture_output=True).stdout
    return json.loads(told.splitlines()[-1])


def measured(root: Path, way: str) -> dict[str, Any]:
    """Run what the student waits for (kept between the ways), then the student."""
    import os

    os.environ["STILLHOUSE_HOME"] = str(root / "home")
    import torch

    from stillhouse.runs import Runs, run_stage
    from stillhouse.settings import make_recipe, make_settings
    from stillhouse.stages import Train

    torch.set_num_threads(1)
    recipe = make_recipe(RECIPE, make_settings(RECIPE, "small", SETTINGS))
    student = recipe.stage(STAGE)
    assert isinstance(student, Train)
    runs = Runs(root=root, recipe=RECIPE, variant=way.replace(" ", "-"))
    first = Runs(root=root, recipe=RECIPE, variant="first")
    if not first.folder.is_dir():
        # in a process of its own, too: training the teacher would set the peak
        if os.fork() == 0:
            for name in ("data", "teacher"):
                run_stage(recipe, recipe.stage(name), first)
            os._exit(0)
        os.wait()
    runs.folder.parent.mkdir(parents=True, exist_ok=True)
    for name in ("data", "teacher"):
        (runs.folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (runs.folder / name).exists():
            (runs.folder / name).symlink_to(first.folder / name)
    if way == WAYS[0]:
        student = replace(student, cache={})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    run_stage(recipe, student, runs)
    record = json.loads((runs.folder / f"{STAGE}.run.json").read_text())["measured"]
    return {
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before_mib": before,
        "seconds_per_step": record["seconds_per_step"],
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    main()
