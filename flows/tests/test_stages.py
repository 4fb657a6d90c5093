"""Stages in child processes: what they leave, and what happens when something goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dvc.fs import localfs
from dvc.repo import Repo
from dvc.rwlock import rwlock

from stillhouse.errors import StillhouseError
from stillhouse_flows.stages.child import StageResult
from stillhouse_flows.stages.kept import Kept, bring_back
from stillhouse_flows.stages.process import Children, StageFailed, run_stage, share_cores
from stillhouse_flows.stages.project import StageSpec, plan
from stillhouse_flows.workspace.sources import stage_environment

if TYPE_CHECKING:
    from conftest import Project

PIPELINE = "pipelines/toy/dvc.yaml"


def run(project: "Project", name: str, children: Children | None = None) -> StageResult:
    spec = next(s for s in plan(project.root, PIPELINE) if s.name == name)
    return run_stage(
        children or Children(),
        spec,
        root=project.root,
        env=os.environ,
        folders=(),
        log=project / f"runs/{name}.log",
        say=lambda line: None,
    )


def change(project: "Project", name: str, cmd: str, **hints: object) -> None:
    """Give a stage another command."""
    import yaml

    file = project / PIPELINE
    tree = yaml.safe_load(file.read_text())
    tree["stages"][name] |= {"cmd": cmd, "meta": {"prefect": hints}}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))


def test_the_plan_has_every_stage_after_those_it_waits_for(toy: "Project") -> None:
    stages = plan(toy.root, PIPELINE)
    assert [s.name for s in stages] == ["first", "left", "right", "last"]
    assert stages[0] == StageSpec(
        name="first",
        address=f"{PIPELINE}:first",
        upstream=(),
        outs=("runs/first", "runs/first.scores.json"),
        resource="gpu",
        retries=1,
        timeout=60,
    )
    assert stages[3].upstream == ("left", "right")


def test_a_stage_runs_then_is_unchanged_then_is_restored(toy: "Project") -> None:
    first = run(toy, "first")
    assert first.status == "ran"
    assert [(out.path, out.size) for out in first.outs] == [
        ("runs/first", 4),
        ("runs/first.scores.json", 8),
    ]
    again = run(toy, "first")
    assert (again.status, again.key, again.outs) == ("unchanged", first.key, first.outs)
    for left in (toy / "runs").iterdir():
        left.unlink()
    (toy / "pipelines/toy/dvc.lock").unlink()
    back = run(toy, "first")
    assert (back.status, back.outs) == ("restored", first.outs)
    assert json.loads((toy / "runs/first.scores.json").read_text()) == {"n": 1}


def test_a_changed_dependency_changes_the_key(toy: "Project") -> None:
    before = run(toy, "first").key
    (toy / "code.py").write_text("print(3)\n")
    assert run(toy, "first").key != before


def kept_of(project: "Project") -> Kept:
    stages = plan(project.root, PIPELINE)
    return Kept(Children(), stages, root=project.root, env=os.environ, folders=())


def test_what_is_kept_comes_back_by_one_process_and_nothing_runs(toy: "Project") -> None:
    stages = plan(toy.root, PIPELINE)
    assert list(bring_back(toy.root, stages)) == []
    assert not (toy / "runs").exists()
    ran = {name: run(toy, name) for name in ("first", "left", "right", "last")}
    shutil.rmtree(toy / "runs")
    (toy / "pipelines/toy/dvc.lock").unlink()
    change(toy, "right", "echo other > ran; echo 3 > runs/right")

    said, kept = list[str](), kept_of(toy)
    back = {name: kept.take(name, said.append) for name in ran}
    assert said == ["1 of 4 stages are kept", "2 of 4 stages are kept"]
    for name in ("first", "left"):
        found = back[name]
        assert found is not None
        assert (found.status, found.key, found.outs) == (
            "restored",
            ran[name].key,
            ran[name].outs,
        )
    assert (toy / "runs/first").read_text() == "one\n"
    # the one has another command, the other waits for it
    assert (back["right"], back["last"]) == (None, None)
    assert not (toy / "ran").exists()
    assert kept.take("first", said.append) is None  # a stage that is tried again runs
    assert [run(toy, name).status for name in ran] == ["unchanged", "unchanged", "ran", "ran"]


def test_a_stage_that_dvc_refuses_does_not_hide_what_others_kept(toy: "Project") -> None:
    for name in ("first", "left", "right"):
        run(toy, name)
    file = toy / PIPELINE
    file.write_text(file.read_text().replace("deps: [runs/first, code.py]", "deps: [nowhere]"))
    kept = kept_of(toy)
    found = {name: kept.take(name, print) for name in ("first", "left", "right", "last")}
    assert [name for name, result in found.items() if result] == ["first", "right"]
    with pytest.raises(StageFailed, match="stage 'left'.*nowhere"):
        run(toy, "left")


def test_a_failing_command_ends_with_its_own_error_line(toy: "Project") -> None:
    change(toy, "first", "echo some output; echo 'error: no such thing' >&2; exit 2")
    with pytest.raises(StageFailed, match=r"^stage 'first': no such thing$") as caught:
        run(toy, "first")
    assert not caught.value.crashed
    assert "some output" in (toy / "runs/first.log").read_text()


def test_a_command_that_is_killed_may_be_tried_again(toy: "Project") -> None:
    change(toy, "first", "kill -9 $$")
    with pytest.raises(StageFailed, match="exited with -9") as caught:
        run(toy, "first")
    assert caught.value.crashed


def test_inputs_that_change_while_a_stage_runs_void_it(toy: "Project") -> None:
    change(
        toy,
        "first",
        "mkdir -p runs && cp data/a/one.txt runs/first && touch runs/first.scores.json; echo 2 >> code.py",
    )
    with pytest.raises(StageFailed, match="its inputs changed while it ran"):
        run(toy, "first")


def test_a_missing_dependency_is_named(toy: "Project") -> None:
    (toy / "code.py").unlink()
    with pytest.raises(StageFailed, match=r"first.*'code\.py' does not exist"):
        run(toy, "first")


def test_another_process_that_holds_a_file_is_waited_for(toy: "Project") -> None:
    held = rwlock(str(toy / ".dvc/tmp"), localfs, "other", [], [str(toy / "runs/first")], False)
    held.__enter__()
    threading.Timer(2.0, held.__exit__, (None, None, None)).start()
    assert run(toy, "first").status == "ran"


def test_a_finished_stage_outlives_a_lock_held_at_its_end(toy: "Project") -> None:
    # DVC itself gives up after 3 seconds and throws the finished outputs away
    change(
        toy,
        "first",
        "sleep 1; mkdir -p runs && cp data/a/one.txt runs/first && touch runs/first.scores.json",
    )
    result: list[StageResult] = []
    thread = threading.Thread(target=lambda: result.append(run(toy, "first")))
    with Repo(str(toy.root)) as repo:
        thread.start()
        log = toy / "runs/first.log"
        time.sleep(1.2)
        with repo.lock:
            time.sleep(4.5)
    thread.join()
    assert log.is_file()
    assert [r.status for r in result] == ["ran"]


def test_a_stage_that_takes_too_long_is_ended_with_what_it_started(toy: "Project") -> None:
    change(toy, "first", "sleep 600.25 & sleep 600.25", timeout=3)
    with pytest.raises(StageFailed, match=r"stage 'first': not done after 3 s"):
        run(toy, "first")
    assert gone("600.25")


def test_kill_ends_what_runs_and_lets_nothing_else_start(toy: "Project") -> None:
    change(toy, "first", "sleep 600.5")
    children, said = Children(), []
    thread = threading.Thread(target=lambda: said.append(_failure(toy, children)))
    thread.start()
    wait_for("600.5")
    children.kill()
    thread.join(10)
    assert "killed by SIGKILL" in said[0]
    assert gone("600.5")
    with pytest.raises(StageFailed, match="the run was stopped"):
        run(toy, "first", children)


def _failure(project: "Project", children: Children) -> str:
    with pytest.raises(StageFailed) as caught:
        run(project, "first", children)
    return str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_stage_dies_with_the_process_that_started_it(toy: "Project") -> None:
    change(toy, "first", "sleep 600.75")
    words = [
        sys.executable,
        "-m",
        "stillhouse_flows.stages.child",
        str(toy.root),
        f"{PIPELINE}:first",
        "/dev/null",
    ]
    script = f"import subprocess; subprocess.run({words!r}, start_new_session=True)"
    parent = subprocess.Popen([sys.executable, "-c", script])
    wait_for("600.75")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone("600.75")


def processes(mark: str) -> list[str]:
    """Command lines of `sleep MARK` processes that are not zombies."""
    found = subprocess.run(["ps", "-eo", "stat=,args="], capture_output=True, text=True).stdout
    return [row for row in found.splitlines() if row.endswith(f"sleep {mark}") and row[0] != "Z"]


def wait_for(mark: str) -> None:
    for _ in range(150):
        if processes(mark):
            return
        time.sleep(0.1)
    raise AssertionError(f"sleep {mark} never started")


def gone(mark: str) -> bool:
    for _ in range(50):
        if not processes(mark):
            return True
        time.sleep(0.1)
    return False


def test_an_older_commit_must_not_run_newer_code(tmp_path: Path) -> None:
    with pytest.raises(StillhouseError, match="not there at this commit.*choose a later --ref"):
        stage_environment(tmp_path, ["packages/kernel/src"], "auto")


def test_code_from_elsewhere_is_refused(toy: "Project") -> None:
    toy.write({"src/stillhouse/__init__.py": ""})
    with pytest.raises(StageFailed, match="stillhouse would be imported from .*, not from"):
        run_stage(
            Children(),
            plan(toy.root, PIPELINE)[0],
            root=toy.root,
            env=os.environ,
            folders=("src",),
            log=toy / "runs/log",
            say=lambda line: None,
        )


def test_the_chosen_device_is_all_a_stage_sees(tmp_path: Path) -> None:
    chosen = {
        d: stage_environment(tmp_path, (), d).get("CUDA_VISIBLE_DEVICES") for d in ("cpu", "cuda:1")
    }
    assert chosen == {"cpu": "", "cuda:1": "1"}


def test_stages_beside_each_other_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    share_cores(2)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    del os.environ["OMP_NUM_THREADS"]  # as it was before comes back with the test's end
    share_cores(1)
    assert "OMP_NUM_THREADS" not in os.environ
    for workers, threads in ((5, "2"), (24, "1")):
        os.environ.pop("OMP_NUM_THREADS", None)
        share_cores(workers)
        assert os.environ["OMP_NUM_THREADS"] == threads
