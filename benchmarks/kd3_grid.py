"""The ablation of vision/kd3: without selection, mixed statistics, weights, the student's say.

    uv run python benchmarks/kd3_grid.py [--scale small] [--seeds 3] [--set KEY=VALUE]

One run of the recipe with all its variants, a seed after the other, in runs/. Killed, it goes on in
the stage where it was. After each seed the record holds all that is done:
docs/results/kd3-grid/kd3-grid.json, with the paired difference of each row to KD3.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rounds import write

from stillhouse.cli.target import Target
from stillhouse.environment import environment
from stillhouse.errors import StillhouseError
from stillhouse.recipe import SCALES, Event
from stillhouse.report.collect import collect
from stillhouse.report.statistics import paired
from stillhouse.runs import code_of, project_root, run_recipe
from stillhouse.settings import make_recipe, make_settings, parse_assignments
from stillhouse_vision.recipes.kd3 import OURS, VARIANTS

RECIPE = "vision/kd3"
ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("accuracy", "nll_loss", "teacher_agreement", "parameters", "macs")

Record = Mapping[str, Any]  # Any: JSON


def target_of(options: argparse.Namespace, seeds: int) -> Target:
    """The recipe with every variant; what --set says comes last."""
    given = {"variants": list(VARIANTS), "seeds": seeds, **parse_assignments(options.set)}
    settings = make_settings(RECIPE, options.scale, given)
    recipe = make_recipe(RECIPE, settings)
    return Target(name=RECIPE, settings=settings, recipe=recipe, root=project_root())


def outcome(target: Target) -> Record:
    """Scores of each row, a list of seeds; what each training selected at last; differences."""
    done = collect(target.recipe, target.runs().folder)
    rows = {
        row: {
            name: [done[stage].scores[name] for stage in stages if name in done[stage].scores]
            for name in SHOWN
        }
        for row, stages in target.recipe.rows.items()
    }
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


def tell(event: Event) -> None:
    if event.text:
        print(f"  {event.stage}: {event.text}", flush=True)


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
        target = target_of(options, seeds)
        runs = target.runs(device=options.device, observe=tell)
        runs.note_settings(target.settings)
        run_recipe(target.recipe, runs)
        found = outcome(target)
        record = {
            "settings": {"scale": options.scale, "seeds": seeds, "set": options.set},
            "planned_seeds": options.seeds,
            "code": code_of(RECIPE),
            "environment": environment(options.device),
            **found,
        }
        write(options.out / "kd3-grid.json", record)
        show(found)


if __name__ == "__main__":
    try:
        main()
    except StillhouseError as error:
        sys.exit(f"error: {error}")
