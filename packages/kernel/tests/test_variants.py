"""What variants of a recipe have in common is run once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from stillhouse.cli.planning import UP_TO_DATE, planned
from stillhouse.cli.target import Target
from stillhouse.recipe import Event, Recipe
from stillhouse.runs import Runs, finished, run_recipe, run_stage
from stillhouse.settings import make_recipe, make_settings

from .toys import SITE

NEW = {"student-1", "plain-1", "student-1-scores", "plain-1-scores"}


def toy(**settings: int) -> Recipe:
    return make_recipe("toy/toy", make_settings("toy/toy", "tiny", settings))


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """A finished run of one seed."""
    monkeypatch.syspath_prepend(str(SITE))
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    runs = Runs(root=tmp_path, recipe="toy/toy", variant="one")
    run_recipe(toy(), runs)
    return runs


def events_of(recipe: Recipe, runs: Runs) -> dict[str, list[str]]:
    """What each stage says, but its steps."""
    said: dict[str, list[str]] = {}

    def observe(event: Event) -> None:
        if event.text:
            said.setdefault(event.stage, []).append(event.text)

    run_recipe(recipe, replace(runs, observe=observe))
    return said


def test_a_variant_with_a_seed_more_runs_that_seed_alone(one: Runs) -> None:
    recipe, two = toy(seeds=2), replace(one, variant="two")
    said = events_of(recipe, two)
    taken = {
        stage for stage, texts in said.items() if texts == ["taken from one, where it is the same"]
    }
    assert taken == {stage.name for stage in recipe.stages} - NEW
    for name in taken:
        ours, theirs = (finished(recipe.stage(name), runs) for runs in (two, one))
        assert ours is not None
        assert theirs is not None
        assert ours.key == theirs.key
        assert {p: a.digest for p, a in ours.outputs.items()} == {
            p: a.digest for p, a in theirs.outputs.items()
        }
        beside = {f.name: f.read_text() for f in one.folder.glob(f"{name}.*")}
        assert beside == {f.name: f.read_text() for f in two.folder.glob(f"{name}.*")}
    files = [runs.folder / "teacher/teacher/model.safetensors" for runs in (one, two)]
    assert files[0].stat().st_ino == files[1].stat().st_ino  # no bytes twice
    assert set(events_of(recipe, two)["teacher"]) == {"up to date"}
    files[0].unlink()  # the other variant may go
    assert finished(recipe.stage("teacher"), two) is not None
    assert files[1].is_file()


def test_a_dry_run_counts_what_would_be_taken(one: Runs) -> None:
    settings = make_settings("toy/toy", "tiny", {"seeds": 2})
    recipe = make_recipe("toy/toy", settings)
    target = Target(name="toy/toy", settings=settings, recipe=recipe, root=one.root)
    assert {each.stage for each in planned(target) if each.state != UP_TO_DATE} == NEW
    assert not target.runs().folder.exists()


def test_what_is_damaged_or_in_use_is_run_anew(one: Runs) -> None:
    recipe, two = toy(), replace(one, variant="two")
    file = one.folder / "teacher/teacher/model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with FileLock(one.folder / ".locks/data.lock"):
        said: list[str] = []
        observing = replace(two, observe=lambda event: said.append(event.text))
        run_stage(recipe, recipe.stage("data"), observing)
        assert said == ["done"]
    said = events_of(recipe, two)["teacher"]
    assert said[-1] == "done"
    # the same key, so the same bytes
    (record,) = (json.loads((two.folder / "teacher/stage.json").read_text()),)
    assert record["key"] == json.loads((one.folder / "teacher/stage.json").read_text())["key"]
    (one.folder / "student-0/stage.json").write_text("{")
    (two.folder / "student-0/stage.json").unlink()
    assert events_of(recipe, two)["student-0"][-1] == "done"
