"""vision/knfu over data, splits and sizes: where does fusing neighbours pay, and where does it not?

    uv run python benchmarks/knfu_grid.py [--seeds 3] [--only mnist] [--scale small]

Cells are variants of the recipe, in the order of `CELLS`. Finished stages are not run again, and a
killed one goes on after its last round, so that it can be stopped and started at will; the result
is written anew after every cell. No goal: the numbers are what they are.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grids import Record, guarded, run_cell
from rounds import write

from stillhouse.code import code_version
from stillhouse.environment import environment
from stillhouse.report import report
from stillhouse_vision.recipes.teaching_settings import CIFAR10

ROOT = Path(__file__).parent.parent
RECIPE = "vision/knfu"
SCORES = ("alma_accuracy", "global_accuracy", "effective_neighbours", "self_weight", "sent_mib")

# the usual mean and standard deviation of CIFAR-10's training pictures
COLOUR = {
    "data": "data:cifar10-subset",
    "size": 32,
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.2470, 0.2435, 0.2616],
    "names": list(CIFAR10),
}
DATA: Mapping[str, Record] = {"mnist": {}, "cifar10": COLOUR}
SPLITS: Mapping[str, Record] = {
    "grouped": {},
    **{f"alpha {a}": {"split": "dirichlet", "alpha": a} for a in (0.1, 0.5, 5.0)},
}
# sizes of whole batches of 32 above one batch: a pass leaves an incomplete last one out
CELLS = tuple(
    (data, split, size)
    for data, size in (
        ("mnist", 20),
        ("cifar10", 64),
        ("mnist", 64),
        ("cifar10", 320),
        ("mnist", 320),
    )
    for split in SPLITS
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", default="small")
    parser.add_argument("--only", choices=sorted(DATA), help="cells of one data set")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "knfu-grid")
    options = parser.parse_args()
    cells: list[Record] = []
    chosen = [cell for cell in CELLS if options.only in (None, cell[0])]
    for number, cell in enumerate(chosen, 1):
        print(
            f"[{number}/{len(chosen)}] {cell[0]}, {cell[1]}, {cell[2]} pictures a client",
            flush=True,
        )
        cells.append(run(cell, options.scale, options.seeds))
        show(cells[-1])
        record = {"recipe": RECIPE, "cells": cells, "code": code_version("stillhouse_vision")}
        write(options.out / "knfu-grid.json", {**record, "environment": environment("cpu")})


def run(cell: tuple[str, str, int], scale: str, seeds: int) -> Record:
    """Run what is left of a cell; its rows as the report has them."""
    data, split, size = cell
    settings = {"seeds": seeds, "samples": size, **DATA[data], **SPLITS[split]}
    target = run_cell(RECIPE, scale, settings)
    page = report(target.recipe, target.runs())
    rows = json.loads((page.parent / "report.json").read_text())["rows"]
    return {
        "data": data, "split": split, "samples": size, "variant": target.variant,
        "rows": {row["name"]: _row(row) for row in rows},
    }  # fmt: skip


def _row(row: Record) -> Record:
    found: dict[str, Any] = {name: row["scores"][name] for name in SCORES}
    found["difference"] = row["differences"].get(SCORES[0])
    return found


def show(cell: Record) -> None:
    heads: Sequence[str] = ("ALMA", "global", "neighbours", "self", "MiB")
    print(f"  {'':24}" + "".join(f"{head:>12}" for head in heads))
    for name, row in cell["rows"].items():
        numbers = (row[score]["mean"] for score in SCORES)
        print(f"  {name:24}" + "".join(f"{number:12.3f}" for number in numbers), flush=True)


if __name__ == "__main__":
    guarded(main)
