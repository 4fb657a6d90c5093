"""`--hook` and `--track`: who watches a run, and that it changes no bit of it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from stillhouse.cli import main

from ..toys import SITE  # noqa: TID252

HOOK = """
from pathlib import Path

from mmengine.hooks import Hook


class Count(Hook):
    def __init__(self):
        self.steps = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.steps += 1

    def after_run(self, runner):
        with Path("counted.txt").open("a") as file:
            file.write(f"{self.steps} of {runner.max_iters}, {sorted(dict(runner.model.named_children()))}\\n")
"""


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path))
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> int:
    return main(["run", "toy/toy", "--set", "steps=6", "--no-report", *words])


def digests(root: Path) -> dict[str, str]:
    files = sorted(root.glob("runs/toy/toy/*/*/stage.json"))
    return {
        f"{file.parent.name}.{port}": output["digest"]
        for file in files
        for port, output in json.loads(file.read_text())["outputs"].items()
    }


def test_a_hook_beside_the_data_watches_every_training(tmp_path: Path) -> None:
    assert run() == 0
    plain = digests(tmp_path)
    (tmp_path / "runs").rename(tmp_path / "before")
    (tmp_path / "watching_toy.py").write_text(HOOK)
    assert run("--hook", "watching_toy:Count") == 0
    assert digests(tmp_path) == plain
    lines = (tmp_path / "counted.txt").read_text().splitlines()
    # one object for all trainings of the run
    assert lines == [
        "6 of 6, ['teacher']",
        "12 of 6, ['student', 'teacher']",
        "18 of 6, ['student']",
    ]
    # who watches is no part of a key: nothing runs again
    assert run() == 0
    assert (tmp_path / "counted.txt").read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--hook", "nowhere:Alarm"),
            "error: hook 'nowhere:Alarm': No module named 'nowhere'; name",
        ),
        (
            ("--hook", "pathlib:Path"),
            "error: hook 'pathlib:Path': not a class on mmengine.hooks.Ho",
        ),
        (
            ("--track", "tensorbord"),
            "error: unknown tracker 'tensorbord'. Did you mean 'tensorboard'",
        ),
        (
            ("--hook", "pathlib:Path", "--nproc", "2"),
            "error: --hook watches trainings of one process; leave out --nproc",
        ),
    ],
)
def test_what_cannot_watch_is_one_line(
    words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert capsys.readouterr().err.startswith(line)


def test_a_tracker_that_is_not_installed_says_how(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("aim"):
        pytest.skip("aim is installed")
    monkeypatch.setenv("STILLHOUSE_TRACK", "aim")
    assert run() == 2
    said = capsys.readouterr().err
    assert said == (
        "error: --track aim needs `aim`, which is not installed. Run: uv pip install aim\n"
    )


def test_tensorboard_has_losses_by_step_and_scores(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run("--track", "tensorboard") == 0
    (folder,) = (tmp_path / "runs" / "track" / "tensorboard" / "toy" / "toy").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    losses = events.Scalars("student-0/loss")
    rows = (folder_of(tmp_path) / "student-0.curves.tsv").read_text().splitlines()
    assert [event.step for event in losses] == [int(row.split("\t")[0]) for row in rows[1:]]
    assert losses[-1].value == pytest.approx(float(rows[-1].split("\t")[1]), rel=1e-5)
    scores = json.loads((folder_of(tmp_path) / "student-0-scores.scores.json").read_text())
    (accuracy,) = events.Scalars("student-0-scores/accuracy")
    assert accuracy.value == pytest.approx(scores["accuracy"])


def test_mlflow_has_a_run_with_settings_losses_and_scores(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    assert run("--track", "mlflow") == 0
    client = mlflow.MlflowClient(f"file://{tmp_path}/runs/track/mlflow")
    experiment = client.get_experiment_by_name("toy/toy")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == folder_of(tmp_path).name
    assert found.info.status == "FINISHED"
    assert found.data.params["steps"] == "6"
    history = client.get_metric_history(found.info.run_id, "student-0/loss")
    assert [point.step for point in history][-1] == 6
    assert "student-0-scores/accuracy" in found.data.metrics


def folder_of(root: Path) -> Path:
    (file,) = root.glob("runs/toy/toy/*/settings.json")
    return file.parent


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "def __init__(self, limit): pass",
            "error: hook 'hook_toy:Alarm': Alarm.__init__() missing",
        ),
        ("oh no", "error: hook 'hook_toy:Alarm': invalid syntax"),
        (
            "def before_run(self, runner): runner.nothing",
            "error: hook 'Alarm': before_run: AttributeError: '_Runner' object has no attribute",
        ),
    ],
)
def test_a_hook_that_fails_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    body: str,
    line: str,
) -> None:
    monkeypatch.delitem(sys.modules, "hook_toy", raising=False)
    text = f"from mmengine.hooks import Hook\n\n\nclass Alarm(Hook):\n    {body}\n"
    (tmp_path / "hook_toy.py").write_text(text)
    assert run("--hook", "hook_toy:Alarm") == 2
    said = capsys.readouterr().err
    first = next(found for found in said.splitlines() if found.startswith("error"))
    assert first.startswith(line)
    assert "Traceback" not in said
