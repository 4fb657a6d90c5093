"""A clock of the wall that jumps while a run goes: an injected time source."""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stillhouse.runs import Runs, run_stage
from stillhouse.settings import make_recipe, make_settings
from stillhouse_flows.workspace.worktree import prune, workspace

if TYPE_CHECKING:
    from conftest import Project

YEAR = 365 * 86400.0


class Jumping:
    """A clock that jumps after somebody has looked at it once."""

    def __init__(self, jump: float) -> None:
        self.true, self.jump, self.seen = time.time, jump, 0

    def __call__(self) -> float:
        self.seen += 1
        return self.true() + (self.jump if self.seen > 1 else 0)


@pytest.mark.parametrize("jump", [-YEAR, YEAR], ids=["back", "forth"])
def test_a_stage_takes_the_time_that_passed(
    counting: "Project", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    monkeypatch.syspath_prepend(str(counting / "src"))
    recipe = make_recipe("toy/slope", make_settings("toy/slope", "tiny", {"steps": 3}))
    left: dict[str, str] = {}
    for label in ("still", "jumping"):
        runs = Runs(root=tmp_path / label, recipe="toy/slope", variant="tiny")
        (tmp_path / label / "data" / "a").mkdir(parents=True)
        (tmp_path / label / "data/a/numbers.txt").write_text("1\n2\n")
        monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / f"home-{label}"))
        run_stage(recipe, recipe.stage("rows"), runs)
        with monkeypatch.context() as patch:
            if label == "jumping":
                patch.setattr(time, "time", Jumping(jump))
            run_stage(recipe, recipe.stage("student"), runs)
        record = json.loads((runs.folder / "student.run.json").read_text())
        assert 0 <= record["seconds"] < 300
        left[label] = (runs.folder / "student" / "stage.json").read_text()
    assert left["still"] == left["jumping"]


def test_a_workspace_from_the_future_takes_no_running_one_away(
    toy: "Project", own_home: Path
) -> None:
    with workspace(toy.root, "old") as old:
        pass
    future = time.time() + YEAR
    os.utime(old.folder, (future, future))
    with workspace(toy.root, "new") as new:
        prune(new.folder.parent, keep=1)
        assert new.folder.is_dir()
