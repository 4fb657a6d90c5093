"""Stages on other machines: each a folder with a home, a clone and a DVC cache of its own; they share a
git remote, a DVC remote and the server's address only.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flow_servers import flow_runs, free_port, going, wait_for

from stillhouse_flows.workspace.git import git

if TYPE_CHECKING:
    from conftest import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def environment(folder: Path, clone: Path, **more: str) -> dict[str, str]:
    """That of a machine."""
    return dict(os.environ) | {
        "PYTHONPATH": str(clone / "src"),
        "STILLHOUSE_HOME": str(folder / "home"),
        "DVC_SITE_CACHE_DIR": str(folder / "site"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


def dvc(project: Path, *words: str) -> None:
    command = [str(Path(sys.executable).parent / "dvc"), *words]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def flow(clone: Path, env: Mapping[str, str], *code: str) -> "subprocess.CompletedProcess[str]":
    """A run that sends its GPU stages away."""
    lines = [
        "import sys",
        "from stillhouse.errors import StillhouseError",
        "from stillhouse_flows.processes.local import settle",
        "from stillhouse_flows.server.serving import ensure_api",
        "settle()",
        "ensure_api()",
        "from stillhouse_flows.flow import distill",
        "try:",
        f"    print(distill(recipe='toy/count', {', '.join(code)}))",
        "except StillhouseError as error:",
        "    sys.exit(f'error: {error}')",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, cwd=clone, env=dict(env), capture_output=True, text=True)


def digests(page: Path) -> dict[str, str]:
    """stage.json of every stage of a run."""
    folder = page.parents[1]
    return {path.parent.name: path.read_text() for path in folder.glob("*/stage.json")}


def stages_sent(port: int) -> list[str]:
    """The stages that went to another machine."""
    return [run["name"].rpartition(" ")[2] for run in flow_runs(port) if " " in run["name"]]


@pytest.fixture
def shared(counting: "Project", tmp_path: Path) -> "Project":
    """A project with both remotes, and all of it pushed; all of its stages want a CPU."""
    for name in ("git-remote", "dvc-remote"):
        (tmp_path / name).mkdir()
    git(tmp_path / "git-remote", "init", "--bare", "--quiet", "--initial-branch=main")
    dvc(counting.root, "remote", "add", "--default", "box", str(tmp_path / "dvc-remote"))
    counting.commit()
    counting.git("remote", "add", "origin", str(tmp_path / "git-remote"))
    counting.git("push", "--quiet", "origin", "main")
    dvc(counting.root, "push")
    return counting


@pytest.mark.parametrize(
    ("undo", "reason"),
    [
        (("git", "remote", "remove", "origin"), "has no git remote 'origin' to send runs by"),
        (("dvc", "remote", "remove", "box"), "has no default DVC remote to share stages by"),
    ],
)
def test_a_run_without_a_way_to_other_machines_is_refused(
    shared: "Project", own_home: Path, undo: tuple[str, ...], reason: str
) -> None:
    subprocess.run(
        [str(Path(sys.executable).parent / undo[0]) if undo[0] == "dvc" else "git", *undo[1:]],
        cwd=shared.root,
        check=True,
    )
    env = environment(own_home.parent, shared.root)
    done = flow(shared.root, env, "pools={'cpu': 'big'}")
    assert done.stderr.startswith("error: "), done.stdout + done.stderr
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_stages_run_on_a_machine_that_shares_no_file(
    shared: "Project", own_home: Path, tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "server.log"
    api = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_WORKER_QUERY_SECONDS": "1"}
    here = environment(tmp_path / "here", shared.root, **api)
    boxes: dict[str, Project] = {}
    for name in ("one", "two"):
        clone = tmp_path / name / "project"
        git(tmp_path, "clone", "--quiet", str(tmp_path / "git-remote"), str(clone))
        boxes[name] = type(shared)(clone)
        assert not (clone / "data").exists()
    server_env = here | {"PREFECT_HOME": str(tmp_path / "prefect")}
    with going(shared, server_env, log, "server", "--port", str(port)):
        wait_for(lambda: "export PREFECT_API_URL" in log.read_text(), 180, log.read_text)
        absent = flow(shared.root, here, "pools={'cpu': 'big'}")
        assert "no worker has offered stages in the pool 'big'" in absent.stderr, absent.stderr
        logs = {name: tmp_path / f"{name}.log" for name in boxes}
        envs = {name: environment(tmp_path / name, box.root, **api) for name, box in boxes.items()}
        with (
            going(boxes["one"], envs["one"], logs["one"], "worker", "one"),
            going(boxes["two"], envs["two"], logs["two"], "worker", "two"),
        ):
            for name in boxes:
                wait_for(
                    lambda name=name: "offers stage/" in logs[name].read_text(),
                    120,
                    logs[name].read_text,
                )
            head = shared.git("rev-parse", "HEAD")
            # what one stage reads was made here, and goes to box two by the DVC remote only
            bad = "settings={'fail': True}"
            assert "Not run: double-scores" in flow(shared.root, here, bad).stdout
            failed = flow(shared.root, here, bad, "pools={'cpu': 'two'}")
            reason = "error: stage 'double': these numbers cannot be used (on pool two)\n"
            assert failed.stderr == reason, failed.stdout + logs["two"].read_text()[-3000:]
            assert stages_sent(port) == ["double"]

            good = "settings={'factor': 3}"
            done = flow(shared.root, here, good, "pools={'cpu': 'one'}")
            assert done.returncode == 0, done.stdout + done.stderr + logs["one"].read_text()[-3000:]
            ends = [line.split()[1:3] for line in done.stdout.splitlines() if "/5 " in line]
            assert ends.pop(0) == ["inputs", "ran"]
            names = ["numbers", "double", "double-scores", "same-scores"]
            assert sorted(ends) == sorted([name, "restored"] for name in names), done.stdout
            assert sorted(stages_sent(port)) == sorted(["double", *names])

            again = flow(shared.root, here, good, "pools={'cpu': 'one'}")
            assert again.returncode == 0, again.stdout + again.stderr
            assert len(stages_sent(port)) == 5
            for name, box in boxes.items():
                # but for DVC's cache, which is what a clone has it for
                assert box.git("status", "--porcelain") == ""
                assert box.git("rev-parse", "HEAD") == head
                assert box.git("branch", "--format=%(refname:short)") == "main"
                assert not list((tmp_path / name / "home" / "workspaces").glob("*/*/"))
    # a clone that none of it reached: its cache holds the data only
    alone = tmp_path / "alone" / "project"
    git(tmp_path, "clone", "--quiet", str(tmp_path / "git-remote"), str(alone))
    dvc(alone, "pull", "data.dvc")
    undisturbed = flow(alone, environment(alone.parent, alone), good)
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
    assert [line.split()[2] for line in undisturbed.stdout.splitlines() if "/5 " in line] == [
        "ran"
    ] * 5
    assert digests(Path(undisturbed.stdout.splitlines()[-1])) == digests(
        Path(done.stdout.splitlines()[-1])
    )
