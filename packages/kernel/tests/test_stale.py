"""What changes while a stage runs: nothing it left is kept under the key of what it began with."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from stillhouse import digest
from stillhouse.data.data import Columns
from stillhouse.digest import code_version, path_digest
from stillhouse.errors import StaleInput
from stillhouse.recipe import Recipe
from stillhouse.runs import Runs, code_of, finished, run_recipe, stage_key
from stillhouse.stages import Make


@dataclass(frozen=True, kw_only=True)
class ReadThenWrite:
    """A maker during which somebody writes `text` into a file; it then imports `load`."""

    file: str
    text: str = ""
    load: str = ""

    def __call__(self, inputs: Mapping[str, Any], *, rng: Generator) -> Mapping[str, Columns]:
        labels = torch.tensor([len(p.read_text()) for p in sorted(inputs["source"].iterdir())])
        if self.text:
            Path(self.file).write_text(self.text)
        if self.load:
            importlib.import_module(self.load)
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


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package that declares the domain "stale"; `late` is not imported yet."""
    site = tmp_path / "site"
    info = site / "stale-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: stale\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[stillhouse.domains]\nstale = stale_plugin:domain\n")
    package = site / "stale_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("domain = None\n")
    (package / "late.py").write_text("number = 1\n")
    monkeypatch.syspath_prepend(str(site))
    yield package
    for name in ("stale_plugin", "stale_plugin.late"):
        sys.modules.pop(name, None)
    code_version.cache_clear()
    digest._code.cache_clear()


def test_code_that_changes_before_it_is_loaded_is_refused(
    tmp_path: Path, file: Path, plugin: Path
) -> None:
    late = ReadThenWrite(
        file=str(plugin / "late.py"), text="number = 2222\n", load="stale_plugin.late"
    )
    recipe, _ = reading(late, tmp_path)
    runs = Runs(root=tmp_path, recipe="stale/reading", variant="v")
    with pytest.raises(StaleInput, match=r"stage 'read': stale_plugin/late.py changed while it"):
        run_recipe(recipe, runs)
    assert finished(recipe.stages[0], runs) is None


def test_code_that_changes_after_it_was_loaded_is_not_what_ran(
    tmp_path: Path, file: Path, plugin: Path
) -> None:
    loaded = ReadThenWrite(file=str(plugin / "__init__.py"), text="domain = 1\n")
    recipe, _ = reading(loaded, tmp_path)
    runs = Runs(root=tmp_path, recipe="stale/reading", variant="v")
    before = code_of(runs.recipe)
    run_recipe(recipe, runs)
    done = finished(recipe.stages[0], runs)
    assert done is not None
    digests = {"source": path_digest(file.parent)}
    assert done.key == stage_key(recipe.stages[0], digests, before)
