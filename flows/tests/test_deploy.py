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
    from stillhouse_flows.server.deployments import read

    assert found in GOOD
    empty.write({"prefect.yaml": GOOD.replace(found, instead), "params.yaml": "{}\n"})
    with pytest.raises(StillhouseError) as caught:
        read(empty.root)
    text = str(caught.value)
    assert text.startswith(str(empty / "prefect.yaml")), text
    assert reason in text
    assert "\n" not in text


def test_deployments_are_chosen_by_name(empty: "Project") -> None:
    from stillhouse_flows.server.deployments import prepared, read

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
    from stillhouse_flows.server.deployments import read

    root = Path(__file__).parents[2]
    assert [each.name for each in read(root)] == ["tiny", "nightly", "hourly"]


@pytest.mark.parametrize(
    "words",
    [
        ["serve"],
        ["deploy"],
        ["worker", "local"],
        ["run"],
        pytest.param(["watch"], marks=pytest.mark.slow),
        pytest.param(["compare", "vision/distill", "vision/diswot"], marks=pytest.mark.slow),
        ["clean", "--prefect"],
    ],
    ids=" ".join,
)
def test_a_server_that_is_not_there_is_one_line(
    words: list[str],
    empty: "Project",
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from stillhouse.cli import main

    empty.write({"prefect.yaml": GOOD})
    monkeypatch.setenv("STILLHOUSE_ROOT", str(empty.root))
    api = f"http://127.0.0.1:{free_port()}/api"
    for address, found in ((api, "does not answer (["), ("nowhere", "does not answer (unknown")):
        monkeypatch.setenv("PREFECT_API_URL", address)
        assert main(["flow", *words]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: Prefect's server at {address} {found}"), told
        assert told.endswith("Start it (stillhouse flow server), or unset PREFECT_API_URL\n")
        assert told.count("\n") == 1
    assert not list(empty.root.glob("runs"))


def test_deploying_without_a_server_says_what_to_run(
    empty: "Project", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stillhouse.cli import main

    empty.write({"prefect.yaml": GOOD})
    monkeypatch.setenv("STILLHOUSE_ROOT", str(empty.root))
    for words in (["deploy"], ["worker", "local"]):
        assert main(["flow", *words]) == 2
        told = capsys.readouterr().err
        reason = "no Prefect server: PREFECT_API_URL is not set. Run: stillhouse flow server"
        assert told.startswith(f"error: {reason}"), told
        assert told.count("\n") == 1


def test_what_prefect_raises_where_its_server_went_is_one_line() -> None:
    import httpx

    from stillhouse.errors import StillhouseError
    from stillhouse_flows.cli.foreground import answered

    request = httpx.Request("GET", "http://127.0.0.1:9/api/flows")
    refused = httpx.HTTPStatusError(
        "no", request=request, response=httpx.Response(401, request=request)
    )
    for error, found in (
        (ExceptionGroup("tasks", [httpx.ConnectError("refused")]), "does not answer; what"),
        (RuntimeError("Failed to reach API at x"), "does not answer; what"),
        (refused, "answers 401 to /api/flows; what"),
    ):
        with pytest.raises(StillhouseError, match=found), answered():
            raise error
    with pytest.raises(RuntimeError, match="ours"), answered():
        raise RuntimeError("ours")


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
