"""Deployments and schedules as a user has them: real servers on 127.0.0.1, real workers, real runs."""

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flow_servers import COUNT, api, flow_runs, free_port, going, wait_for

from stillhouse.errors import StillhouseError

if TYPE_CHECKING:
    from conftest import Project


@pytest.fixture
def env(env: dict[str, str]) -> dict[str, str]:
    return env | {
        # asked more often than on a real server, so that the test need not wait
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    }


GOOD = COUNT.replace("toy/count", "vision/distill").replace("settings: {seeds: 2}", "scale: tiny")


@pytest.mark.parametrize(
    ("found", "instead", "reason"),
    [
        ("deployments:", "deploymens:", "expected a list of deployments under 'deployments:'"),
        ("deployments:", "a: [", "not YAML:"),
        (
            "    entrypoint: stillhouse_flows.flow.distill\n",
            "",
            "deployment 'count': no 'entrypoint'",
        ),
        ("flow.distill", "flow.distil", "no Prefect flow 'distil' in stillhouse_flows.flow"),
        ("_flows.flow.", "_flows.flaw.", "No module named 'stillhouse_flows.flaw'"),
        ("entrypoint", "entry_point", "unknown key 'entry_point'. Did you mean 'entrypoint'?"),
        ("vision/distill", "vision/distil", "unknown recipe 'vision/distil'"),
        ("scale: tiny", "scale: tidy", "scale: Input should be '', 'tiny', 'small' or 'paper'"),
        ("scale: tiny", "settings: {seads: 2}", "unknown setting 'seads'. Did you mean 'seeds'?"),
        ("scale: tiny", "skale: tiny", "unknown parameter 'skale'. Did you mean 'scale'?"),
        ("scale: tiny", "settings: 3", "parameters:"),
        ("interval: 15", "cron: every day", "schedule {'cron': 'every day'}"),
        ("interval: 15", "crown: 0 2 * * *", "give one of cron, interval (seconds), rrule"),
        ("limit: 1", "limit: 0", "'concurrency_limit' must be a number >= 1 (got 0)"),
        ("ENQUEUE", "QUEUE", "unknown collision_strategy 'QUEUE'"),
    ],
)
def test_a_mistake_is_found_before_anything_is_registered(
    empty: "Project", found: str, instead: str, reason: str
) -> None:
    from stillhouse_flows.deployments import read

    assert found in GOOD
    empty.write({"prefect.yaml": GOOD.replace(found, instead), "params.yaml": "{}\n"})
    with pytest.raises(StillhouseError) as caught:
        read(empty.root)
    text = str(caught.value)
    assert text.startswith(str(empty / "prefect.yaml")), text
    assert reason in text
    assert "\n" not in text


def test_deployments_are_chosen_by_name(empty: "Project") -> None:
    from stillhouse_flows.deployments import prepared, read

    empty.write({"prefect.yaml": GOOD})
    (each,) = read(empty.root, ["count"])
    made = prepared(each, variables={})
    assert made.full_name == "distill/count"
    assert made.entrypoint == "stillhouse_flows.flow.distill"
    assert (made.concurrency_limit, made.paused) == (1, False)
    assert made.schedules is not None
    assert [schedule.schedule.interval.seconds for schedule in made.schedules] == [15]
    with pytest.raises(StillhouseError, match="unknown deployment 'cont'. Did you mean 'count'?"):
        read(empty.root, ["cont"])


def test_the_projects_own_deployments_hold() -> None:
    from stillhouse_flows.deployments import read

    root = Path(__file__).parents[2]
    assert [each.name for each in read(root)] == ["tiny", "nightly", "hourly"]


def test_deploying_without_a_server_says_what_to_run(
    empty: "Project", env: Mapping[str, str]
) -> None:
    empty.write({"prefect.yaml": GOOD})
    for more, reason in [
        ({}, "no Prefect server: PREFECT_API_URL is not set. Run: stillhouse flow server"),
        (
            {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"},
            "no Prefect server answers at http://127.0.0.1",
        ),
    ]:
        done = subprocess.run(
            [sys.executable, "-m", "stillhouse", "flow", "deploy"],
            cwd=empty.root,
            env={**env, **more},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.startswith(f"error: {reason}"), done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_taken_port_and_an_open_address_are_said(
    empty: "Project", env: Mapping[str, str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "stillhouse",
                "flow",
                "server",
                "--port",
                port,
                "--host",
                "0.0.0.0",
            ],
            cwd=empty.root,
            env=dict(env),
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()
    assert warning.startswith(f"warning: whoever reaches 0.0.0.0:{port} can start and stop runs")
    assert error.startswith(f"error: 0.0.0.0:{port}: Address already in use; give another --port")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_served_schedules_fire_again_and_again(
    counting: "Project", env: Mapping[str, str], tmp_path: Path
) -> None:
    counting.write({"prefect.yaml": COUNT})
    counting.commit()
    before, port, log = counting.state(), free_port(), tmp_path / "serve.log"
    with going(counting, env, log, "serve", "--port", str(port)) as child:
        wait_for(lambda: f"http://127.0.0.1:{port}" in log.read_text(), 120, log.read_text)
        assert "distill/count" in wait_for(
            lambda: "distill" in log.read_text() and log.read_text(), 60
        )
        done = wait_for(
            lambda: [] if len(found := flow_runs(port, "COMPLETED")) < 2 else found,
            240,
            lambda: log.read_text() + str(flow_runs(port)),
        )
        # a schedule that fires while the last run goes on waits: no two ran at once
        for earlier, later in pairwise(done):
            assert earlier["end_time"] <= later["start_time"]
        assert all(run["auto_scheduled"] for run in done)
        automations = api(port, "automations/filter", {})
        assert [each["name"] for each in automations] == ["Mark runs without heartbeats as crashed"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
            assert b"<html" in page.read()
        listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True).stdout
        (mine,) = [line for line in listening.splitlines() if f":{port} " in line]
        assert f"127.0.0.1:{port}" in mine
    assert child.returncode == 0, log.read_text()
    assert counting.state() == before
    branches = counting.git("branch", "--list", "runs/*", "--format=%(refname:short)").splitlines()
    assert len(branches) >= 2
    rows = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True).stdout
    assert str(counting.root.parent) not in rows


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_runs_what_is_deployed_and_late_runs_do_not_pile_up(
    counting: "Project", env: dict[str, str], tmp_path: Path
) -> None:
    slow = COUNT.replace("seeds: 2", "seeds: 2, seconds: 60.0").replace(
        "interval: 15", "interval: 10"
    )
    counting.write({"prefect.yaml": slow})
    counting.commit()
    port, log = free_port(), tmp_path / "server.log"
    env["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with going(counting, env, log, "server", "--port", str(port)) as server:
        wait_for(lambda: "export PREFECT_API_URL" in log.read_text(), 180, log.read_text)
        words = [sys.executable, "-m", "stillhouse", "flow", "deploy", "count"]
        done = subprocess.run(
            words, cwd=counting.root, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "stillhouse flow worker local" in done.stdout
        work = tmp_path / "worker.log"
        # the project is known by the deployment, not by where the worker was started
        with going(counting, env, work, "worker", "local", "--limit", "4"):
            wait_for(
                lambda: len(flow_runs(port, "COMPLETED")) >= 2,
                400,
                lambda: (
                    work.read_text()[-3000:]
                    + str([(r["name"], r["state"]) for r in flow_runs(port)])
                ),
            )
            ran = flow_runs(port, "COMPLETED")
            dropped = flow_runs(port, "CANCELLED")
        assert ran[0]["end_time"] <= ran[1]["start_time"]
        assert len(dropped) >= 2
        assert all("Came due while another run went" in run["state"]["message"] for run in dropped)
    assert server.returncode == 0, log.read_text()
