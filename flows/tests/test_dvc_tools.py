"""DVC's own commands on what two runs leave."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_metrics_params_plots_and_experiments_of_two_runs(
    counting: "Project", own_home: Path, tmp_path: Path
) -> None:
    env = dict(os.environ) | {
        "PYTHONPATH": str(counting / "src"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
    }

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "stillhouse", "flow", "run", "toy/slope", *words]
        done = subprocess.run(command, cwd=counting.root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        branches = "branch", "--list", "runs/*", "--sort=-creatordate", "--format=%(refname:short)"
        return counting.git(*branches).splitlines()[0]

    def dvc(*words: str) -> str:
        command = [str(Path(sys.executable).with_name("dvc")), *words]
        done = subprocess.run(command, cwd=counting.root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    one = run("--set", "steps=20")
    two = run("--set", "steps=20", "--set", "seeds=2")
    (counting / "data/a/numbers.txt").unlink()
    (counting / "data/a/numbers.txt").write_text("4\n5\n")
    dvc("add", "data")
    three = run("--set", "steps=20")

    metrics = json.loads(dvc("metrics", "diff", one, three, "--json"))
    (scores,) = (values for path, values in metrics.items() if path.endswith(".main.json"))
    assert scores["square_error"]["diff"] != 0

    changed = json.loads(dvc("params", "diff", one, two, "--json"))
    assert next(iter(changed["params.yaml"].values()))["new"] == 2
    # a seed more is more stages, and no stage's code changes
    (codes,) = (values for path, values in changed.items() if path.endswith("inputs/code.json"))
    assert all(value["old"] is None for value in codes.values())

    page = dvc("plots", "diff", one, three, "--out", str(tmp_path / "plots"))
    html = Path(page.strip().splitlines()[-1].removeprefix("file://"))
    assert "student.curves.tsv" in html.read_text()

    table = dvc("exp", "show", "--all-branches", "--csv")
    assert one in table
    assert "square_error" in table
