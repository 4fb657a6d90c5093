"""Settings of contracts/af_stip's rows, chosen on a held-out part of the training contracts.

    uv run python benchmarks/contracts_grid.py [--scale small]

A fifth of the recipe's training part, drawn by text (no function has the tokens of one on the
other side), is held out; the test part is not opened. Every row has a grid of four cells: the
networks that learn from labels four rates, the logistic regression four strengths, the distilled
students two rates by two temperatures. The cell with the highest macro F1 on the held-out functions
is chosen; of two as high, that with the higher average precision. One seed a cell. The students'
teacher is the chosen one. Width, length and steps are what the time allows, and are not chosen
here.

docs/results/contracts-af-stip-grid/<scale>.json holds all cells; killed, the same call goes on
behind the last.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from grids import Record, guarded
from rounds import write

from stillhouse.data.data import Columns
from stillhouse.environment import environment
from stillhouse.inputs import raw_input
from stillhouse.places import project_root
from stillhouse.recipe import SCALES
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Make
from stillhouse.training import alone, mix
from stillhouse.work import Work
from stillhouse_contracts.data import ReadContracts
from stillhouse_contracts.folds import TEACHER
from stillhouse_contracts.lessons import logits_in_parts
from stillhouse_contracts.metrics import macro, type_scores
from stillhouse_contracts.recipes.af_stip_lessons import lesson
from stillhouse_contracts.recipes.af_stip_settings import STUDENTS, AfStipSettings
from stillhouse_contracts.splits import fold_numbers

RECIPE = "contracts/af_stip"
ROOT = Path(__file__).resolve().parents[1]
RATES, STRENGTHS = (3e-3, 7e-3, 1.5e-2, 3e-2), (0.1, 1.0, 10.0, 100.0)
SOFT_RATES, TEMPERATURES = (7e-3, 2e-2), (1.0, 4.0)
BY_LABELS = (TEACHER, "supervised", "textcnn", "bilstm")
PARTS = 5  # one of them is held out
SCORES = ("macro_f1", "macro_average_precision", "macro_auc")
Cell = Mapping[str, float]


def cells(row: str) -> Iterator[Cell]:
    """A row's grid."""
    if row in BY_LABELS:
        yield from ({"lr": rate} for rate in RATES)
    elif row == "logistic":
        yield from ({"strength": strength} for strength in STRENGTHS)
    else:
        for rate, temperature in itertools.product(SOFT_RATES, TEMPERATURES):
            yield {"lr": rate, "temperature": temperature}


def with_cell(settings: AfStipSettings, row: str, cell: Cell) -> AfStipSettings:
    """The settings with a row's cell."""
    if row == TEACHER:
        return settings.model_copy(update={"teacher_lr": cell["lr"]})
    own = {f"{row}.{name}": value for name, value in cell.items()}
    return settings.model_copy(update={"numbers": {**settings.numbers, **own}})


def parts_of(settings: AfStipSettings) -> Mapping[str, Columns]:
    """The training part less what is held out, that, and the public part, without the test's."""
    stage = make_recipe(RECIPE, settings).stage("data")
    assert isinstance(stage, Make)
    assert isinstance(stage.make, ReadContracts)
    source = raw_input(settings.data, project_root())
    made = stage.make({"source": source}, work=Work.seeded(mix(stage.seed)))
    train = made["train"]
    names = ("tokens", "labels", "group")
    tokens, labels, groups = (_tensor(train[name]) for name in names)
    fold = fold_numbers(labels.numpy(), groups.numpy(), folds=PARTS, seed=0)
    held_out = torch.from_numpy(fold == 0)
    return {
        "train": {"tokens": tokens[~held_out], "labels": labels[~held_out]},
        "held_out": {"tokens": tokens[held_out], "labels": labels[held_out]},
        "public": {"tokens": made["public"]["tokens"]},
    }


def _tensor(column: Any) -> torch.Tensor:  # Any: a column
    assert isinstance(column, torch.Tensor)
    return column


def _work() -> Work:
    """Of one training, which leaves no checkpoint."""
    return Work.seeded(0, ctx=alone(Work.seeded(0).ctx))


def best(found: Mapping[str, Record]) -> Record:
    """The cell that is chosen."""
    return max(found.values(), key=lambda record: (record[SCORES[0]], record[SCORES[1]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "results" / "contracts-af-stip-grid"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = make_settings(RECIPE, options.scale, {"numbers": {}})
    assert isinstance(settings, AfStipSettings)
    file = options.out / f"{options.scale}.json"
    done: dict[str, dict[str, Record]] = {}
    if file.is_file():
        done = json.loads(file.read_text())["rows"]
    parts = parts_of(settings)
    chosen, teacher = settings, None
    for row in (TEACHER, *STUDENTS):
        own = done.setdefault(row, {})
        for cell in cells(row):
            name = " ".join(f"{key}={value:g}" for key, value in cell.items())
            if name not in own:
                own[name] = {**cell, **_scored(with_cell(chosen, row, cell), row, parts, teacher)}
                _write(file, settings, parts, done)
            print(f"{row}: {name}: macro F1 {100 * own[name][SCORES[0]]:.1f} %", flush=True)
        picked = {key: value for key, value in best(own).items() if key in next(cells(row))}
        chosen = with_cell(chosen, row, picked)
        if row == TEACHER:  # trained again: a network is not part of the record
            teacher = lesson(chosen, row).learn(parts, None, work=_work())
            teacher.requires_grad_(False)
    print(f'"teacher_lr": {chosen.teacher_lr:g}, "numbers": {dict(chosen.numbers)}')


def _scored(
    settings: AfStipSettings,
    row: str,
    parts: Mapping[str, Columns],
    teacher: torch.nn.Module | None,
) -> Record:
    start = time.process_time()
    network = lesson(settings, row).learn(parts, teacher, work=_work())
    seconds = time.process_time() - start
    tokens, labels = (_tensor(parts["held_out"][name]) for name in ("tokens", "labels"))
    scores = macro(type_scores(logits_in_parts(network, tokens), labels, settings.types))
    return {**{name: scores[name] for name in SCORES}, "processor_seconds": seconds}


def _write(
    file: Path,
    settings: AfStipSettings,
    parts: Mapping[str, Columns],
    done: Mapping[str, Mapping[str, Record]],
) -> None:
    record = {
        "rows": done,
        "chosen": {row: best(found) for row, found in done.items() if found},
        "functions": {name: len(columns["tokens"]) for name, columns in parts.items()},
        "settings": {"scale": settings.scale, "seed": 0, "held_out": f"1 of {PARTS}, by text"},
        "environment": environment("cpu"),
    }
    write(file, record)


if __name__ == "__main__":
    guarded(main)
