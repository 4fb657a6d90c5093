"""The domain suite finds the faults it is there for."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.cli.target import Target, make_target
from stillhouse.errors import MissingData, UnknownName
from stillhouse.recipe import Event
from stillhouse.runs import finished, run_recipe, run_stage
from stillhouse.testing import DomainSuite
from stillhouse.testing.digests import digests_elsewhere, recipe_digests
from stillhouse.testing.killing import KilledError, die_at_checkpoint, kill_and_resume
from stillhouse.testing.suite import records

SITE = Path(__file__).parents[1] / "site"  # the plugin `toy`
FAULTY = '''
"""A plugin with a recipe that throws dice, and one whose names come from a salted hash."""

import os

import torch
from stillhouse.domain import Domain
from stillhouse.recipe import Recipe
from stillhouse.settings import Settings
from stillhouse.stages.make import Make

recipes = {"dice": "faulty_plugin:dice", "salted": "faulty_plugin:salted"}
domain = Domain(name="faulty", summary="Faults", recipes=recipes)


def throw(inputs, *, work):
    return {"train": {"dice": torch.tensor(list(os.urandom(16)))}}


def dice(settings: Settings) -> Recipe:
    return one("data")


def salted(settings: Settings) -> Recipe:
    return one(f"data-{hash('salted')}")


def one(name: str) -> Recipe:
    make = Make(name=name, make=throw, inputs={}, ports=("train",))
    return Recipe(name="faulty", reference="", stages=(make,))
'''


@pytest.fixture(autouse=True)
def _plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plugins `toy` and `faulty`, in sight of this process and its children, and a project."""
    info = tmp_path / "faulty-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 0.1\n")
    points = "[stillhouse.domains]\nfaulty = faulty_plugin:domain\n"
    (info / "entry_points.txt").write_text(points)
    (tmp_path / "faulty_plugin.py").write_text(FAULTY)
    for folder in (str(SITE), str(tmp_path)):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(SITE), str(tmp_path))))
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path / "project"))
    yield
    sys.modules.pop("faulty_plugin", None)


def run(name: str) -> Target:
    target = make_target(name)
    run_recipe(target.recipe, target.runs())
    return target


def test_a_stage_killed_and_resumed_leaves_what_an_unharmed_one_leaves(tmp_path) -> None:
    whole = run("toy/toy")
    again = replace(whole.runs(), root=tmp_path / "again")
    for stage in whole.recipe.stages:
        kill_and_resume(whole.recipe, stage, again, whole.runs())
    assert {stage.name for stage in whole.recipe.stages} < set(records(again))
    assert records(again) == records(whole.runs())


def test_a_training_dies_at_its_checkpoint_and_nothing_is_left_in_place() -> None:
    target = make_target("toy/toy")
    run_recipe(
        replace(target.recipe, stages=target.recipe.stages[:1], rows={}, method=""), target.runs()
    )
    teacher = target.recipe.stage("teacher")
    seen: list[Event] = []

    def watch(event: Event) -> None:
        seen.append(event)
        die_at_checkpoint(event)

    with pytest.raises(KilledError):
        run_stage(target.recipe, teacher, replace(target.runs(observe=watch), checkpoint_steps=10))
    assert (seen[-1].text, seen[-1].done) == ("checkpoint", 10)
    assert finished(teacher, target.runs()) is None


def test_dice_are_found(tmp_path, monkeypatch) -> None:
    with pytest.raises(AssertionError, match=r"data\.train"):
        DomainSuite().test_run_killed_in_every_kind_of_stage_gives_the_same_bytes(
            run("faulty/dice"), tmp_path / "again", monkeypatch
        )


def test_a_suite_with_assignments_is_that_of_those_settings() -> None:
    data = "data=builtin:stillhouse_toy:images"

    class Assigned(DomainSuite):
        domain = "toy"
        assignments = {"toy": [data, "steps=7"]}

    given = Assigned()._given("toy/toy")
    assert given == [data, "steps=7"]
    assert recipe_digests("toy/toy", given) != recipe_digests("toy/toy", [data])
    assert digests_elsewhere((("toy/toy", tuple(given)),)) == {
        "toy/toy": recipe_digests("toy/toy", given)
    }
    with pytest.raises(UnknownName, match="'stepz'"):
        recipe_digests("toy/toy", ["stepz=7"])


def test_a_salted_hash_is_found(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(AssertionError):
        DomainSuite().test_builds_and_hashes_alike_everywhere("faulty/salted", tmp_path_factory)


def test_a_recipe_without_a_model_to_export_is_found(tmp_path) -> None:
    with pytest.raises(MissingData, match="has no stage that leaves a model"):
        DomainSuite().test_exports_a_student_that_opens(run("faulty/dice"), tmp_path / "out")


SUBCLASSES = """
from stillhouse.testing import DomainSuite


class TestFaulty(DomainSuite):
    domain = "faulty"
    exempt = {
        "salted": "hashes are salted",
        "dice:test_run_killed_in_every_kind_of_stage_gives_the_same_bytes": "dice are thrown",
        "dice:test_reports_every_row": "there is none",
        "dice:test_exports_a_student_that_opens": "there is none",
    }


class TestSlow(DomainSuite):
    domain = "faulty"
    exempt = {"salted": "hashes are salted"}
    slow = ("dice",)


class TestNothing(DomainSuite):
    domain = "nothing"
"""


@pytest.mark.slow
def test_a_subclass_is_all_that_a_plugin_needs(tmp_path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_domain.py").write_text(SUBCLASSES)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-ra",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    out = done.stdout
    assert "SKIPPED [1]" in out
    assert (
        "dice:test_run_killed_in_every_kind_of_stage_gives_the_same_bytes: dice are thrown" in out
    )
    failed = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert all("TestNothing" in line for line in failed)
    assert "domain 'nothing': None" in out
    # of TestFaulty: loads, hashes alike, says what settings mean, refuses bad ones, types no number
    # into notes, is not run again; of TestSlow the first five, which need no run
    assert " 11 passed, " in out.splitlines()[-1]
