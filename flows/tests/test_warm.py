"""Processes that a zygote forks: as those of a fresh interpreter, and gone when the flow is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

import stillhouse_flows
from stillhouse_flows.processes.querying import query
from stillhouse_flows.processes.warm import Warm, main_of, possible, start_ahead, words_of, zygote
from stillhouse_flows.stages.process import Children

pytestmark = [
    pytest.mark.skipif(not possible(), reason="forks are Linux's"),
    pytest.mark.timeout(300),
]
RECIPE = "vision/distill"
FLOWS = Path(stillhouse_flows.__path__[0])
JOBS = """\
import json, os, random, signal, subprocess, sys, time

def main(argv):
    match argv:
        case ["show"]:
            import numpy, torch
            print(json.dumps({
                "cwd": os.getcwd(), "slices": os.environ.get("STILLHOUSE_SLICES"),
                "leads": os.getpgid(0) == os.getpid(), "stdin": sys.stdin.read(),
                "threads": torch.get_num_threads(), "drawn": numpy.random.rand(),
                "torch": torch.rand(1).item(), "warm": "WARM" in os.environ,
            }))
            print("to stderr", file=sys.stderr)
        case ["code", number]:
            return int(number)
        case ["exit", text]:
            sys.exit(text)
        case ["raise"]:
            raise ValueError("told to")
        case ["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["leave"]:
            subprocess.Popen(["sleep", "600.25"])
        case ["sleep", mark]:
            print("ready", flush=True)
            subprocess.run(["sleep", mark])
        case ["stage", mark]:
            from stillhouse_flows.processes.process_group import die_with_parent

            die_with_parent()
            subprocess.run(["sleep", mark])
        case ["learn"]:
            import colorsys, sndhdr
        case ["where"]:
            import stillhouse, stillhouse_flows

            print(stillhouse.__path__[0], stillhouse_flows.__path__[0], os.getppid())
        case ["known"]:
            print("sndhdr" in sys.modules)
    return 0
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "zygote_jobs.py").write_text(JOBS)
    return folder


@pytest.fixture(scope="module")
def environ(place: Path) -> dict[str, str]:
    return dict(os.environ) | {"PYTHONPATH": str(place)}


@pytest.fixture(scope="module")
def shared(place: Path, environ: dict[str, str]) -> Iterator[Warm]:
    with zygote(RECIPE, env=environ, cwd=place) as warm:
        assert warm
        yield warm


def run(
    warm: Warm, env: Mapping[str, str], cwd: Path, *words: str, learn: bool = False
) -> tuple[int, str]:
    """Exit code and output of a fork."""
    target = cwd / "output.txt"
    with target.open("w") as out:
        files = (out.fileno(), out.fileno())
        forked = warm.fork("zygote_jobs", words, env=env, cwd=cwd, files=files, learn=learn)
    assert forked
    code = forked.wait()
    forked.close()
    return code, target.read_text()


def test_a_fork_is_as_a_fresh_interpreter(
    shared: Warm, environ: dict[str, str], tmp_path: Path
) -> None:
    env = environ | {"STILLHOUSE_SLICES": "4"}
    records: list[dict[str, object]] = []
    for _ in range(2):
        code, text = run(shared, env, tmp_path, "show")
        assert code == 0
        assert text.endswith("to stderr\n")
        records.append(json.loads(text.splitlines()[0]))
    call = "import sys, zygote_jobs; sys.exit(zygote_jobs.main(['show']))"
    fresh = subprocess.run(
        [sys.executable, "-c", call],
        env=env, cwd=tmp_path, stdin=subprocess.DEVNULL, start_new_session=True,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second, expected = *records, json.loads(fresh.stdout)
    for name in ("drawn", "torch"):  # without a seed, each draws its own
        assert len({record.pop(name) for record in (first, second, expected)}) == 3
    assert first == second == expected


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("code", "7"), 7, ""),
        (("exit", "a reason"), 1, "a reason"),
        (("raise",), 1, "ValueError: told to"),
        (("kill",), -signal.SIGKILL, ""),
    ],
)
def test_exit_codes_and_errors_come_back(
    shared: Warm,
    environ: dict[str, str],
    tmp_path: Path,
    words: tuple[str, ...],
    code: int,
    text: str,
) -> None:
    found, output = run(shared, environ, tmp_path, *words)
    assert found == code
    assert text in output


def test_what_is_read_at_import_needs_an_interpreter(
    shared: Warm, environ: dict[str, str], tmp_path: Path
) -> None:
    env = environ | {"OMP_NUM_THREADS": "7"}
    children, said = Children(shared), list[str]()
    assert shared.fork("zygote_jobs", ["show"], env=env, cwd=tmp_path, files=(1, 2)) is None
    command = [sys.executable, "-m", "timeit", "-n1", "-r1", "pass"]
    assert children.run(command, env=env, cwd=tmp_path, say=said.append) == 0
    assert "loop" in said[0]


def test_what_one_has_imported_the_next_finds(
    shared: Warm, environ: dict[str, str], tmp_path: Path
) -> None:
    run(shared, environ, tmp_path, "learn", learn=True)
    assert run(shared, environ, tmp_path, "known", learn=True)[1] == "True\n"


def test_children_run_in_forks_and_leave_nothing(
    shared: Warm, environ: dict[str, str], tmp_path: Path
) -> None:
    said: list[str] = []
    command = [sys.executable, "-m", "zygote_jobs", "leave"]
    assert Children(shared).run(command, env=environ, cwd=tmp_path, say=said.append) == 0
    assert gone("600.25")
    command[-1:] = ["sleep", "600.5"]
    children = Children(shared)

    def stop(line: str) -> None:
        said.append(line)
        children.kill()

    assert children.run(command, env=environ, cwd=tmp_path, say=stop) == -signal.SIGKILL
    assert said == ["ready"]
    assert gone("600.5")


def test_a_stage_in_its_leaders_group_ends_with_it(
    shared: Warm, environ: dict[str, str], tmp_path: Path
) -> None:
    with (tmp_path / "out").open("w") as out:
        files = (out.fileno(), out.fileno())
        leader = shared.fork(
            "zygote_jobs", ["sleep", "600.125"], env=environ, cwd=tmp_path, files=files
        )
        assert leader
        inner = shared.fork(
            "zygote_jobs",
            ["sleep", "600.375"],
            env=environ,
            cwd=tmp_path,
            files=files,
            leader=leader.pid,
        )
    assert inner
    appears("600.375")
    line = psutil.Process(inner.pid).cmdline()
    assert line[1:5] == ["-m", "zygote_jobs", "sleep", "600.375"]
    os.kill(leader.pid, signal.SIGKILL)
    assert leader.wait() == inner.wait() == -signal.SIGKILL
    assert gone("600.125")
    assert gone("600.375")
    for each in (leader, inner):
        each.close()


def test_a_killed_zygote_takes_its_forks_along_and_is_done_without(
    environ: dict[str, str], place: Path, tmp_path: Path
) -> None:
    with zygote(RECIPE, env=environ, cwd=place) as warm, (tmp_path / "out").open("w") as out:
        assert warm
        files = (out.fileno(), out.fileno())
        forked = warm.fork(
            "zygote_jobs", ["stage", "600.875"], env=environ, cwd=tmp_path, files=files
        )
        assert forked
        appears("600.875")
        zygotes = [
            p
            for p in psutil.Process().children()
            if "stillhouse_flows.processes.zygote" in p.cmdline()
        ]
        max(zygotes, key=lambda process: process.create_time()).kill()
        assert forked.wait() == -signal.SIGKILL
        forked.close()
        assert gone("600.875")
        words = '{"project": "%s", "root": "%s", "recipe": "a/b", "variant": "tiny"}'
        text = words % (tmp_path, tmp_path)
        module = "stillhouse_flows.runs.registering"
        assert query(module, text, env=environ, cwd=tmp_path, warm=warm).strip() == ""


def test_all_is_gone_with_the_flow(environ: dict[str, str], place: Path, tmp_path: Path) -> None:
    script = f"""\
import os
from pathlib import Path
from stillhouse_flows.stages.process import Children
from stillhouse_flows.processes.warm import zygote
place = Path({str(place)!r})
with zygote({RECIPE!r}, env=os.environ, cwd=place) as warm:
    command = [{sys.executable!r}, "-m", "zygote_jobs", "sleep", "600.625"]
    Children(warm).run(command, env=os.environ, cwd=place, say=print)
"""
    flow = subprocess.Popen([sys.executable, "-c", script], env=environ, cwd=tmp_path)
    appears("600.625", 120)
    started = psutil.Process(flow.pid).children(recursive=True)
    assert len(started) >= 3  # the zygote, its fork, the command
    flow.kill()
    flow.wait()
    assert gone("600.625")
    assert not psutil.wait_procs(started, timeout=10)[1]


def test_only_stillhouse_of_this_interpreter_is_forked() -> None:
    own = {"PATH": str(Path(sys.executable).parent)}
    line = "stillhouse stage vision/distill@tiny plain-0"
    assert words_of(line, own) == ["stage", "vision/distill@tiny", "plain-0"]
    assert words_of(line, {"PATH": "/usr/bin"}) is None
    for other in ("stillhouse stage a b; rm x", "stillhouse stage $HOME", "echo", "stillhouse run"):
        assert words_of(other, own) is None
    assert main_of(["/bin/sh", "-c", "true"]) is None


def processes(mark: str) -> list[str]:
    """Command lines of `sleep MARK` processes that are not zombies."""
    found = subprocess.run(["ps", "-eo", "stat=,args="], capture_output=True, text=True).stdout
    return [row for row in found.splitlines() if row.endswith(f"sleep {mark}") and row[0] != "Z"]


def appears(mark: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(" -m " not in row for row in processes(mark)):
            return
        time.sleep(0.1)
    raise AssertionError(f"sleep {mark} never started")


def gone(mark: str) -> bool:
    for _ in range(100):
        if not processes(mark):
            return True
        time.sleep(0.1)
    return False


def test_nothing_joins_the_group_of_a_process_that_was_killed(
    shared: Warm, environ: dict[str, str], tmp_path: Path
) -> None:
    with (tmp_path / "out").open("w") as out:
        files = (out.fileno(), out.fileno())
        leader = shared.fork(
            "zygote_jobs", ["sleep", "600.75"], env=environ, cwd=tmp_path, files=files
        )
        assert leader
        os.killpg(leader.pid, signal.SIGKILL)
        assert leader.wait() == -signal.SIGKILL
        late = shared.fork(
            "zygote_jobs", ["code", "0"], env=environ, cwd=tmp_path, files=files, leader=leader.pid
        )
    leader.close()
    if late:
        late.close()
    assert late is None


def test_one_that_was_begun_ahead_takes_the_code_of_its_run(
    place: Path, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first it forks what this process has, the flow's check; then another checkout's code."""
    here, packages = Path(__file__).parents[2], ("packages/kernel", "flows", "plugins/vision")
    copies = [tmp_path / Path(name).name for name in packages]
    for name, copy in zip(packages, copies, strict=True):
        shutil.copytree(here / name / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(place))
    ahead = start_ahead()
    assert ahead
    assert ahead is start_ahead()
    mine = dict(os.environ)
    code, text = run(ahead, mine, tmp_path, "where")
    *before, parent = text.split()
    assert code == 0
    assert before == [str(here / packages[0] / "src/stillhouse"), str(FLOWS)]
    theirs = mine | {"PYTHONPATH": os.pathsep.join(map(str, [*copies, place]))}
    with zygote(RECIPE, env=theirs, cwd=tmp_path) as warm:
        assert warm
        assert warm is ahead
        found = run(warm, theirs, tmp_path, "where")[1].split()
    assert found == [str(copies[0] / "stillhouse"), str(copies[1] / "stillhouse_flows"), parent]


def test_one_that_was_begun_with_another_environment_is_not_taken(
    place: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    ahead = start_ahead()
    assert ahead
    begun = max(psutil.Process().children(), key=lambda process: process.create_time())
    other = environ | {"MKL_NUM_THREADS": "1"}
    with zygote(RECIPE, env=other, cwd=place) as warm:
        assert warm
        assert warm is not ahead
        assert run(warm, other, tmp_path, "code", "7") == (7, "")
    assert not begun.is_running()
