"""The ablation of vision/kd3: without selection, mixed statistics, weights, the student's say.

    uv run python benchmarks/kd3_grid.py [--scale small] [--seeds 3] [--set KEY=VALUE]

One run of the recipe with all its variants, a seed after the other, in runs/. Killed, it goes on in
the stage where it was. After each seed the record holds all that is done:
docs/results/kd3-grid/kd3-grid.json, with the paired difference of each row to KD3.
"""

import argparse
from pathlib import Path

from grids import Record, guarded, rows_of, run_cell
from rounds import write

from stillhouse.cli.target import Target
from stillhouse.code import code_version
from stillhouse.environment import environment
from stillhouse.recipe import SCALES
from stillhouse.report.collect import collect
from stillhouse.report.statistics import paired
from stillhouse.settings import parse_assignments
from stillhouse_vision.recipes.kd3 import OURS, VARIANTS

RECIPE = "vision/kd3"
ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("accuracy", "nll_loss", "teacher_agreement", "parameters", "macs")


def outcome(target: Target) -> Record:
    """Scores of each row, a list of seeds; what each training selected at last; differences."""
    done = collect(target.recipe, target.runs().folder)
    rows = rows_of(target, done, SHOWN)
    refreshes = {
        name: stage.run.measured["refreshes"][-1]
        for name, stage in done.items()
        if stage.run is not None and stage.run.measured.get("refreshes")
    }
    ours = rows[OURS]["accuracy"]
    gaps = {
        row: paired(scores["accuracy"], ours)
        for row, scores in rows.items()
        if row != OURS and len(scores["accuracy"]) == len(ours)
    }
    return {
        "variant": target.variant,
        "rows": rows,
        "last_selection": refreshes,
        "accuracy_less_kd3": {
            row: {"mean": gap.mean, "low": gap.low, "high": gap.high} for row, gap in gaps.items()
        },
    }


def show(found: Record) -> None:
    for row, scores in found["rows"].items():
        text = ", ".join(f"{100 * value:.2f} %" for value in scores["accuracy"])
        print(f"  {row:<46}{text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "kd3-grid")
    options = parser.parse_args()
    for seeds in range(1, options.seeds + 1):
        print(f"seed {seeds} of {options.seeds}", flush=True)
        # what --set says comes last
        given = {"variants": list(VARIANTS), "seeds": seeds, **parse_assignments(options.set)}
        target = run_cell(RECIPE, options.scale, given, device=options.device)
        found = outcome(target)
        record = {
            "settings": {"scale": options.scale, "seeds": seeds, "set": options.set},
            "planned_seeds": options.seeds,
            "code": code_version("stillhouse_vision"),
            "environment": environment(options.device),
            **found,
        }
        write(options.out / "kd3-grid.json", record)
        show(found)


if __name__ == "__main__":
    guarded(main)
