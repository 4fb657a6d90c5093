"""Runs: skipping, resuming, two processes, damage, a kill in the middle, and what the file system refuses."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stillhouse.artifact import Artifact, load_model, save_model
from stillhouse.data.shards import save_data
from stillhouse.errors import (
    ContractError,
    CorruptArtifact,
    MissingData,
    StorageError,
    UnknownName,
)
from stillhouse.files import writing
from stillhouse.recipe import BaseStage, Context, Event, Recipe
from stillhouse.runs import Runs, finished, home, project_root, run_recipe, run_stage
from stillhouse.settings import make_recipe, make_settings

from .toys import SITE, toy_models

WORKER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from stillhouse.runs import Runs, run_recipe, run_stage
from stillhouse.settings import make_recipe, make_settings
root, stage, steps, cache, slow = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "cache", float(sys.argv[5])
import time
def observe(event):
    print(event.stage, event.text, event.done, flush=True)
    if event.stage == stage:
        time.sleep(slow)
settings = make_settings("toy/toy", "tiny", {"steps": steps, "cache": cache})
recipe = make_recipe("toy/toy", settings)
runs = Runs(root=root, recipe="toy/toy", variant="v", observe=observe, checkpoint_steps=10)
for name in ("data", "teacher", stage):
    run_stage(recipe, recipe.stage(name), runs)
"""


@pytest.fixture(autouse=True)
def _toy_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    monkeypatch.setenv("PYTHONPATH", str(SITE))


def toy(root: Path, observe: Any = lambda event: None, **settings: Any) -> tuple[Any, Runs]:
    recipe = make_recipe("toy/toy", make_settings("toy/toy", "tiny", settings))
    return recipe, Runs(root=root, recipe="toy/toy", variant="v", observe=observe)


@dataclass(frozen=True, kw_only=True)
class Older(BaseStage):
    """A stage that gives its outputs as they are."""

    name: str = "older"
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    seed: int = 0

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("data",)

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Any:
        return {"data": save_data(ctx.out / "data", {"x": torch.ones(2)})}


def test_what_a_stage_returns_is_looked_at(tmp_path: Path) -> None:
    stage = Older()
    recipe = Recipe(name="toy/toy", reference="none", stages=(stage,), rows={})
    runs = Runs(root=tmp_path, recipe="toy/toy", variant="v")
    with pytest.raises(ContractError, match=r"'older': Older.run returned a dict; return Result\("):
        run_stage(recipe, stage, runs)
    assert finished(stage, runs) is None
    assert stage["data"] == "older.data"
    assert (stage.resource, stage.distributed) == ("cpu", False)
    with pytest.raises(UnknownName, match="stage 'older': unknown output 'date'. Did you mean"):
        stage["date"]


def test_a_recipe_runs_once_and_is_skipped_after(tmp_path: Path) -> None:
    seen: list[Event] = []
    recipe, runs = toy(tmp_path, seen.append)
    run_recipe(recipe, runs)
    assert not any(event.text == "up to date" for event in seen)
    seen.clear()
    run_recipe(recipe, runs)
    assert [event.text for event in seen] == ["up to date"] * len(recipe.stages)
    record = json.loads((runs.folder / "student-0" / "stage.json").read_text())
    assert record["kind"] == "Train"
    assert record["inputs"]["teacher"]["ref"] == "teacher.teacher"
    measured = json.loads((runs.folder / "student-0.run.json").read_text())
    assert measured["measured"]["steps"] == 30
    assert (runs.folder / "student-0.curves.tsv").read_text().splitlines()[
        0
    ] == "step\tloss\tce\tmatch"
    scores = json.loads((runs.folder / "student-0-scores.scores.json").read_text())
    assert set(scores) == {
        "accuracy",
        "nll_loss",
        "calibration_error",
        "teacher_agreement",
        "parameters",
        "macs",
        "size_mib",
    }


def test_a_new_seed_runs_only_that_seed(tmp_path: Path) -> None:
    recipe, runs = toy(tmp_path)
    run_recipe(recipe, runs)
    seen: list[Event] = []
    recipe, runs = toy(tmp_path, seen.append, seeds=2)
    run_recipe(recipe, runs)
    fresh = {e.stage for e in seen} - {e.stage for e in seen if e.text == "up to date"}
    assert fresh == {"student-1", "plain-1", "student-1-scores", "plain-1-scores"}


def test_a_changed_setting_runs_what_depends_on_it(tmp_path: Path) -> None:
    recipe, runs = toy(tmp_path)
    run_recipe(recipe, runs)
    seen: list[Event] = []
    recipe, runs = toy(tmp_path, seen.append, width=6)
    run_recipe(recipe, runs)
    assert {e.stage for e in seen if e.text == "up to date"} == {"data", "teacher"}


def test_damage_is_found_where_it_is_read(tmp_path: Path) -> None:
    recipe, runs = toy(tmp_path)
    run_recipe(recipe, runs)
    file = runs.folder / "teacher" / "teacher" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(
        CorruptArtifact,
        match=r"its bytes differ from the digest in stage.json; delete .*teacher and run",
    ):
        run_stage(recipe, recipe.stage("student-0"), runs)
    (runs.folder / "teacher" / "stage.json").write_text("{")
    with pytest.raises(CorruptArtifact, match=r"stage.json: not JSON .* delete the folder"):
        finished(recipe.stage("teacher"), runs)


def test_an_input_that_has_not_run_is_named(tmp_path: Path) -> None:
    recipe, runs = toy(tmp_path)
    with pytest.raises(
        MissingData, match="'data.train': stage 'data' has not run. Run: stillhouse run toy/toy@v"
    ):
        run_stage(recipe, recipe.stage("teacher"), runs)


def test_two_at_once_run_a_stage_once(tmp_path: Path) -> None:
    seen: list[str] = []
    recipe, runs = toy(tmp_path, lambda event: seen.append(event.text))
    workers = [
        threading.Thread(target=run_stage, args=(recipe, recipe.stage("data"), runs))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    said = {"done", "up to date", "waits for another process that runs this stage"}
    assert {"done", "up to date"} <= set(seen) <= said
    assert seen.count("done") == 1


def worker(
    root: Path, stage: str, *, cache: bool, slow: float, steps: int = 30, nproc: int = 1
) -> list[str]:
    script = root / "worker.py"
    root.mkdir(parents=True, exist_ok=True)
    script.write_text(WORKER)
    launch = [sys.executable]
    if nproc > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
    return [
        *launch,
        str(script),
        str(root),
        stage,
        str(steps),
        "cache" if cache else "no",
        str(slow),
    ]


def run_whole(root: Path, **given: Any) -> dict[str, torch.Tensor]:
    subprocess.run(
        worker(root, "student-0", slow=0, **given), check=True, capture_output=True, timeout=120
    )
    return load_file(str(root / "runs/toy/toy/v/student-0/student/model.safetensors"))


def kill_in_the_middle(root: Path, home: Path, **given: Any) -> None:
    """SIGKILL the whole process group once the student has written a checkpoint."""
    process = subprocess.Popen(
        worker(root, "student-0", slow=0.1, **given), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, env={**os.environ, "STILLHOUSE_HOME": str(home)}, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert any(line.startswith("student-0 checkpoint") for line in process.stdout), "it ended first"
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()
    assert not (root / "runs/toy/toy/v/student-0").exists()


@pytest.mark.parametrize(
    ("cache", "nproc"),
    [
        pytest.param(False, 1, id="online", marks=pytest.mark.slow),
        pytest.param(True, 1, id="cached", marks=pytest.mark.slow),
        pytest.param(False, 2, id="two-processes", marks=pytest.mark.slow),
    ],
)
def test_sigkill_and_again_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool, nproc: int
) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home-whole"))
    whole = run_whole(tmp_path / "whole", cache=cache, nproc=nproc)
    home = tmp_path / "home-killed"
    kill_in_the_middle(tmp_path / "killed", home, cache=cache, nproc=nproc)
    monkeypatch.setenv("STILLHOUSE_HOME", str(home))
    again = run_whole(tmp_path / "killed", cache=cache, nproc=nproc)
    record = json.loads((tmp_path / "killed/runs/toy/toy/v/student-0.run.json").read_text())
    assert record["resumed_at"] >= 10
    assert record["nproc"] == nproc
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not list(home.glob("checkpoints/*/step-*"))


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    # a tmpfs of 64 KiB in its own mount namespace; root ignores chmod, a mount does not
    code = """
import sys
from pathlib import Path
from stillhouse.runs import Runs, run_recipe
from stillhouse.settings import make_recipe, make_settings
from stillhouse.errors import StorageError
recipe = make_recipe("toy/toy", make_settings("toy/toy", "tiny"))
try:
    run_recipe(recipe, Runs(root=Path(sys.argv[1]), recipe="toy/toy", variant="v"))
except StorageError as error:
    print(error)
    sys.exit(2)
"""
    runs = tmp_path / "runs"
    runs.mkdir()
    for mount, message in (
        ("-t tmpfs -o size=64k tmpfs", "no space left on the device"),
        ("--bind -o ro {runs}", "read-only"),
    ):
        command = f"mount {mount.format(runs=runs)} {runs} && exec {sys.executable} -c '{code}' {tmp_path}"
        if "bind" in mount:
            command = command.replace(" && exec", f" && mount -o remount,ro,bind {runs} && exec")
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, timeout=120
        )
        if "unshare" in done.stderr or "mount:" in done.stderr:
            pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
        assert done.returncode == 2, done.stderr
        assert message in done.stdout
        assert len(done.stdout.strip().splitlines()) == 1


def test_a_write_that_fails_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, runs = toy(tmp_path)
    run_stage(recipe, recipe.stage("data"), runs)
    before = sorted(p.name for p in runs.folder.rglob("*"))

    def half_a_write() -> None:
        with writing(runs.folder / "data") as aside:
            (aside / "half").write_text("x")
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="data: no space left"):
        half_a_write()
    assert sorted(p.name for p in runs.folder.rglob("*")) == before


def test_a_model_is_read_as_it_was_saved(tmp_path: Path) -> None:
    from stillhouse.artifact import Built, Model

    from .toys import Net

    built = Built(spec=Model(build=Net, kwargs={"width": 12}), module=toy_models()["teacher"])
    save_model(tmp_path / "m", built)
    loaded = load_model(tmp_path / "m")
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.module.parameters(), built.module.parameters(), strict=True)
    )
    (tmp_path / "m" / "model.json").write_text(
        '{"build": "stillhouse_toy:Net", "kwargs": {"width": 3}}'
    )
    with pytest.raises(CorruptArtifact, match=r"model.safetensors does not fit model.json"):
        load_model(tmp_path / "m")


def test_where_things_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").touch()
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    assert project_root(inside) == tmp_path
    monkeypatch.setenv("STILLHOUSE_ROOT", str(inside))
    assert project_root(tmp_path) == inside
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "h"))
    assert home() == tmp_path / "h"


def test_many_bytes_of_inputs_are_reported_while_they_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Event] = []
    recipe, runs = toy(tmp_path, seen.append)
    run_stage(recipe, recipe.stage("data"), runs)
    assert not any("inputs read" in event.text for event in seen)
    monkeypatch.setattr("stillhouse.runs.SLOW_TO_READ", 1)
    run_stage(recipe, recipe.stage("teacher"), runs)
    read = [event for event in seen if event.text == "MiB of its inputs read"]
    assert {event.stage for event in read} == {"teacher"}
    assert len(read) > 1
    # a line says that it is complete, and no line says so twice
    assert [event.done == event.total for event in read] == [False] * (len(read) - 1) + [True]
