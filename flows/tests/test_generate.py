"""Pipelines from a recipe: what DVC is told, and that it is kept in step."""

import json
import sys
from typing import TYPE_CHECKING

import pytest
import typer
import yaml

from stillhouse_flows import cli

if TYPE_CHECKING:
    from conftest import Project

PIPELINE = "pipelines/toy/count/tiny/dvc.yaml"


@pytest.fixture
def generated(
    counting: "Project", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> "Project":
    monkeypatch.syspath_prepend(str(counting / "src"))
    monkeypatch.delitem(sys.modules, "toy_plugin", raising=False)
    monkeypatch.chdir(counting.root)
    capsys.readouterr()
    cli.dvc(check=False)
    assert capsys.readouterr().out.splitlines() == [
        "written: pipelines/toy/count/tiny/code.json",
        "written: pipelines/toy/count/tiny/dvc.yaml",
    ]
    return counting


def test_a_stage_of_a_recipe_is_a_stage_of_dvc(generated: "Project") -> None:
    stages = yaml.safe_load((generated / PIPELINE).read_text())["stages"]
    assert list(stages) == ["numbers", "double", "double-scores", "same-scores"]
    base = "runs/toy/count/tiny"
    code = ["src/toy_plugin", "pipelines/toy/count/tiny/code.json"]
    assert stages["numbers"] == {
        "cmd": "stillhouse stage toy/count@tiny numbers",
        "wdir": "../../../..",
        "deps": ["data/a/numbers.txt", *code],
        "outs": [f"{base}/numbers", f"{base}/numbers.run.json"],
        "meta": {"prefect": {"resource": "cpu", "timeout": 900}},
    }
    assert stages["double-scores"]["deps"] == [f"{base}/double", *code]
    # all in DVC's cache: a clone pulls what a report needs
    assert stages["double-scores"]["outs"] == [
        f"{base}/double-scores",
        f"{base}/double-scores.run.json",
        f"{base}/double-scores.scores.json",
    ]
    assert stages["double-scores"]["metrics"] == [f"{base}/double-scores.main.json"]


def test_drift_is_found_and_mended(
    generated: "Project", capsys: pytest.CaptureFixture[str]
) -> None:
    cli.dvc(check=True)
    file = generated / PIPELINE
    file.write_text(file.read_text().replace("double", "triple"))
    stale = generated / "pipelines/toy/count/small/dvc.yaml"
    stale.parent.mkdir()
    stale.write_text(file.read_text())
    generated.write({"pipelines/my/own/one/dvc.yaml": "stages: {}\n"})
    capsys.readouterr()
    with pytest.raises(typer.Exit) as left:
        cli.dvc(check=True)
    assert left.value.exit_code == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"out of date: {PIPELINE}",
        "out of date: pipelines/toy/count/small/dvc.yaml",
    ]
    assert said.err == "error: pipelines/ differs from the recipes. Run: stillhouse flow dvc\n"
    cli.dvc(check=False)
    cli.dvc(check=True)
    assert not stale.exists()
    assert (generated / "pipelines/my/own/one/dvc.yaml").is_file()


def test_settings_of_a_variant_are_its_params_except_seeds(generated: "Project") -> None:
    from stillhouse.settings import Settings

    class Count(Settings):
        factor: int = 2

    variant = Count.at("tiny", {"factor": 3}).variant()
    (generated / "params.yaml").write_text(
        f"toy:\n  count:\n    {variant}: {{factor: 3, seeds: 2}}\n"
    )
    cli.dvc(check=False)
    stages = yaml.safe_load((generated / f"pipelines/toy/count/{variant}/dvc.yaml").read_text())[
        "stages"
    ]
    noted = f"runs/toy/count/{variant}/inputs/settings.json"
    assert stages["inputs"] == {
        "cmd": f"stillhouse flow inputs toy/count@{variant}",
        "wdir": "../../../..",
        "deps": ["params.yaml"],
        "params": [f"toy.count.{variant}.factor"],
        "outs": [noted],
        "meta": {"prefect": {"resource": "cpu"}},
    }
    assert all(noted in stage["deps"] for name, stage in stages.items() if name != "inputs")
    assert not (generated / PIPELINE).exists()


def test_code_outside_the_project_is_a_dependency_by_its_digest(generated: "Project") -> None:
    from stillhouse.digest import code_version

    record = json.loads((generated / "pipelines/toy/count/tiny/code.json").read_text())
    assert list(record) == ["toy_plugin"]
    assert record["toy_plugin"] != code_version("stillhouse")
    assert len(record["toy_plugin"]) == 64
