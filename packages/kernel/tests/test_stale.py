"""What changes while a stage runs: nothing it left is kept under the key of what it began with."""

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.artifact import Built, Model, save_model
from stillhouse.code import stage_code
from stillhouse.code.sources import snapshot
from stillhouse.data.data import Columns
from stillhouse.digest import path_digest
from stillhouse.errors import BadRecipe, StaleInput
from stillhouse.recipe import Recipe
from stillhouse.runs import Runs, finished, run_recipe, stage_key
from stillhouse.stages import Make
from stillhouse.trusted import builder
from stillhouse.work import Work


@dataclass(frozen=True, kw_only=True)
class ReadThenWrite:
    """A maker during which somebody writes `text` into a file; it then imports `load`."""

    file: str
    text: str = ""
    load: str = ""

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        labels = torch.tensor([len(p.read_text()) for p in sorted(inputs["source"].iterdir())])
        if self.text:
            Path(self.file).write_text(self.text)
        if self.load:
            importlib.import_module(self.load)
        return {"train": {"labels": labels}}


def reading(make: ReadThenWrite, root: Path) -> tuple[Recipe, Runs]:
    stage = Make(name="read", make=make, inputs={"source": "data:set"}, ports=("train",))
    recipe = Recipe(name="reading", reference="", stages=(stage,))
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
    snapshot.cache_clear()
    yield package
    for name in [name for name in sys.modules if name.startswith("stale_plugin")]:
        del sys.modules[name]
    snapshot.cache_clear()


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
    importlib.import_module("stale_plugin.late")
    loaded = ReadThenWrite(
        file=str(plugin / "late.py"), text="number = 3\n", load="stale_plugin.late"
    )
    recipe, _ = reading(loaded, tmp_path)
    runs = Runs(root=tmp_path, recipe="stale/reading", variant="v")
    before = stage_code(recipe, recipe.stages[0])
    run_recipe(recipe, runs)
    done = finished(recipe.stages[0], runs)
    assert done is not None
    digests = {"source": path_digest(file.parent)}
    assert done.key == stage_key(recipe.stages[0], digests, before)


def test_only_an_edit_of_code_that_a_stage_reaches_runs_it_again(
    tmp_path: Path, file: Path, plugin: Path
) -> None:
    (plugin / "reader.py").write_text(READER)
    module = importlib.import_module("stale_plugin.reader")
    stage = Make(name="read", make=module.read, inputs={"source": "data:set"}, ports=("train",))
    recipe = Recipe(name="reading", reference="", stages=(stage,))
    told: list[str] = []
    runs = Runs(
        root=tmp_path, recipe="stale/reading", variant="v", observe=lambda e: told.append(e.text)
    )
    edits = {
        READER: "done",
        READER.replace("Read it.", "Read all."): "up to date",
        READER.replace("{1}", "{2}"): "done",
    }
    for text, ending in edits.items():
        (plugin / "reader.py").write_text(text)
        snapshot.cache_clear()  # as a new process
        run_recipe(recipe, runs)
        assert told.pop() == ending


READER = '''\
import torch


def read(inputs, *, work):
    """Read it."""
    return {"train": {"labels": torch.tensor([*{1}])}}
'''


@dataclass(frozen=True, kw_only=True)
class BuildsWhatItReads:
    """A maker that has the kernel call a builder whose name stands in its data."""

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        net = builder((inputs["source"] / "1.txt").read_text())()
        return {"train": {"labels": torch.zeros(len(list(net.parameters())))}}


def test_a_builder_that_the_key_does_not_cover_is_refused(
    tmp_path: Path, file: Path, plugin: Path
) -> None:
    (plugin / "nets.py").write_text("from torch import nn\n\n\nclass Net(nn.Module):\n    pass\n")
    snapshot.cache_clear()
    file.write_text("stale_plugin.nets:Net")
    stage = Make(
        name="read", make=BuildsWhatItReads(), inputs={"source": "data:set"}, ports=("train",)
    )
    recipe = Recipe(name="reading", reference="", stages=(stage,))
    runs = Runs(root=tmp_path, recipe="stale/reading", variant="v")
    with pytest.raises(BadRecipe) as told:
        run_recipe(recipe, runs)
    assert str(told.value) == (
        "stage 'read': 'stale_plugin.nets:Net' is named in what it reads, but nothing in the stage "
        "leads to it, so that its key would not see a change of it; import stale_plugin.nets where "
        "the name is read"
    )
    # outside a stage nothing has a key
    assert builder("stale_plugin.nets:Net").__name__ == "Net"


def test_builders_of_a_model_from_outside_are_in_the_key_and_in_the_record(
    tmp_path: Path, file: Path, plugin: Path
) -> None:
    (plugin / "nets.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.a = nn.Linear(1, 1)\n"
    )
    snapshot.cache_clear()
    net = importlib.import_module("stale_plugin.nets").Net
    save_model(tmp_path / "given", Built(spec=Model(build=net), module=net()))
    stage = Make(name="count", make=parameters, inputs={"model": "file:given"}, ports=("train",))
    recipe = Recipe(name="reading", reference="", stages=(stage,))
    runs = Runs(root=tmp_path, recipe="stale/reading", variant="v")
    run_recipe(recipe, runs)
    record = json.loads((runs.folder / "count" / "stage.json").read_text())
    assert record["builds"] == ["stale_plugin.nets"]
    digests = {"model": path_digest(tmp_path / "given")}
    assert record["key"] == stage_key(stage, digests, stage_code(recipe, stage, record["builds"]))
    assert record["key"] != stage_key(stage, digests, stage_code(recipe, stage))


def parameters(inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
    return {"train": {"labels": torch.zeros(len(list(inputs["model"].module.parameters())))}}
