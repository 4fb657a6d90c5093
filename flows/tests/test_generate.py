"""Pipelines from a recipe: what DVC is told, and that it is kept in step."""

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from conftest import Project

PIPELINE = "pipelines/toy/count/tiny/dvc.yaml"


def dvc(project: "Project", *words: str) -> "subprocess.CompletedProcess[str]":
    """`stillhouse flow dvc`, in a process that sees the project's own plugin."""
    env = dict(os.environ) | {"PYTHONPATH": str(project / "src")}
    command = [sys.executable, "-m", "stillhouse", "flow", "dvc", *words]
    return subprocess.run(command, cwd=project.root, env=env, capture_output=True, text=True)


@pytest.fixture
def generated(counting: "Project") -> "Project":
    done = dvc(counting)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "written: pipelines/toy/count/tiny/code.json",
        "written: pipelines/toy/count/tiny/dvc.yaml",
    ]
    return counting


def test_a_stage_of_a_recipe_is_a_stage_of_dvc(generated: "Project") -> None:
    stages = yaml.safe_load((generated / PIPELINE).read_text())["stages"]
    assert list(stages) == ["numbers", "double", "same", "double-scores", "same-scores"]
    base = "runs/toy/count/tiny"
    code = ["src/toy_plugin", "pipelines/toy/count/tiny/code.json"]
    assert stages["numbers"] == {
        "cmd": "stillhouse stage toy/count@tiny numbers",
        "wdir": "../../../..",
        "deps": ["data/a/numbers.txt", *code],
        "outs": [f"{base}/numbers"],
        "metrics": [{f"{base}/numbers.run.json": {"cache": False}}],
        "meta": {"prefect": {"resource": "cpu", "timeout": 900}},
    }
    assert stages["double-scores"]["deps"] == [f"{base}/double", *code]
    assert stages["double-scores"]["metrics"] == [
        {f"{base}/double-scores.run.json": {"cache": False}},
        {f"{base}/double-scores.scores.json": {"cache": False}},
    ]


def test_drift_is_found_and_mended(generated: "Project") -> None:
    assert dvc(generated, "--check").returncode == 0
    file = generated / PIPELINE
    file.write_text(file.read_text().replace("double", "triple"))
    stale = generated / "pipelines/toy/count/small/dvc.yaml"
    stale.parent.mkdir()
    stale.write_text(file.read_text())
    own = generated / "pipelines/my/own/one/dvc.yaml"
    generated.write({"pipelines/my/own/one/dvc.yaml": "stages: {}\n"})
    done = dvc(generated, "--check")
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        f"out of date: {PIPELINE}",
        "out of date: pipelines/toy/count/small/dvc.yaml",
    ]
    assert done.stderr == "error: pipelines/ differs from the recipes. Run: stillhouse flow dvc\n"
    assert dvc(generated).returncode == 0
    assert dvc(generated, "--check").returncode == 0
    assert (stale.exists(), own.exists()) == (False, True)


def test_settings_of_a_variant_are_its_params_except_seeds(generated: "Project") -> None:
    from stillhouse.settings import Settings

    class Count(Settings):
        factor: int = 2

    variant = Count.at("tiny", {"factor": 3}).variant()
    (generated / "params.yaml").write_text(
        f"toy:\n  count:\n    {variant}: {{factor: 3, seeds: 2}}\n"
    )
    assert dvc(generated).returncode == 0
    stages = yaml.safe_load((generated / f"pipelines/toy/count/{variant}/dvc.yaml").read_text())["stages"]
    assert stages["same"]["params"] == [f"toy.count.{variant}.factor"]
    assert not (generated / PIPELINE).exists()


def test_code_outside_the_project_is_a_dependency_by_its_digest(generated: "Project") -> None:
    from stillhouse.digest import code_version

    record = json.loads((generated / "pipelines/toy/count/tiny/code.json").read_text())
    assert list(record) == ["toy_plugin"]
    assert record["toy_plugin"] != code_version("stillhouse")
    assert len(record["toy_plugin"]) == 64
