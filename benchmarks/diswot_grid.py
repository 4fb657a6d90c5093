"""The grid of vision/diswot: teachers x spaces x draws of the weights x ways to add the two parts.

    uv run python benchmarks/diswot_grid.py [--scale small] [--seeds 1] [--only resnet56/depths]

Each cell is a run of the recipe, without its studies, in runs/ under a variant of its own. Killed,
the grid goes on in the stage where it was; a finished cell is not run again. After each cell the
record holds all that is done: docs/results/diswot-grid/diswot-grid.json.
"""

import argparse
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from grids import Record, guarded, rows_of, run_cell
from rounds import write

from stillhouse.cli.target import Target
from stillhouse.code import code_version
from stillhouse.environment import environment
from stillhouse.recipe import SCALES
from stillhouse.report.collect import collect
from stillhouse.settings import parse_assignments

RECIPE = "vision/diswot"
ROOT = Path(__file__).resolve().parents[1]
FILE = "diswot-grid.json"
WEIGHTS = "data:weights-small/cifar10-resnet"
TEACHERS = {
    "resnet20": "resnet20-12fca82f.th",
    "resnet32": "resnet32-d509ac18.th",
    "resnet44": "resnet44-014dd654.th",
    "resnet56": "resnet56-4bfd9763.th",
}
SPACES = ("depths", "shapes", "nasbench201", "macro")
INITS = (1, 4)
COMBINES = ("zscore", "sum")
# the median network of the space; those of the other spaces are held to the recipe's own budget
MACRO = {"parameters": 1.6e6, "macs": 56e6}
SHOWN = ("accuracy", "teacher_agreement", "parameters", "macs")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination by name, and the settings that make it."""

    name: str
    settings: Record


def cells(scale: str) -> list[Cell]:
    """The grid. Teachers are the pretrained ones of data/ at small; elsewhere the preset's own."""
    teachers = TEACHERS if scale == "small" else {"preset": ""}
    return [
        Cell(
            name=f"{teacher}/{space}/inits-{inits}/{combine}",
            settings={
                **({"teacher": f"{WEIGHTS}/{file}", "teacher_model": teacher} if file else {}),
                **budget(scale, space),
                "space": space,
                "inits": inits,
                "combine": combine,
            },
        )
        for (teacher, file), space, inits, combine in itertools.product(
            teachers.items(), SPACES, INITS, COMBINES
        )
    ]


def budget(scale: str, space: str) -> Record:
    """The setting, where it is not the preset's, which is one for the space depths."""
    if space == "depths":
        return {}
    if scale != "small":
        return {"budget": {}}
    return {"budget": MACRO} if space == "macro" else {}


def outcome(target: Target) -> Record:
    """Scores of each row, a list of seeds, and what the searches chose."""
    done = collect(target.recipe, target.runs().folder)
    rows = rows_of(target, done, SHOWN)
    seconds = {name: target.seconds(name) for name in ("search", "largest")}
    return {"variant": target.variant, "rows": rows, "seconds": seconds}


def earlier(file: Path, settings: Record) -> dict[str, Record]:
    """The cells that the record already has, where it was made with the same settings and code."""
    if not file.is_file():
        return {}
    record = json.loads(file.read_text())
    same = record["settings"] == settings and record["code"] == code_version("stillhouse_vision")
    return dict(record["cells"]) if same else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="cells whose name begins so")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--list", action="store_true", help="name the cells and end")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "diswot-grid")
    options = parser.parse_args()
    chosen = [cell for cell in cells(options.scale) if cell.name.startswith(options.only)]
    if options.list or not chosen:
        known = [cell.name for cell in chosen or cells(options.scale)]
        print("\n".join(known))
        raise SystemExit(0 if options.list else f"error: no cell begins with '{options.only}'")
    settings = {"scale": options.scale, "seeds": options.seeds, "set": options.set}
    found = earlier(options.out / FILE, settings)
    for number, cell in enumerate(chosen, 1):
        print(f"{number}/{len(chosen)} {cell.name}", flush=True)
        given = {**cell.settings, "seeds": options.seeds, "studies": False}
        given |= parse_assignments(options.set)  # what --set says comes last
        target = run_cell(RECIPE, options.scale, given, device=options.device)
        found[cell.name] = outcome(target)
        record = {
            "settings": settings,
            "planned": len(cells(options.scale)),
            "code": code_version("stillhouse_vision"),
            "environment": environment(options.device),
            "cells": found,
        }
        write(options.out / FILE, record)
        accuracy = found[cell.name]["rows"]["student + kd"]["accuracy"]
        print(f"  student + kd: {', '.join(f'{100 * a:.2f} %' for a in accuracy)}", flush=True)


if __name__ == "__main__":
    guarded(main)
