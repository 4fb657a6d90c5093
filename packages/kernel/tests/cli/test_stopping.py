"""Runs that are stopped or killed: what they say, what they leave, and who removes it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from stillhouse.cli.stopping import SIGNALS, Stopping
from stillhouse.leftovers import asides, dead_temporaries, remove_asides, temporary

NAME = "spirals/distill"
LONG = ("run", NAME, "--set", "steps=1000000", "--device", "cpu", "--no-report")
GO_ON = (
    "\nInterrupted; what is finished is kept. "
    f"Go on with: stillhouse run {NAME} --set steps=1000000\n"
)


def wait_for(what: str, found: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.05)


class Place:
    """A project with its own home and folder for temporary files, and a run that is started in it."""

    def __init__(self, project: Path, folder: Path) -> None:
        self.project, self.temp, self.home = project, folder / "tmp", folder / "home"
        self.temp.mkdir()
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *more: str) -> subprocess.Popen[str]:
        """A run, once its first training has begun."""
        child = subprocess.Popen(
            [sys.executable, "-m", "stillhouse", *LONG, *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "TMPDIR": str(self.temp),
                "STILLHOUSE_HOME": str(self.home),
                "STILLHOUSE_CHECKPOINT_SECONDS": "1",
            },
        )
        self.started.append(child)
        wait_for(
            "checkpoint",
            lambda: [*self.home.glob("checkpoints/*/step-*/state.json")] or child.poll(),
        )
        assert child.poll() is None, child.communicate()
        return child

    def left(self) -> list[str]:
        """Halves of stages and temporary folders."""
        halves = self.project.glob("runs/*/*/*/.teacher.*")
        return sorted(p.name for p in (*halves, *self.temp.glob("stillhouse-*")))


@pytest.fixture
def place(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    found = Place(project, tmp_path)
    monkeypatch.setenv("STILLHOUSE_HOME", str(found.home))
    monkeypatch.setattr("tempfile.tempdir", str(found.temp))
    yield found
    for child in found.started:
        child.kill()
        if child.stderr and not child.stderr.closed:
            child.communicate()


def test_clean_spares_a_run_that_goes_and_frees_what_a_killed_one_left(stillhouse, place) -> None:
    child = place.start()
    living = place.left()
    assert len(living) == 1  # half a stage
    code, out, _ = stillhouse("clean", "--older-than", "0m", "--keep-gib", "0")
    assert code == 0
    assert re.search(r"kept .* checkpoint, in use by a run: .*checkpoints", out)
    assert place.left() == living
    assert [*place.home.glob("checkpoints/*/step-*")]
    child.kill()
    child.communicate()
    assert place.left() == living
    code, out, _ = stillhouse("clean", "--older-than", "0m", "--dry-run")
    assert (code, place.left()) == (0, living)
    assert out.count("would free") == 2
    code, out, _ = stillhouse("clean", "--older-than", "0m")
    assert code == 0
    assert re.search(r"freed .* half of a stage of a killed run: .*\.teacher\.", out)
    assert re.search(r"freed .* checkpoint, 0.0 days old: ", out)
    assert place.left() == []


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, id="term", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, id="ctrl-c"),
    ],
)
def test_a_stopped_run_says_how_to_go_on_and_leaves_nothing(
    place, number: signal.Signals, code: int
) -> None:
    child = place.start()
    child.send_signal(number)
    _, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (code, GO_ON)
    assert place.left() == []
    assert [*place.home.glob("checkpoints/*/step-*")]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_without_a_traceback(place) -> None:
    child = place.start()
    child.send_signal(signal.SIGINT)
    time.sleep(0.002)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert err in ("", GO_ON)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_ranks_end_with_the_run(place, number: signal.Signals) -> None:
    child = place.start("--nproc", "2")
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) >= 3  # torchrun and its ranks
    child.send_signal(number)
    _, err = child.communicate(timeout=120)
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_the_next_run_of_a_stage_removes_what_a_killed_one_left(stillhouse, project) -> None:
    assert stillhouse("stage", NAME, "data")[0] == 0
    run = project / "runs" / NAME / "tiny"
    for name in (".data.0123abcd", ".data.0123abcd.old", ".kd-0.0123abcd"):
        (run / name).mkdir()
    for name in (".0123abcd.data.run.json", ".0123abcd.settings.json"):
        (run / name).touch()
    assert stillhouse("stage", NAME, "data")[0] == 0
    left = {p.name for p in run.glob(".*")} - {".locks"}
    assert left == {".kd-0.0123abcd", ".0123abcd.settings.json"}


def test_a_signal_that_a_library_swallowed_stops_the_run_after_the_stage() -> None:
    stopping = Stopping()
    try:
        with stopping:
            stopping.check()
            with contextlib.suppress(BaseException):  # as some exporters do
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            with pytest.raises(KeyboardInterrupt):
                stopping.check()
        assert stopping.exit_code == 143
        for number in SIGNALS:  # the next signal ends the process, whatever it is doing
            assert signal.getsignal(number) == stopping._stop
    finally:
        for number, handler in stopping.before.items():
            signal.signal(number, handler)


def test_a_command_that_nothing_stopped_gives_the_handlers_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Stopping():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_names_that_only_look_alike_are_left_alone(tmp_path: Path) -> None:
    for name in (".data.0123abcd", ".data.0123abc", ".data-2.0123abcd", "data", ".data.0123abcd.x"):
        (tmp_path / name).mkdir()
    assert [p.name for p in asides(tmp_path, "data")] == [".data.0123abcd"]
    remove_asides(tmp_path, "data")
    assert not (tmp_path / ".data.0123abcd").exists()
    assert len([*tmp_path.iterdir()]) == 4


def test_a_temporary_folder_is_dead_when_its_lock_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary() as living:
        assert living.is_dir()
        dead = tmp_path / "stillhouse-of-a-killed-process"
        dead.mkdir()
        dead.with_suffix(".lock").touch()
        assert list(dead_temporaries()) == [dead]
    assert not living.exists()
    assert not living.with_suffix(".lock").exists()
