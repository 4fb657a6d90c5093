"""Claim: precision "fast" trains students as accurate as the exact mode, within two standard errors
over seeds.

    uv run python benchmarks/fast_accuracy.py [--seeds 5] [--scale tiny] [--set KEY=VALUE]

`vision/distill` in both precisions, the same seeds, no cache of the teacher; each run goes on where
it was stopped. The mean of the differences, seed by seed, beside its standard error.
"""

import argparse
import math
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from grids import guarded, rows_of, run_cell
from rounds import write

from stillhouse.environment import environment
from stillhouse.report.collect import collect
from stillhouse.settings import parse_assignments

ROOT = Path(__file__).parent.parent
RECIPE, SCORE, ROW = "vision/distill", "accuracy", "student + kd"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scale", default="tiny", choices=("tiny", "small", "paper"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "fast-mode")
    given = parser.parse_args()
    settings = {"seeds": given.seeds, "cache": False, **parse_assignments(given.set)}
    scores: dict[str, list[float]] = {}
    forms: dict[str, Any] = {}  # Any: JSON
    for precision in ("fp32", "fast"):
        cell = {**settings, "precision": precision}
        target = run_cell(RECIPE, given.scale, cell, device=given.device)
        done = collect(target.recipe, target.runs().folder)
        scores[precision] = list(rows_of(target, done, [SCORE])[ROW][SCORE])
        forms[precision] = {
            name: one.run.measured.get("fast") for name, one in done.items() if one.run is not None
        }
    differences = [b - a for a, b in zip(scores["fp32"], scores["fast"], strict=True)]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    record = {
        "claim": f"'{ROW}' of precision fast is within two standard errors of fp32's {SCORE}",
        "settings": {"scale": given.scale, **settings},
        "scores": scores,
        "mean_difference": mean,
        "standard_error": error,
        "within": abs(mean) <= 2 * error or mean == 0,
        "forms": {name: found for name, found in forms["fast"].items() if found},
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "environment": environment(given.device),
    }
    write(given.out / f"fast-accuracy-{given.scale}.json", record)
    for precision, found in scores.items():
        print(f"{precision:6}{statistics.mean(found):.4f}  {', '.join(f'{v:.4f}' for v in found)}")
    print(f"difference {mean:+.4f}, standard error {error:.4f}: within two: {record['within']}")


if __name__ == "__main__":
    guarded(main)
