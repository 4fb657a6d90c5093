"""Pipelines from a recipe: what DVC is told, and that it is kept in step."""

import json
import sys
from typing import TYPE_CHECKING

import pytest
import typer
import yaml

from stillhouse.code.sources import snapshot
from stillhouse.errors import StillhouseError
from stillhouse_flows.cli import flow

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
    snapshot.cache_clear()
    capsys.readouterr()
    flow.dvc(check=False)
    assert capsys.readouterr().out.splitlines() == [
        "written: pipelines/toy/count/tiny/dvc.yaml",
    ]
    return counting


def test_a_stage_of_a_recipe_is_a_stage_of_dvc(generated: "Project") -> None:
    stages = yaml.safe_load((generated / PIPELINE).read_text())["stages"]
    assert list(stages) == ["inputs", "numbers", "double", "double-scores", "same-scores"]
    base = "runs/toy/count/tiny"
    code = f"{base}/inputs/code.json"
    assert stages["numbers"] == {
        "cmd": "stillhouse stage toy/count@tiny numbers",
        "wdir": "../../../..",
        "deps": ["data/a/numbers.txt"],
        "params": [{code: ["numbers"]}],
        "outs": [f"{base}/numbers", f"{base}/numbers.run.json"],
        "meta": {"prefect": {"resource": "cpu", "timeout": 900}},
    }
    assert stages["double-scores"]["deps"] == [f"{base}/double"]
    assert stages["double-scores"]["params"] == [{code: ["double-scores"]}]
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
    flow.dvc(check=True)
    file = generated / PIPELINE
    file.write_text(file.read_text().replace("double", "triple"))
    stale = generated / "pipelines/toy/count/small/dvc.yaml"
    stale.parent.mkdir()
    stale.write_text(file.read_text())
    generated.write({"pipelines/my/own/one/dvc.yaml": "stages: {}\n"})
    capsys.readouterr()
    with pytest.raises(typer.Exit) as left:
        flow.dvc(check=True)
    assert left.value.exit_code == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"out of date: {PIPELINE}",
        "out of date: pipelines/toy/count/small/dvc.yaml",
    ]
    assert said.err == "error: pipelines/ differs from the recipes. Run: stillhouse flow dvc\n"
    flow.dvc(check=False)
    flow.dvc(check=True)
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
    flow.dvc(check=False)
    stages = yaml.safe_load((generated / f"pipelines/toy/count/{variant}/dvc.yaml").read_text())[
        "stages"
    ]
    noted = f"runs/toy/count/{variant}/inputs/settings.json"
    assert stages["inputs"] == {
        "cmd": f"stillhouse flow inputs toy/count@{variant}",
        "wdir": "../../../..",
        "deps": ["params.yaml", "src/toy_plugin"],
        "params": [f"toy.count.{variant}.factor"],
        "outs": [f"runs/toy/count/{variant}/inputs/code.json", noted],
        "always_changed": True,  # the kernel lies outside this project
        "meta": {"prefect": {"resource": "cpu"}},
    }
    assert all(noted in stage["deps"] for name, stage in stages.items() if name != "inputs")
    assert not (generated / PIPELINE).exists()


def test_code_keys_are_noted_for_each_stage(generated: "Project") -> None:
    from stillhouse.code import stage_code
    from stillhouse.settings import make_recipe, make_settings
    from stillhouse_flows.stages.outside import check_key, write_notes

    write_notes(generated.root, "toy/count@tiny")
    noted = json.loads((generated / "runs/toy/count/tiny/inputs/code.json").read_text())
    recipe = make_recipe("toy/count", make_settings("toy/count", "tiny", {}))
    assert noted == {stage.name: stage_code(recipe, stage) for stage in recipe.stages}
    assert {len(key) for key in noted.values()} == {64}
    check_key(generated.root, "toy/count@tiny", "double")
    # on another machine, with a plugin of another version
    source = generated / "src/toy_plugin/__init__.py"
    source.write_text(source.read_text().replace("* self.factor", "+ self.factor"))
    snapshot.cache_clear()
    told = (
        r"^stage 'double': this machine's stillhouse or plugin differs from the sender's; install"
    )
    with pytest.raises(StillhouseError, match=told):
        check_key(generated.root, "toy/count@tiny", "double")


def test_code_inside_the_project_is_read_again_where_it_changed_only() -> None:
    from stillhouse.places import project_root
    from stillhouse_flows.stages.generate import files, targets

    root = project_root()
    chosen = next(t for t in targets(root) if t.ref == "landmarks/two_teacher@tiny")
    ((_, text),) = files(chosen).items()
    entry = yaml.safe_load(text)["stages"]["inputs"]
    assert entry["deps"] == [
        "params.yaml",
        "packages/kernel/src/stillhouse",
        "plugins/landmarks/src/stillhouse_landmarks",
    ]
    assert "always_changed" not in entry
