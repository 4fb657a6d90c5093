"""What one person has trained, another reads: a clone with the DVC remote has the report, and trains nothing."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Project

VARIANT = "runs/toy/slope/tiny"


def call(root: Path, env: Mapping[str, str], *words: str) -> str:
    """What a command that must succeed prints."""
    program, *rest = words
    command = [str(Path(sys.executable).with_name(program)), *rest]
    done = subprocess.run(command, cwd=root, env=dict(env), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_clone_pulls_the_report_and_trains_nothing(
    counting: "Project", env: dict[str, str], tmp_path: Path
) -> None:
    (counting / "params.yaml").write_text("toy:\n  slope:\n    tiny: {}\n")
    (tmp_path / "store").mkdir()
    call(counting.root, env, "dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    call(counting.root, env, "stillhouse", "flow", "dvc")
    call(counting.root, env, "dvc", "repro", "pipelines/toy/slope/tiny/dvc.yaml")
    call(counting.root, env, "stillhouse", "report", "toy/slope")
    shown = json.loads(call(counting.root, env, "dvc", "metrics", "show", "--json"))
    files = shown[""]["data"]
    # the main score alone: `dvc metrics show` is a table that one can read
    assert list(files) == [f"{VARIANT}/scores.main.json"]
    assert list(files[f"{VARIANT}/scores.main.json"]["data"]) == ["square_error"]
    counting.commit()
    call(counting.root, env, "dvc", "push")

    clone = tmp_path / "clone"
    counting.git("clone", "--quiet", str(counting.root), str(clone))
    env |= {"PYTHONPATH": str(clone / "src"), "STILLHOUSE_HOME": str(tmp_path / "their home")}
    call(clone, env, "dvc", "pull")
    assert "Report: " in call(clone, env, "stillhouse", "report", "toy/slope")
    assert json.loads((clone / VARIANT / "settings.json").read_text())["scale"] == "tiny"
    mine, theirs = (
        json.loads((root / VARIANT / "report/report.json").read_text())
        for root in (counting.root, clone)
    )
    assert theirs["rows"] == mine["rows"]
    assert theirs["curves"] == mine["curves"]
    assert theirs["curves"][0]["stage"] == "student"
    told = call(clone, env, "dvc", "repro", "pipelines/toy/slope/tiny/dvc.yaml")
    # the kernel lies outside the project, so its code is looked at
    assert told.count("Running stage") == 1
    assert "stillhouse flow inputs" in told
