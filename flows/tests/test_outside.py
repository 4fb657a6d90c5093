"""Inputs that lie outside the project, and settings that DVC takes for equal: what was made from others is never
restored.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stillhouse.errors import BadData, BadRecipe

if TYPE_CHECKING:
    from conftest import Project

pytestmark = pytest.mark.timeout(600)


def call(project: "Project", env: Mapping[str, str], *words: str) -> str:
    """What a command that must succeed prints."""
    program, *rest = words
    command = [str(Path(sys.executable).with_name(program)), *rest]
    done = subprocess.run(command, cwd=project.root, env=dict(env), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def keep(project: "Project", env: Mapping[str, str], values: str) -> str:
    """The variant of toy/count with these settings, kept in params.yaml with its pipeline."""
    script = (
        "import json, sys; from stillhouse.settings import make_settings; "
        f"print(make_settings('toy/count', 'tiny', {values}).variant())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=dict(env), capture_output=True, text=True, check=True
    )
    variant = done.stdout.strip()
    params = {"toy": {"count": {variant: eval(values)}}}
    (project / "params.yaml").write_text(json.dumps(params))
    call(project, env, "stillhouse", "flow", "dvc")
    return variant


def mean(project: "Project", variant: str) -> float:
    file = project / f"runs/toy/count/{variant}/same-scores.scores.json"
    return json.loads(file.read_text())["mean"]


@pytest.mark.slow
def test_dvc_repro_sees_a_file_outside_the_project(
    counting: "Project", env: Mapping[str, str], tmp_path: Path
) -> None:
    outer = tmp_path / "outer.txt"
    outer.write_text("1\n1\n")
    variant = keep(counting, env, repr({"data": f"file:{outer}"}))
    pipeline = f"pipelines/toy/count/{variant}/dvc.yaml"
    call(counting, env, "dvc", "repro", pipeline)
    assert mean(counting, variant) == 1
    before = (counting / pipeline).with_suffix(".lock").read_text()
    told = call(counting, env, "dvc", "repro", pipeline)
    # only the stage that looks ran again
    assert told.count("Running stage") == 1
    assert "stillhouse flow inputs" in told
    assert (counting / pipeline).with_suffix(".lock").read_text() == before
    outer.write_text("5\n5\n")
    call(counting, env, "dvc", "repro", pipeline)
    assert mean(counting, variant) == 5


@pytest.mark.slow
@pytest.mark.parametrize("way", ["absolute", "home", "linked file", "linked folder"])
def test_flow_run_never_restores_what_was_made_from_other_data(
    counting: "Project", env: dict[str, str], tmp_path: Path, way: str
) -> None:
    outer = tmp_path / "outer" / "numbers.txt"
    outer.parent.mkdir()
    outer.write_text("1\n1\n")
    env["HOME"] = str(tmp_path)
    (counting / "link").symlink_to(os.path.relpath(outer.parent, counting.root))
    (counting / "numbers").symlink_to(outer)
    data = {
        "absolute": str(outer),
        "home": "~/outer/numbers.txt",
        "linked file": "numbers",
        "linked folder": "link/numbers.txt",
    }[way]
    words = ("stillhouse", "flow", "run", "toy/count", "--set", f"data=file:{data}")
    means: list[float] = []
    for number in (1, 5):
        outer.write_text(f"{number}\n{number}\n")
        page = Path(call(counting, env, *words).splitlines()[-1].removeprefix("Report: "))
        means.append(_mean(page))
    assert means == [1, 5]
    outer.write_text("1\n1\n")
    planned = call(counting, env, "stillhouse", "flow", "plan", *words[3:])
    assert planned.splitlines()[-1] == "0 of 5 stages would run."


def _mean(page: Path) -> float:
    return json.loads((page.parents[1] / "same-scores.scores.json").read_text())["mean"]


def test_a_path_out_of_the_project_is_refused_with_the_one_that_works(
    counting: "Project", env: Mapping[str, str]
) -> None:
    (counting.root.parent / "up.txt").write_text("1\n")
    command = [sys.executable, "-m", "stillhouse", "flow", "plan", "toy/count"]
    done = subprocess.run(
        [*command, "--set", "data=file:../up.txt"],
        cwd=counting.root,
        env=dict(env),
        capture_output=True,
        text=True,
    )
    full = counting.root.parent / "up.txt"
    assert (done.returncode, done.stderr) == (
        2,
        f"error: 'file:../up.txt' leads elsewhere from a run's own workspace; give file:{full}\n",
    )


@pytest.mark.slow
def test_what_dvc_takes_for_the_same_parameter_is_not_restored(
    counting: "Project", env: Mapping[str, str]
) -> None:
    source = counting / "src/toy_plugin/__init__.py"
    source.write_text(
        source.read_text().replace("factor: int = 2", "factor: int | float | bool = 2")
    )
    counting.commit()
    variant = keep(counting, env, "{'factor': 1}")
    pipeline = f"pipelines/toy/count/{variant}/dvc.yaml"
    call(counting, env, "dvc", "repro", pipeline)
    before = (counting / f"runs/toy/count/{variant}/double/stage.json").read_text()
    for text, same in (("1.0", True), ("true", False)):
        (counting / "params.yaml").write_text(
            f"toy:\n  count:\n    {variant}: {{factor: {text}}}\n"
        )
        command = [str(Path(sys.executable).with_name("dvc")), "repro", pipeline]
        done = subprocess.run(
            command, cwd=counting.root, env=dict(env), capture_output=True, text=True
        )
        if same:  # the setting's type reads 1.0 as 1: the same settings, the same results
            assert done.returncode == 0, done.stderr
            continue
        assert done.returncode != 0, done.stdout
        assert "these settings belong to variant 'tiny-" in done.stderr
        assert f"not '{variant}'; rename it" in done.stderr
    assert (counting / f"runs/toy/count/{variant}/double/stage.json").read_text() == before


def test_a_link_to_a_folder_below_data_is_refused(counting: "Project", tmp_path: Path) -> None:
    from stillhouse_flows.data.pinned import check_links

    (tmp_path / "elsewhere").mkdir()
    check_links(counting / "data", ["a"])
    (counting / "data/a/more").symlink_to(tmp_path / "elsewhere")
    check_links(counting / "data", ["b"])
    told = r"^.*/data/a/more is a link to a folder, which DVC does not follow.*stillhouse data add$"
    for paths in (["a"], ["a/"], [""]):
        with pytest.raises(BadData, match=told):
            check_links(counting / "data", paths)


def test_a_recipe_has_no_stage_of_the_name_of_ours() -> None:
    from stillhouse.recipe import Recipe
    from stillhouse.stages.make import Make
    from stillhouse_flows.stages.outside import check_free

    stage = Make(name="inputs", make=print, inputs={"file": "data:x"}, ports=("numbers",))  # type: ignore[arg-type]
    recipe = Recipe(name="x", reference="none", stages=[stage])
    with pytest.raises(BadRecipe, match="recipe 'x': 'inputs' is DVC's stage of a flow"):
        check_free(recipe)


def test_an_input_that_changed_since_it_was_noted_is_named(tmp_path: Path) -> None:
    from stillhouse.inputs import outside
    from stillhouse_flows.stages.outside import note_of, stale

    outer, root = tmp_path / "outer.txt", tmp_path / "project"
    outer.write_text("1\n")
    ref = f"file:{outer}"
    note = root / "runs/toy/count/tiny" / note_of(ref)
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"ref": ref, "digest": outside(ref, root).digest}))
    other = root / "data/inputs/labels.json"
    other.parent.mkdir(parents=True)
    other.write_text("[1]")
    files = [note, note.with_name("settings.json"), other, note.with_name("gone.json")]
    assert stale(root, files) == []
    outer.write_text("other\n")
    assert stale(root, files) == [ref]
