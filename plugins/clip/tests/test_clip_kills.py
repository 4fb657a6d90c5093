"""Stages ended by SIGKILL in the text bank, the teacher cache and stage 2, in a process of their
own, go on where they were, to the same bytes.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillhouse.cli.target import Target, make_target
from stillhouse.recipe import Event
from stillhouse.runs import finished, run_stage
from stillhouse.testing.killing import take_over
from stillhouse_clip.objectives.vlm_ood import unit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = (
    "students=scratch,map,map-aligned",
    *("teacher_steps=10", "distill_steps=4", "align_steps=6", "scratch_steps=10"),
    "lacking_steps=6",
)


def before(target: Target, name: str) -> list[str]:
    """The stages that a stage needs, in order."""
    needed, left = set[str](), [name]
    while left:
        stage = target.recipe.stage(left.pop())
        left += [each for each in target.recipe.upstream(stage) if each not in needed]
        needed |= set(target.recipe.upstream(stage))
    return [stage.name for stage in target.recipe.stages if stage.name in needed]


def killed(
    recipe: str,
    given: Sequence[str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> tuple[list[str], dict[str, object]]:
    """What a stage of a recipe at tiny says after a SIGKILL at the first event that begins with
    `at`, and its record; asserts that its bytes are those of a run that nobody killed.
    """
    target = make_target(recipe, "tiny", given)
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    whole = replace(target.runs(), root=tmp_path / "whole", checkpoint_steps=3)
    stage = target.recipe.stage(name)
    for each in (*before(target, name), name):
        run_stage(target.recipe, target.recipe.stage(each), whole)
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "other-home"))  # no cache serves it
    again = replace(whole, root=tmp_path / "again")
    for each in before(target, name):
        take_over(target.recipe, target.recipe.stage(each), again, whole)
    code = "import sys, test_clip_kills as here; here.run_and_die(*sys.argv[1:])"
    ran = subprocess.run(
        [sys.executable, "-c", code, recipe, name, str(again.root), at, *given],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert finished(stage, again) is None
    events: list[Event] = []
    run_stage(target.recipe, stage, replace(again, observe=events.append))
    one, other = finished(stage, whole), finished(stage, again)
    assert one is not None
    assert other is not None
    assert one.key == other.key
    for port, artifact in one.outputs.items():
        assert other.outputs[port].digest == artifact.digest, f"{name}.{port}"
    record = json.loads((again.folder / f"{name}.run.json").read_text())
    return [event.text for event in events], record


def run_and_die(recipe: str, name: str, root: str, at: str, *given: str) -> None:
    """Run one stage and end this process by SIGKILL at the first event that begins with `at`."""

    def observe(event: Event) -> None:
        if event.text.startswith(at):
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)  # as conftest.py has it: sums in one order
    target = make_target(recipe, "tiny", given)
    runs = replace(target.runs(), root=Path(root), checkpoint_steps=3, observe=observe)
    run_stage(target.recipe, target.recipe.stage(name), runs)


def test_the_text_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []

    def counted(rows: Tensor) -> Tensor:
        computed.append(len(rows))
        return unit(rows)

    monkeypatch.setattr("stillhouse_clip.banks.unit", counted)
    given = ("teacher_steps=4",)
    killed("clip/vlm_ood", given, "bank-described", tmp_path, monkeypatch, at="texts")
    # 120 classes, 64 at a time: whole; behind the part that the killed process kept, the rest
    assert computed == [64, 56, 56]


def test_the_teacher_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = "teacher cache of"
    _, record = killed("clip/dc_clip", SMALL, "map-image-0", tmp_path, monkeypatch, at=at)
    measured = record["measured"]
    assert isinstance(measured, dict)
    cache = measured["teacher_cache"]["teacher"]
    assert cache["reused_rows"] > 0


def test_stage_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = "checkpoint"
    said, record = killed("clip/dc_clip", SMALL, "map-aligned-0", tmp_path, monkeypatch, at=at)
    assert "resumed at step 3" in said
    assert record["resumed_at"] == 3
