"""`stillhouse flow compare`: whole runs side by side, on threads, Dask and Ray, all on 127.0.0.1."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stillhouse.errors import BadSetting, MissingExtra

if TYPE_CHECKING:
    from conftest import Project

HAS = {name: importlib.util.find_spec(f"prefect_{name}") is not None for name in ("dask", "ray")}


def test_a_run_for_every_recipe_and_every_value() -> None:
    from stillhouse_flows.cli.compare import requests

    made = requests(["a/b", "c/d"], "tiny", ["seeds=2"], ["lr=0.1,0.2"])
    assert [(each["recipe"], each["settings"]) for each in made] == [
        ("a/b", {"seeds": "2", "lr": "0.1"}),
        ("a/b", {"seeds": "2", "lr": "0.2"}),
        ("c/d", {"seeds": "2", "lr": "0.1"}),
        ("c/d", {"seeds": "2", "lr": "0.2"}),
    ]
    with pytest.raises(
        BadSetting, match=r"^--vary lr=0.1: give at least two values, as in lr=1,2$"
    ):
        requests(["a/b"], "", [], ["lr=0.1"])


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_an_absent_runner_names_its_extra(runner: str) -> None:
    from stillhouse_flows.compare import spread

    if HAS[runner]:
        pytest.skip(f"prefect-{runner} is installed here")
    with pytest.raises(MissingExtra) as caught:
        spread(runner, 1)  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == (
        f"--runner {runner} needs `prefect-{runner}`, which is not installed. Run: "
        f"uv sync --extra {runner}   or   pip install 'stillhouse-flows[{runner}]'"
    )


def compare(project: "Project", home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    env = dict(os.environ) | {
        "PYTHONPATH": str(project / "src"),
        "STILLHOUSE_HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "stillhouse", "flow", "compare", *words]
    return subprocess.run(command, cwd=project.root, env=env, capture_output=True, text=True)


def test_too_few_or_equal_runs_are_refused() -> None:
    from stillhouse_flows.compare import run_names
    from stillhouse_flows.runs.request import Request

    one, other = Request(recipe="toy/count"), Request(recipe="toy/count", settings={"factor": 3})
    assert run_names([one, other]) == ["toy/count", "toy/count factor=3"]
    with pytest.raises(BadSetting, match=r"^compare: give at least two runs \(got 1\)$"):
        run_names([one])
    with pytest.raises(BadSetting, match=r"^compare: toy/count is given twice; leave one out$"):
        run_names([one, other, one])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("runner", ["threads", "dask", "ray"])
def test_runs_are_compared(counting: "Project", own_home: Path, runner: str) -> None:
    if not HAS.get(runner, True):
        pytest.skip(f"prefect-{runner} is not installed; run: uv sync --extra {runner}")
    before = counting.state()
    words = ["toy/count", "--vary", "factor=2,3", "--runner", runner, "--workers", "2"]
    done = compare(counting, own_home, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    page = Path(done.stdout.splitlines()[-1].removeprefix("Comparison: "))
    assert page.is_relative_to(own_home / "comparisons")
    text = page.read_text()
    # the mean of 1, 2, 3 times two and three
    (line,) = [row for row in text.splitlines() if row.startswith("| double: ")]
    assert [cell.split()[0] for cell in line.split("|")[2:4]] == ["4.0000", "6.0000"], text
    assert "setting factor" in text
    branches = counting.git("branch", "--list", "runs/*", "--format=%(refname:short)").splitlines()
    assert len(branches) == 2
    assert all(f"`{branch}`" in text for branch in branches)
    assert counting.state() == before
    rows = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True).stdout
    assert str(counting.root.parent) not in rows


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_failed_run_does_not_keep_the_others_from_being_compared(
    counting: "Project", own_home: Path
) -> None:
    words = ["toy/count", "--vary", "factor=2,3", "--vary", "fail=false,true"]
    done = compare(counting, own_home, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    reason = "stage 'double': these numbers cannot be used"
    assert done.stderr.startswith(
        f'error: toy/count factor="2" fail="true": {reason}; toy/count factor="3" '
    ), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Comparison: " in done.stdout
