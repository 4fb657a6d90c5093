"""More draws and learners of contracts/af_stip's cross-validation than its report has time for.

    uv run python benchmarks/contracts_folds.py --split text [--draws 5] [--learners kd noise ...]

Every learner of the recipe is trained as the recipe's folds train it (settings of its scale, none
chosen here), fold after fold and draw after draw. docs/results/contracts-folds/<scale>-<split>.json
has the scores of each training, and means with 95 % intervals over all folds that are done, written
after each training. Killed, the same call goes on behind the last one; a call with other learners
or more draws adds to the record. Trainings of two folds share contracts, so these intervals are too
narrow for a statement about new contracts.
"""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from grids import guarded
from rounds import write

from stillhouse.data.data import TensorData
from stillhouse.environment import environment
from stillhouse.inputs import raw_input
from stillhouse.places import project_root
from stillhouse.recipe import SCALES
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Make
from stillhouse.training import mix
from stillhouse.work import Work
from stillhouse_contracts.data import ReadContracts
from stillhouse_contracts.folds import CrossValidation, Record
from stillhouse_contracts.recipes.af_stip import cross_validation
from stillhouse_contracts.recipes.af_stip_settings import LEARNERS, AfStipSettings, Learner
from stillhouse_contracts.splits import Split

RECIPE = "contracts/af_stip"
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--split", choices=get_args(Split), default="text")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=LEARNERS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "contracts-folds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = make_settings(RECIPE, options.scale, {})
    assert isinstance(settings, AfStipSettings)
    learners: tuple[Learner, ...] = tuple(options.learners)
    # all have their lessons, whoever is trained: what is kept depends on them
    every = cross_validation(settings, options.split, LEARNERS)
    metric = replace(every, learners=learners, seeds=options.draws)
    kept = (
        project_root() / "runs" / "bench" / "contracts-folds" / f"{options.scale}-{options.split}"
    )
    file = options.out / f"{options.scale}-{options.split}.json"
    done: dict[str, dict[str, Record]] = {}
    if file.is_file():
        done = json.loads(file.read_text())["trainings"]
    data = functions(settings)
    for learner, fold, record in metric.records(data, work=Work.seeded(0, kept=kept)):
        done.setdefault(learner, {})[fold] = record
        _write(file, settings, every, done, len(data))
        print(f"{learner} in {fold}: macro F1 {100 * record['macro_f1']:.1f} %", flush=True)


def functions(settings: AfStipSettings) -> TensorData:
    """All labelled functions of the recipe."""
    stage = make_recipe(RECIPE, settings).stage("data")
    assert isinstance(stage, Make)
    assert isinstance(stage.make, ReadContracts)
    source = raw_input(settings.data, project_root())
    return TensorData(stage.make({"source": source}, work=Work.seeded(mix(stage.seed)))["all"])


def _write(
    file: Path,
    settings: AfStipSettings,
    metric: CrossValidation,
    done: Mapping[str, Mapping[str, Record]],
    count: int,
) -> None:
    means: dict[str, dict[str, float]] = {}
    for (row, score), value in metric.summary(done).items():
        means.setdefault(row, {})[score] = value
    record = {
        "means": means,
        "trainings": done,
        "functions": count,
        "settings": {"scale": settings.scale, "split": metric.split, "folds": metric.folds},
        "load": os.getloadavg()[2],
        "environment": environment("cpu"),
    }
    write(file, record)


if __name__ == "__main__":
    guarded(main)
