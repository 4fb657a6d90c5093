"""The table of docs/reliability.md, each line of it a test: what goes wrong while a run goes on, what is lost (nothing),
and that the outputs are those of an undisturbed run. Real processes, git, DVC and Prefect.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from flow_servers import flow_runs, free_port, going, start

if TYPE_CHECKING:
    from conftest import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# long enough that a kill lands in the middle, with a checkpoint behind it
TRAINING = ("toy/slope", "--set", "steps=60", "--set", "step_seconds=0.15")


@pytest.fixture
def env(env: dict[str, str]) -> dict[str, str]:
    return env | {
        "STILLHOUSE_CHECKPOINT_SECONDS": "1",
    }


@pytest.fixture(scope="session")
def undisturbed() -> dict[tuple[str, ...], Mapping[str, str]]:
    """Outputs of undisturbed runs by what was asked, each run once."""
    return {}


def run(project: "Project", env: Mapping[str, str], *words: str) -> str:
    """What a run that must end well prints."""
    child = start(project, env, "run", *words)
    out, err = child.communicate()
    assert child.returncode == 0, out + err
    return out


def locked(project: "Project", branch: str) -> Mapping[str, list[dict[str, str]]]:
    """Stage -> what it left, from the dvc.lock that a run committed."""
    names = project.git("ls-tree", "-r", "--name-only", branch).splitlines()
    (lock,) = [n for n in names if n.startswith("pipelines/toy/slope") and n.endswith("dvc.lock")]
    stages = yaml.safe_load(project.git("show", f"{branch}:{lock}"))["stages"]
    return {name: stage["outs"] for name, stage in stages.items()}


def outputs(project: "Project", branch: str) -> dict[str, str]:
    """Stage -> DVC's hash of its folder."""
    return {name: outs[0]["md5"] for name, outs in locked(project, branch).items()}


def branches(project: "Project") -> list[str]:
    """Of the runs that committed results, oldest first."""
    text = project.git(
        *("branch", "--list", "runs/*", "--sort=creatordate", "--format=%(refname:short)")
    )
    return [
        name
        for name in text.split()
        if project.git("log", "-1", "--format=%s", name).startswith("Report of")
    ]


def record(project: "Project", branch: str, stage: str) -> Mapping[str, object]:
    outs = locked(project, branch)[stage]
    (md5,) = [out["md5"] for out in outs if out["path"].endswith(f"/{stage}.run.json")]
    return json.loads((project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).read_text())


@pytest.fixture
def expected(
    counting: "Project",
    env: dict[str, str],
    tmp_path: Path,
    undisturbed: dict[tuple[str, ...], Mapping[str, str]],
) -> Callable[..., Mapping[str, str]]:
    """Outputs of an undisturbed run in a copy of the project that shares nothing with it."""

    def of(*words: str) -> Mapping[str, str]:
        if words not in undisturbed:
            copy = type(counting)(tmp_path / "undisturbed" / "project")
            shutil.copytree(counting.root, copy.root)
            apart = env | {
                "PYTHONPATH": str(copy / "src"),
                "STILLHOUSE_HOME": str(tmp_path / "undisturbed" / "home"),
            }
            run(copy, apart, *words)
            undisturbed[words] = outputs(copy, branches(copy)[-1])
        return undisturbed[words]

    return of


def wait_for(what: str, done: Callable[[], object], seconds: float = 90.0) -> object:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := done():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


def below(leader: int, *words: str) -> psutil.Process | None:
    """The youngest descendant of a process whose command line has all these words."""
    try:
        found = psutil.Process(leader).children(recursive=True)
    except psutil.NoSuchProcess:
        return None
    fitting: list[psutil.Process] = []
    for process in found:
        try:
            line = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if line and "python" in Path(line[0]).name and all(word in line for word in words):
            fitting.append(process)
    return max(fitting, key=lambda p: p.create_time()) if fitting else None


def trainer(leader: int) -> psutil.Process | None:
    return below(leader, "stage", "student")


def child(leader: int) -> psutil.Process | None:
    return below(leader, "stillhouse_flows.stages.child")


def wait_for_checkpoint(home: Path, leader: int) -> None:
    wait_for("training", lambda: trainer(leader))
    wait_for("a checkpoint", lambda: [*(home / "checkpoints").glob("*/step-*/state.json")])


def nothing_left(project: "Project", seconds: float = 15.0) -> None:
    """No process of the project's runs is left."""
    place = str(project.root.parent)

    def none() -> bool:
        rows = subprocess.run(["ps", "-eo", "stat=,args="], capture_output=True, text=True).stdout
        return not [r for r in rows.splitlines() if place in r and not r.startswith("Z")]

    wait_for("every process gone", none, seconds)


@pytest.mark.parametrize("victim", [trainer, child], ids=["trainer", "dvc"])
def test_a_stage_that_is_killed_is_tried_again_from_its_checkpoint(
    counting: "Project",
    env: dict[str, str],
    own_home: Path,
    expected: Callable[..., Mapping[str, str]],
    victim: Callable[[int], psutil.Process | None],
) -> None:
    flow = start(counting, env, "run", *TRAINING)
    wait_for_checkpoint(own_home, flow.pid)
    process = victim(flow.pid)
    assert process is not None
    process.send_signal(signal.SIGKILL)
    out, err = flow.communicate()
    assert flow.returncode == 0, out + err
    assert "tried again from its checkpoint" in out
    (branch,) = branches(counting)
    assert int(str(record(counting, branch, "student")["resumed_at"])) > 0
    assert outputs(counting, branch) == expected(*TRAINING)
    nothing_left(counting)


def test_a_flow_that_is_killed_leaves_no_process_and_the_next_goes_on(
    counting: "Project",
    env: dict[str, str],
    own_home: Path,
    expected: Callable[..., Mapping[str, str]],
) -> None:
    before = counting.state()
    flow = start(counting, env, "run", *TRAINING)
    wait_for_checkpoint(own_home, flow.pid)
    flow.kill()
    flow.communicate()
    nothing_left(counting)
    assert counting.state() == before
    out = run(counting, env, *TRAINING)
    assert "rows                   restored" in out
    (branch,) = branches(counting)
    assert int(str(record(counting, branch, "student")["resumed_at"])) > 0
    assert outputs(counting, branch) == expected(*TRAINING)


def test_a_full_disk_is_said_and_the_next_run_goes_on(
    counting: "Project",
    env: dict[str, str],
    own_home: Path,
    tmp_path: Path,
    expected: Callable[..., Mapping[str, str]],
) -> None:
    words = ("toy/slope", "--set", "megabytes=40")
    workspaces = own_home / "workspaces"
    workspaces.mkdir(parents=True)
    script = (
        f"mount -t tmpfs -o size=30m none {workspaces} && "
        f"exec {sys.executable} -m stillhouse flow run {' '.join(words)}"
    )
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("unshare -rm is not permitted here")
    full = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        cwd=counting.root,
        env=env,
        capture_output=True,
        text=True,
    )
    assert full.returncode == 2, full.stdout + full.stderr
    assert full.stderr.count("\n") == 1
    assert "no space left on the device; free some" in full.stderr
    run(counting, env, *words)
    assert outputs(counting, branches(counting)[-1]) == expected(*words)


def test_a_batch_that_does_not_fit_the_memory_goes_in_micro_batches(
    counting: "Project", env: dict[str, str]
) -> None:
    out = run(counting, env, "toy/slope", "--set", "fits=5")
    assert "tried again with each batch in 2 micro-batches" in out
    assert "tried again with each batch in 4 micro-batches" in out
    measured = record(counting, branches(counting)[-1], "student")["measured"]
    assert isinstance(measured, dict)
    assert (measured["micro_batches"], measured["batch"]) == (4, 16)
    child = start(counting, env, "run", "toy/slope", "--set", "fits=2")
    out, err = child.communicate()
    assert child.returncode == 2
    assert "micro-batches under 4 forbid smaller micro-batches; choose a smaller batch" in err, (
        out + err
    )


def test_two_runs_at_once_on_one_recipe_and_on_another(
    counting: "Project", env: dict[str, str], expected: Callable[..., Mapping[str, str]]
) -> None:
    other = ("toy/slope", "--set", "rate=0.1")
    before = counting.state()
    flows = [start(counting, env, "run", *words) for words in (TRAINING, TRAINING, other)]
    for flow in flows:
        out, err = flow.communicate()
        assert flow.returncode == 0, out + err
    assert counting.state() == before
    found = [outputs(counting, name) for name in branches(counting)]
    assert len(found) == 3
    assert sorted(map(str, found)) == sorted(
        map(str, (expected(*TRAINING), expected(*TRAINING), expected(*other)))
    )


def test_data_and_code_changed_while_a_stage_runs_reach_no_run_that_goes(
    counting: "Project",
    env: dict[str, str],
    own_home: Path,
    expected: Callable[..., Mapping[str, str]],
) -> None:
    wanted = expected(*TRAINING)
    flow = start(counting, env, "run", *TRAINING)
    wait_for_checkpoint(own_home, flow.pid)
    numbers = counting / "data/a/numbers.txt"
    numbers.unlink()  # DVC may have made it a link into its cache
    numbers.write_text("100\n")
    (counting / "params.yaml").write_text("toy: {slope: {tiny: {steps: 1}}}\n")
    out, err = flow.communicate()
    assert flow.returncode == 0, out + err
    (branch,) = branches(counting)
    assert outputs(counting, branch) == wanted


def test_a_stage_waits_for_its_device_and_says_who_has_it(
    counting: "Project", env: dict[str, str], own_home: Path
) -> None:
    one = env | {"STILLHOUSE_SLOTS": "cpu"}
    # so long that the other one surely comes while it trains
    long = ("toy/slope", "--set", "steps=60", "--set", "step_seconds=1.0")
    flow = start(counting, one, "run", *long)
    wait_for_checkpoint(own_home, flow.pid)
    other = start(counting, one, "run", "toy/slope", "--set", "steps=5")
    out, err = other.communicate()
    assert other.returncode == 0, out + err
    assert "student waits for a device: cpu is held by toy-slope-tiny-" in out
    first_out, first_err = flow.communicate()
    assert flow.returncode == 0, first_out + first_err


@pytest.fixture
def server(env: dict[str, str], tmp_path: Path) -> Iterator[Callable[[], psutil.Process]]:
    """Starts a Prefect server of the user's own on one port, again and again."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    started: list[psutil.Popen] = []
    own = {k: v for k, v in env.items() if k != "PREFECT_API_URL"}

    def begin() -> psutil.Process:
        import urllib.request

        process = psutil.Popen(
            [sys.executable, "-m", "stillhouse_flows.server.serving", "127.0.0.1", port],
            env=own,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)

        def healthy() -> bool:
            try:
                with urllib.request.urlopen(env["PREFECT_API_URL"] + "/health", timeout=5):
                    return True
            except OSError:
                return False

        wait_for("the server", healthy, 120)
        return process

    yield begin
    for process in started:
        if process.is_running():
            process.kill()


def test_a_server_that_is_killed_and_comes_back_stops_no_training(
    counting: "Project",
    env: dict[str, str],
    own_home: Path,
    server: Callable[[], psutil.Process],
    expected: Callable[..., Mapping[str, str]],
) -> None:
    process = server()
    wanted = expected(*TRAINING)
    flow = start(counting, env, "run", *TRAINING)
    wait_for_checkpoint(own_home, flow.pid)
    process.kill()
    process.wait()
    time.sleep(3)
    server()
    _, err = flow.communicate()
    if flow.returncode:  # it gave up on the server: nothing is left behind, and the next goes on
        assert "Traceback" not in err, err
        nothing_left(counting)
        run(counting, env, *TRAINING)
    branch = branches(counting)[-1]
    assert outputs(counting, branch) == wanted


def test_a_lost_remote_is_tried_again_and_its_run_keeps_its_results(
    counting: "Project", env: dict[str, str], tmp_path: Path
) -> None:
    from dvc.repo import Repo

    remote = tmp_path / "remote"
    with Repo(str(counting.root)) as repo, repo.config.edit("local") as config:
        config["remote"] = {"store": {"url": str(remote)}}
        config["core"]["remote"] = "store"
    child = start(counting, env, "run", "toy/slope", "--set", "steps=5", "--push")
    out, err = child.communicate()
    assert child.returncode == 2, out + err
    assert err.count("\n") == 1
    assert f"DVC remote 'store': {remote} not found" in err
    assert len(branches(counting)) == 1
    remote.mkdir()
    out = run(counting, env, "toy/slope", "--set", "steps=5", "--push")
    assert "Pushed" in out
    assert [*remote.rglob("*.dir")]


SLOPE = """\
deployments:
  - name: slope
    entrypoint: stillhouse_flows.flow.distill
    parameters: {recipe: toy/slope, settings: {steps: 60, step_seconds: 0.15}}
"""


def test_a_worker_that_is_killed_leaves_no_process_and_its_run_is_retried_where_it_was(
    counting: "Project",
    env: dict[str, str],
    own_home: Path,
    tmp_path: Path,
    expected: Callable[..., Mapping[str, str]],
) -> None:
    wanted = expected(*TRAINING)
    port, log = free_port(), tmp_path / "server.log"
    env["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    counting.write({"prefect.yaml": SLOPE})
    counting.commit()

    def prefect(*words: str) -> None:
        command = [sys.executable, "-m", "prefect", *words]
        done = subprocess.run(command, cwd=counting.root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def deployed() -> list[dict[str, Any]]:
        return [run for run in flow_runs(port) if run["deployment_id"]]

    def states() -> list[str]:
        return [run["state_name"] for run in deployed()]

    with going(counting, env, log, "server", "--port", str(port)):
        wait_for("the server", lambda: "export PREFECT_API_URL" in log.read_text(), 180)
        words = [sys.executable, "-m", "stillhouse", "flow", "deploy"]
        subprocess.run(words, cwd=counting.root, env=env, check=True, capture_output=True)
        with going(counting, env, tmp_path / "worker.log", "worker", "local") as worker:
            prefect("deployment", "run", "distill/slope")
            wait_for("a run", lambda: trainer(worker.pid), 120)
            wait_for_checkpoint(own_home, worker.pid)
            # as when a machine goes: the worker and the run's own process; what that started must
            # go by itself
            for process in [psutil.Process(worker.pid), *_workers(worker.pid)]:
                process.kill()
        wait_for("the trainer gone", lambda: not _training(), 8)
        # its heartbeats stop; the automation needs up to two minutes to see it
        wait_for("Crashed", lambda: states() == ["Crashed"], 240)
        (first,) = deployed()
        with going(counting, env, tmp_path / "again.log", "worker", "local"):
            prefect("flow-run", "retry", first["id"])
            wait_for("Completed", lambda: states() == ["Completed"], 240)
    (branch,) = branches(counting)
    subjects = counting.git("log", "--format=%s", branch).splitlines()
    assert subjects.count(next(s for s in subjects if s.startswith("Start"))) == 1
    assert int(str(record(counting, branch, "student")["resumed_at"])) > 0
    assert outputs(counting, branch) == wanted


def _workers(leader: int) -> list[psutil.Process]:
    """Prefect's worker and its runs, below the command that started it."""
    found = psutil.Process(leader).children(recursive=True)
    return [p for p in found if {"worker", "prefect.engine"}.intersection(p.cmdline())]


def _training() -> list[str]:
    rows = subprocess.run(["ps", "-eo", "stat=,args="], capture_output=True, text=True).stdout
    return [r for r in rows.splitlines() if "stage toy/slope" in r and not r.startswith("Z")]
