"""`stillhouse flow` as a user calls it, on a project with a plugin of its own: real git, DVC, Prefect and processes."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flow_servers import start

from stillhouse.cli import main

if TYPE_CHECKING:
    from conftest import Project

pytestmark = pytest.mark.timeout(600)


def left_of(session: int) -> list[str]:
    """Processes that a command started in a session of its own left behind."""
    rows = subprocess.run(["ps", "-eo", "sess=,stat=,args="], capture_output=True, text=True).stdout
    return [
        row
        for row in rows.splitlines()
        if row.split()[0] == str(session) and row.split()[1][0] != "Z"
    ]


@pytest.mark.slow
def test_a_run_leaves_a_report_on_a_branch_and_nothing_else(
    counting: "Project", env: Mapping[str, str], own_home: Path
) -> None:
    (counting / "notes.txt").write_text("untracked\n")
    (counting / "params.yaml").write_text("# edited\ntoy:\n  count:\n    tiny: {}\n")
    before = counting.state()
    child = start(counting, env, "run", "toy/count", "--set", "seeds=2")
    out, err = child.communicate()
    assert child.returncode == 0, out + err
    assert err == ""
    assert left_of(child.pid) == []
    assert counting.state() == before

    lines = out.splitlines()
    page = Path(lines[-1].removeprefix("Report: "))
    assert page.is_relative_to(own_home / "workspaces")
    assert page.is_file()
    assert "+ 1 changed and 1 untracked files" in lines[0]
    assert [line.split()[1:3] for line in lines if "/5 " in line] == [
        [name, "ran"] for name in ("inputs", "numbers", "double", "double-scores", "same-scores")
    ]

    branch = counting.git("branch", "--list", "runs/*", "--format=%(refname:short)")
    subjects = counting.git("log", "--format=%s", branch).splitlines()
    assert subjects == [
        "Report of toy/count@tiny",
        "Results of toy/count@tiny",
        "Start toy/count@tiny",
        "Working tree of project",
        "toy",
    ]
    kept = counting.git("ls-tree", "-r", "--name-only", branch).splitlines()
    assert "pipelines/toy/count/tiny/dvc.lock" in kept
    assert "runs/toy/count/tiny/report/report.json" in kept
    assert not [name for name in kept if name.endswith((".safetensors", ".png", ".html"))]
    assert counting.git("show", f"{branch}:params.yaml").splitlines()[0] == "# edited"
    assert "seeds: 2" in counting.git("show", f"{branch}:params.yaml")

    # the project itself has run nothing
    command = [sys.executable, "-m", "stillhouse", "report", "toy/count"]
    done = subprocess.run(command, cwd=counting.root, env=dict(env), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"Report: {page}", done.stderr
    with sqlite3.connect(Path(env["PREFECT_HOME"]) / "prefect.db") as base:
        names = [name for (name,) in base.execute("SELECT name FROM flow_run")]
    assert "toy-count@tiny" in names

    plan = start(counting, env, "plan", "toy/count", "--set", "seeds=2")
    out, err = plan.communicate()
    assert out.splitlines()[-1] == "0 of 5 stages would run.", out + err
    assert counting.git("branch", "--list", "runs/*", "--format=%(refname:short)") == branch
    assert counting.state() == before


@pytest.mark.slow
def test_a_failed_stage_stops_those_after_it_only(
    counting: "Project", env: Mapping[str, str]
) -> None:
    child = start(counting, env, "run", "toy/count", "--set", "fail=true")
    out, err = child.communicate()
    assert (child.returncode, err) == (
        2,
        "error: stage 'double': these numbers cannot be used\n",
    ), out
    ended = {line.split()[1]: line.split()[2] for line in out.splitlines() if "/5 " in line}
    assert ended == {"inputs": "ran", "numbers": "ran", "double": "FAILED", "same-scores": "ran"}
    assert "Not run: double-scores" in out
    assert left_of(child.pid) == []
    told = start(counting, env, "history")
    out, err = told.communicate()
    (line,) = out.splitlines()
    assert line.endswith("failed; stage 'double': these numbers cannot be used"), out + err


@pytest.mark.slow
def test_ctrl_c_leaves_no_process(counting: "Project", env: Mapping[str, str]) -> None:
    child = start(counting, env, "run", "toy/count", "--set", "seconds=300.0")
    assert child.stdout is not None
    for line in child.stdout:
        if "numbers" in line and "ran" in line:
            break
    time.sleep(3)
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130, out + err
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert left_of(child.pid) == []
    rows = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True).stdout
    assert str(counting.root.parent) not in rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("facto=2",), "Did you mean 'factor'?"),
        (("data=file:gone",), "error: 'file:gone': {root}/gone not found; give an existing"),
    ],
)
def test_wrong_input_leaves_neither_branch_nor_workspace(
    counting: "Project",
    env: Mapping[str, str],
    own_home: Path,
    words: tuple[str, ...],
    reason: str,
) -> None:
    assigned = [word for pair in words for word in ("--set", pair)]
    child = start(counting, env, "run", "toy/count", *assigned)
    out, err = child.communicate()
    assert (child.returncode, err.count("\n"), out) == (2, 1, ""), out + err
    assert reason.format(root=counting.root) in err
    assert counting.git("branch", "--list", "runs/*") == ""
    assert not (own_home / "workspaces").exists()


@pytest.mark.slow
def test_a_flow_refuses_missing_files_in_the_words_of_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data, from which settings are read, and a teacher: all at once, by each command."""
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path))
    words = ["--set", "data=file:gone", "--set", "teacher=file:lost/teacher.pth"]
    told: list[str] = []
    for command in (
        ["run", "vision/distill"],
        ["flow", "run", "vision/distill"],
        ["flow", "watch", "vision/distill"],
        ["flow", "compare", "vision/distill", "vision/diswot"],
    ):
        assert main([*command, *words]) == 2
        told.append(capsys.readouterr().err)
    assert told == [told[0]] * 4
    assert told[0].startswith(f"error: 'file:gone': {tmp_path}/gone not found; give")
    assert f"; 'file:lost/teacher.pth': {tmp_path}/lost/teacher.pth not found" in told[0]
    assert not list(tmp_path.glob("**/workspaces"))
