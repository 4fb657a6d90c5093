"""What changes while a stage runs: nothing it left is kept under the key of what it began with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from stillhouse.data.data import Columns
from stillhouse.errors import StaleInput
from stillhouse.recipe import Recipe
from stillhouse.runs import Runs, finished, run_recipe
from stillhouse.stages import Make


@dataclass(frozen=True, kw_only=True)
class ReadThenWrite:
    """A maker during which somebody writes `text` into a file."""

    file: str
    text: str = ""

    def __call__(self, inputs: Mapping[str, Any], *, rng: Generator) -> Mapping[str, Columns]:
        labels = torch.tensor([len(p.read_text()) for p in sorted(inputs["source"].iterdir())])
        if self.text:
            Path(self.file).write_text(self.text)
        return {"train": {"labels": labels}}


def reading(make: ReadThenWrite, root: Path) -> tuple[Recipe, Runs]:
    stage = Make(name="read", make=make, inputs={"source": "data:set"}, ports=("train",))
    recipe = Recipe(name="reading", reference="", stages=(stage,), rows={}, baseline="")
    return recipe, Runs(root=root, recipe="none/reading", variant="v")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "data" / "set" / "1.txt"
    file.parent.mkdir(parents=True)
    file.write_text("one")
    return file


def test_data_that_change_while_a_stage_reads_them_are_refused(tmp_path: Path, file: Path) -> None:
    recipe, runs = reading(ReadThenWrite(file=str(file), text="two"), tmp_path)
    with pytest.raises(
        StaleInput,
        match=r"stage 'read': data:set changed while it ran; what it left is not kept\. Run it again",
    ):
        run_recipe(recipe, runs)
    assert finished(recipe.stages[0], runs) is None
    assert [p.name for p in runs.folder.iterdir()] == [".locks"]
    # the same bytes written again are no change
    run_recipe(recipe, runs)
    assert finished(recipe.stages[0], runs) is not None


def test_data_that_vanish_meanwhile_are_refused_too(tmp_path: Path, file: Path) -> None:
    new = file.with_name("2.txt")
    recipe, runs = reading(ReadThenWrite(file=str(new), text="a new file"), tmp_path)
    with pytest.raises(StaleInput, match="data:set changed while it ran"):
        run_recipe(recipe, runs)


def test_code_that_changes_while_a_stage_runs_is_refused(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "stale-0.1.dist-info").mkdir(parents=True)
    (site / "stale-0.1.dist-info" / "METADATA").write_text("Name: stale\nVersion: 0.1\n")
    (site / "stale-0.1.dist-info" / "entry_points.txt").write_text(
        "[stillhouse.domains]\nstale = stale_plugin:domain\n"
    )
    source = site / "stale_plugin.py"
    source.write_text("domain = None\n")
    monkeypatch.syspath_prepend(str(site))
    recipe, _ = reading(ReadThenWrite(file=str(source), text="domain = 1\n"), tmp_path)
    runs = Runs(root=tmp_path, recipe="stale/reading", variant="v")
    with pytest.raises(StaleInput, match=r"stage 'read': stale_plugin.py changed while it ran"):
        run_recipe(recipe, runs)
    assert finished(recipe.stages[0], runs) is None
