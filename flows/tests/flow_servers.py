"""What tests that start commands or servers share; pytest finds it by `pythonpath`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Project

COUNT = """\
deployments:
  - name: count
    entrypoint: stillhouse_flows.flow.distill
    parameters: {recipe: toy/count, settings: {seeds: 2}}
    schedules: [{interval: 15}]
    concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}
"""


def start(project: "Project", env: Mapping[str, str], *words: str) -> "subprocess.Popen[str]":
    """`stillhouse flow WORDS` in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "stillhouse", "flow", *words],
        cwd=project.root,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # tests that run in a shell's background would hand on that Ctrl-C is ignored
        preexec_fn=_hear_ctrl_c,
    )


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def api(port: int, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """What the server answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def flow_runs(port: int, *states: str) -> list[dict[str, Any]]:
    """The runs in one of these states, the first to start first."""
    found = api(port, "flow_runs/filter", {"sort": "START_TIME_ASC"})
    return [run for run in found if not states or run["state_type"] in states]


def wait_for(what: Callable[[], Any], seconds: float, why: Callable[[], str] = str) -> Any:
    """The first true value of `what`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s: {why()}")


@contextmanager
def going(
    project: "Project", env: Mapping[str, str], log: Path, *words: str
) -> Generator["subprocess.Popen[bytes]"]:
    """A `stillhouse flow` command that goes on until told to stop; nothing of it outlives the block."""
    with log.open("w") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "stillhouse", "flow", *words],
            cwd=project.root,
            env=dict(env),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
