"""JSON files of another shape: one line where they are read, never a traceback or a wrong value."""

import json
from pathlib import Path

import pytest
import torch

from stillhouse.checkpoint import last_checkpoint, save_checkpoint
from stillhouse.cli.target import Target
from stillhouse.data.shards import load_data, save_data
from stillhouse.errors import CorruptArtifact
from stillhouse.json_files import brief, read_json
from stillhouse.runs import Runs, finished, run_stage
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages.evaluate import load_scores

from .toys import SITE

OTHERS = ("[]", "3", "null", '"text"', "{", "", "[" * 9999, '{"a": 1}')


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))


def one_line(error: Exception, file: Path, redo: str) -> None:
    text = str(error)
    assert text.startswith(f"{file}: ")
    assert redo in text
    assert "\n" not in text
    assert len(text) < 250 + 2 * len(str(file))


def test_records_of_a_run(tmp_path: Path) -> None:
    settings = make_settings("toy/toy", "tiny")
    recipe = make_recipe("toy/toy", settings)
    runs = Runs(root=tmp_path, recipe="toy/toy", variant="tiny")
    run_stage(recipe, recipe.stage("data"), runs)
    stage, beside = runs.folder / "data" / "stage.json", runs.folder / "data.run.json"
    target = Target(name="toy/toy", settings=settings, recipe=recipe, root=tmp_path)
    assert (target.seconds("data") or 0) >= 0
    kept = json.loads(stage.read_text())
    outputs = ({"train": 3}, {"train": {**kept["outputs"]["train"], "kind": "folder"}}, [])
    for text in (*OTHERS, *(json.dumps({**kept, "outputs": other}) for other in outputs)):
        stage.write_text(text)
        beside.write_text(text if text in OTHERS else '{"seconds": "many"}')
        with pytest.raises(CorruptArtifact) as caught:
            finished(recipe.stage("data"), runs)
        one_line(caught.value, stage, f"delete the folder {stage.parent} and run again")
        with pytest.raises(CorruptArtifact) as caught:
            target.seconds("data")
        one_line(caught.value, beside, "run the stage again")


def test_schemas_and_scores(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    save_data(folder, {"x": torch.zeros(3, 2)})
    assert len(load_data(folder)) == 3
    kept = json.loads((folder / "data.json").read_text())
    changes = (
        {"columns": []},
        {"columns": {}},
        {"columns": {"x": 1}},
        {"shards": 0},
        {"shards": "1"},
    )
    for text in (*OTHERS, *(json.dumps({**kept, **change}) for change in changes)):
        (folder / "data.json").write_text(text)
        with pytest.raises(CorruptArtifact) as caught:
            load_data(folder)
        one_line(caught.value, folder / "data.json", "run the stage that made it again")
    for text in OTHERS[:-1]:
        (folder / "scores.json").write_text(text)
        with pytest.raises(CorruptArtifact) as caught:
            load_scores(folder)
        one_line(caught.value, folder / "scores.json", "run the stage that made it again")


def test_a_changed_checkpoint_is_none(tmp_path: Path) -> None:
    """An older one, or step 0, serves: the fault does not come back at every run."""
    record = {"optimizers": {"main": {"state": {}}}, "nproc": 1}
    save_checkpoint(tmp_path, 3, {"a": torch.ones(2)}, record)
    file = tmp_path / "step-000000003" / "state.json"
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found[1].items() >= record.items()
    kept = json.loads(file.read_text())
    without = json.loads(kept["record"])
    del without["nproc"]
    others = (
        {**kept, "record": json.dumps(without)},
        {**kept, "record": 3},
        {**kept, "digest": ""},
    )
    for text in (*OTHERS, *map(json.dumps, others)):
        file.write_text(text)
        assert last_checkpoint(tmp_path) is None, text


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match=r"none.json: cannot be read \(No such file.*; look"):
        read_json(tmp_path / "none.json", dict, redo="look")
    (tmp_path / "a.json").write_bytes(b"\xff{}")
    with pytest.raises(CorruptArtifact, match=r"a.json: not JSON \("):
        read_json(tmp_path / "a.json", dict, redo="look")


def test_a_value_is_shown_in_brief() -> None:
    bomb: list[object] = ["x"]
    for _ in range(40):
        bomb = [bomb] * 9
    assert len(brief(bomb)) < 200
    assert len(brief({str(i): "x" * 999 for i in range(99)})) < 400
    assert brief("a\nb") == r"'a\nb'"
    assert brief(b"\x1b[31m") == r"b'\x1b[31m'"
