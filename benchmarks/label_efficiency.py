"""What a pretrained teacher and unlabelled images buy a small classifier, by the number of labels.

    uv run python benchmarks/label_efficiency.py [--labels 250 1000 all] [--seeds 5]
        [--set steps=936 ...] [--workers 4] [--device cuda] [--draw]

A cell is a variant of vision/distill at a number of labels; with `all` every image is labelled, and
rows that need unlabelled ones are left out. Finished stages are not run again, and a killed one
goes on, so that it can be stopped and started at will; the result is written anew after every
cell. `--workers` runs stages side by side, each in a process, as soon as what they read is there;
`--draw` only draws what is recorded. No goal: the numbers are what they are.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grids import Record, guarded, run_cell, tell
from plots import THEME, figure, save
from rounds import write

from stillhouse.cli.target import Target
from stillhouse.code import code_version
from stillhouse.environment import environment
from stillhouse.places import project_root
from stillhouse.report import report
from stillhouse.report.palette import MARKERS
from stillhouse.runs import run_stage
from stillhouse.settings import make_recipe, make_settings, parse_assignments
from stillhouse_vision.recipes.distill_settings import Distill
from stillhouse_vision.recipes.few_labels_settings import reads_all

ROOT = Path(__file__).parent.parent
RECIPE = "vision/distill"
SCORE = "accuracy"
ALL = "all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--labels", nargs="+", default=["250", "1000", ALL])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scale", default="small")
    parser.add_argument("--set", action="append", default=[], dest="assignments")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "label-efficiency")
    options = parser.parse_args()
    file = options.out / "label-efficiency.json"
    cells: list[Record] = []
    for number, labels in enumerate([] if options.draw else options.labels, 1):
        print(f"[{number}/{len(options.labels)}] labels: {labels}", flush=True)
        given = cell(labels, options.scale, options.seeds, parse_assignments(options.assignments))
        cells.append(run(given, options.scale, options.device, options.workers))
        show(cells[-1])
        record = {"recipe": RECIPE, "cells": cells, "code": code_version("stillhouse_vision")}
        write(file, {**record, "environment": environment(options.device)})
    draw(json.loads(file.read_text())["cells"], options.out / "label-efficiency.svg")


def cell(labels: str, scale: str, seeds: int, given: Mapping[str, str]) -> Record:
    """The settings of a number of labels; of "all" those of every image that is used."""
    base = {"seeds": seeds, **given}
    if labels != ALL:
        return {**base, "labels": int(labels)}
    settings = make_settings(RECIPE, scale, base)
    assert isinstance(settings, Distill)
    every = settings.images or settings.samples - settings.validation
    rows = [row for row in settings.rows if not reads_all(row)]
    return {**base, "labels": every, "rows": rows}


def run(given: Record, scale: str, device: str, workers: int) -> Record:
    """Run what is left of a cell; its rows as the report has them."""
    target = made(given, scale)
    if workers == 1:
        target = run_cell(RECIPE, scale, given, device=device)
    else:
        side_by_side(target, given, scale, device, workers)
    page = report(target.recipe, target.runs())
    rows = json.loads((page.parent / "report.json").read_text())["rows"]
    return {
        "labels": given["labels"], "variant": target.variant, "settings": dict(given),
        "rows": {row["name"]: _row(row) for row in rows},
    }  # fmt: skip


def made(given: Record, scale: str) -> Target:
    settings = make_settings(RECIPE, scale, given)
    recipe = make_recipe(RECIPE, settings)
    return Target(name=RECIPE, settings=settings, recipe=recipe, root=project_root())


def side_by_side(target: Target, given: Record, scale: str, device: str, workers: int) -> None:
    """Run each stage in one of `workers` processes as soon as what it reads is there."""
    target.runs().note_settings(target.settings)
    needs = {
        stage.name: {ref.partition(".")[0] for ref in stage.inputs.values()}
        for stage in target.recipe.stages
    }
    waiting = {name: refs & needs.keys() for name, refs in needs.items()}
    processes = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=processes) as pool:
        running: dict[concurrent.futures.Future[None], str] = {}
        while waiting or running:
            for name in [name for name, refs in waiting.items() if not refs]:
                del waiting[name]
                running[pool.submit(run_one, given, scale, device, name)] = name
            done, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
            for future in done:
                future.result()
                name = running.pop(future)
                for refs in waiting.values():
                    refs.discard(name)


def run_one(given: Record, scale: str, device: str, name: str) -> None:
    """One stage, in a process of the pool."""
    os.environ.setdefault("STILLHOUSE_WORKERS", "0")
    target = made(given, scale)
    runs = target.runs(device=device, observe=tell)
    run_stage(target.recipe, target.recipe.stage(name), runs)


def _row(row: Record) -> Record:
    return {
        "kind": row["kind"], SCORE: row["scores"].get(SCORE),
        "difference": row["differences"].get(SCORE),
    }  # fmt: skip


def show(found: Record) -> None:
    for name, row in found["rows"].items():
        gap, score = row["difference"], row[SCORE]
        if score is None:
            continue
        text = f"  {name:40} {100 * score['mean']:6.1f}"
        if gap is not None and gap["low"] is not None:
            text += f"  {100 * gap['mean']:+.1f} [{100 * gap['low']:.1f}, {100 * gap['high']:.1f}]"
        print(text, flush=True)


def draw(cells: Sequence[Record], path: Path) -> None:
    """Accuracy by labels, a line a row, with the 95 % interval over seeds."""
    drawn = figure(7.2, 4.4)
    axes: Any = drawn.subplots()  # Any: matplotlib types no return
    names = list(dict.fromkeys(name for found in cells for name in found["rows"]))
    students = [n for n in names if _kind(cells, n) == "student"]
    for number, name in enumerate(names):
        points = [
            (found["labels"], found["rows"][name][SCORE])
            for found in cells
            if found["rows"].get(name, {}).get(SCORE)
        ]
        fixed = {"teacher": THEME.teacher, "baseline": THEME.baseline}
        place = students.index(name) if name in students else 0
        colour = fixed.get(_kind(cells, name)) or THEME.series[place % len(THEME.series)]
        # side by side, so that intervals at one number of labels do not cover each other
        x = [labels * (1 + 0.02 * (number - len(names) / 2)) for labels, _ in points]
        means = [100 * score["mean"] for _, score in points]
        low = [100 * (s["mean"] - (s["mean"] if s["low"] is None else s["low"])) for _, s in points]
        axes.errorbar(
            x, means, yerr=low, label=name, color=colour, marker=MARKERS[number % len(MARKERS)],
            markersize=5, linewidth=1.4, capsize=2.5,
            linestyle="--" if _kind(cells, name) == "teacher" else "-",
        )  # fmt: skip
    ticks = sorted({found["labels"] for found in cells})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("labelled images", color=THEME.muted)
    axes.set_ylabel("accuracy, %", color=THEME.muted)
    axes.tick_params(colors=THEME.muted, length=0)
    axes.grid(axis="y", color=THEME.grid)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.legend(
        frameon=False, fontsize=8, labelcolor=THEME.ink, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    save(drawn, path)


def _kind(cells: Sequence[Record], name: str) -> str:
    return next(str(found["rows"][name]["kind"]) for found in cells if name in found["rows"])


if __name__ == "__main__":
    guarded(main)
