"""`dvc repro` after an edit of code runs what can reach it, and nothing else."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PIPELINE = "pipelines/toy/count/tiny/dvc.yaml"
PLUGIN = """\
from stillhouse.domain import Domain

domain = Domain(name="toy", summary="numbers", recipes={"count": "toy_plugin.recipe:count"})
"""
READER = '''\
"""The reader."""

import numpy as np
import torch


def read(inputs, *, work):
    """Read the numbers."""
    return {"numbers": {"x": torch.from_numpy(np.loadtxt(inputs["file"]))}}
'''
METRICS = """\
from dataclasses import dataclass

from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score


@dataclass(frozen=True, kw_only=True)
class Mean(Metric):
    def __call__(self, models, data, *, work):
        (batch,) = data.batches(len(data), rng=None)
        return {"mean": float(batch["x"].mean())}

    def scores(self):
        return (Score(name="mean", better="higher"),)
"""
OTHER = METRICS.replace("Mean", "Largest").replace("mean", "max")
RECIPE = """\
from stillhouse.recipe import Recipe, Row
from stillhouse.settings import Settings
from stillhouse.stages import Evaluate, Make

from toy_plugin.metrics import Mean
from toy_plugin.other import Largest
from toy_plugin.reader import read


def count(settings: Settings) -> Recipe:
    inputs = {"data": "numbers.numbers"}
    stages = [
        Make(name="numbers", make=read, inputs={"file": "data:a/numbers.txt"}, ports=("numbers",)),
        Evaluate(name="means", metrics=(Mean(),), inputs=inputs),
        Evaluate(name="largest", metrics=(Largest(),), inputs=inputs),
    ]
    rows = {
        "mean": Row(stages=("means",), kind="baseline"),
        "largest": Row(stages=("largest",)),
    }
    return Recipe(name="count", reference="none", stages=stages, rows=rows)
"""
FILES = {
    "__init__.py": PLUGIN,
    "reader.py": READER,
    "metrics.py": METRICS,
    "other.py": OTHER,
    "recipe.py": RECIPE,
}


def test_repro_runs_what_reaches_the_edited_code(
    counting: "Project", env: Mapping[str, str]
) -> None:
    (counting / "src/toy_plugin/training.py").unlink()
    counting.write({f"src/toy_plugin/{name}": text for name, text in FILES.items()})
    programs = Path(sys.executable).parent

    def call(*words: str) -> str:
        command = [str(programs / words[0]), *words[1:]]
        done = subprocess.run(
            command, cwd=counting.root, env=dict(env), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def edit(name: str, old: str, new: str) -> None:
        path = counting / "src/toy_plugin" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def repro() -> set[str]:
        return set(re.findall(r"Running stage '[^']*:(\w+)'", call("dvc", "repro", PIPELINE)))

    call("stillhouse", "flow", "dvc")
    assert repro() == {"inputs", "numbers", "means", "largest"}
    assert call("dvc", "status").split() == [f"{PIPELINE}:inputs:", "always", "changed"]
    # the kernel lies outside this project: DVC looks each time, and finds nothing to do
    looks = {"inputs"}
    assert repro() == looks
    edit("reader.py", "Read the numbers.", "Read all the numbers.")
    assert repro() == looks
    edit("other.py", '"max": float', '"max": 2 * float')
    assert repro() == looks | {"largest"}
    edit("reader.py", "np.loadtxt", "2 * np.loadtxt")
    assert repro() == looks | {"numbers", "means", "largest"}
    call("stillhouse", "flow", "dvc", "--check")
