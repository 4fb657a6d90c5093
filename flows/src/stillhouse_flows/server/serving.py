"""Prefect's server: for the time of one run where the user has none, or for months.

Prefect would start the first itself, but in the terminal's process group: Ctrl-C would end it
first, and the run would knock at its door for minutes. This one has a session of its own, and goes
when the process that started it goes, in whatever way.
"""

import atexit
import importlib
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import timedelta
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import IO

from stillhouse.errors import StillhouseError
from stillhouse_flows.processes.process_group import die_with_parent, kill_group

HOST = "127.0.0.1"
API = "PREFECT_API_URL"
STARTUP_SECONDS = 300.0
ANSWER_SECONDS = 30.0
# a run whose machine died sends no heartbeat (local.QUIET says how often) and is marked Crashed
SILENCE = timedelta(seconds=90)
ZOMBIES = "Mark runs without heartbeats as crashed"
# how a run's states are called when it has ended; a name that is missing here would crash such runs
ENDS = ("Completed", "Failed", "TimedOut", "Cancelled", "Crashed")
ENDS_OF_WATCH = ("Unchanged", "Promoted", "Refused")
LONG_LIVED = {
    "PREFECT__SERVER_FINAL": "1",
    # what ended so many seconds ago goes from its database; `flow clean` does it at once
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(60 * 86400),
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    # slots held in memory leak when a server is killed
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
}
ENVIRONMENT = {
    **LONG_LIVED,
    "PREFECT_UI_ENABLED": "0",
    # Prefect's own mark of a server that serves one process
    "PREFECT__SERVER_EPHEMERAL": "1",
    # what only a long-lived server needs
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}


def ensure_api(meanwhile: Callable[[], None] | None = None, *, beside: str = "prefect") -> None:
    """Have a Prefect API until this process ends; call it before Prefect is imported. While it
    starts, the module `beside` is imported and `meanwhile` called now and then. Raises
    StillhouseError where the user's own does not answer, and what `meanwhile` raises.
    """
    if configured():
        check_answers()
    else:
        _start(HOST, _free_port(), ENVIRONMENT, meanwhile, beside=beside)


def ensure_server(host: str, port: int) -> "subprocess.Popen[bytes]":
    """A server with schedules and the UI until this process ends; call it before Prefect is
    imported.
    """
    _check_free(host, port)
    # by its environment, not an option: the UI learns the API's address from it
    os.environ |= {"PREFECT_SERVER_API_HOST": host, "PREFECT_SERVER_API_PORT": str(port)}
    server = _start(host, port, LONG_LIVED)
    mark_zombies()
    return server


def _start(
    host: str,
    port: int,
    settings: Mapping[str, str],
    meanwhile: Callable[[], None] | None = None,
    *,
    beside: str = "prefect",
) -> "subprocess.Popen[bytes]":
    log = Path(os.environ["PREFECT_HOME"]) / "server.log"
    with log.open("w") as stream:
        server = _launch(host, port, settings, stream)
    # before Prefect registers its own: those run first, and send their last lines here
    atexit.register(stop, server)
    os.environ[API] = f"http://{reached_at(host)}:{port}/api"
    # seconds of work, as the server's start is: done side by side
    importlib.import_module(beside)
    _wait_for(os.environ[API], server, log, meanwhile)
    return server


def reached_at(host: str) -> str:
    """Where this machine reaches a server that listens at `host`."""
    return HOST if host == "0.0.0.0" else host


def _launch(
    host: str, port: int, settings: Mapping[str, str], stream: IO[str]
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "stillhouse_flows.server.serving", host, str(port)],
        env={**settings, **os.environ},
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def mark_zombies() -> None:
    """Have the server mark runs Crashed whose heartbeats stop; by itself it never would."""
    from prefect.automations import AutomationCore, EventTrigger, Posture
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.events import ResourceSpecification

    beat = "prefect.flow-run.heartbeat"
    ends = {f"prefect.flow-run.{name}" for name in (*ENDS, *ENDS_OF_WATCH)}
    silent = EventTrigger(
        after={beat},
        expect={beat, *ends},
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        within=SILENCE,
    )
    reason = f"No heartbeat for {SILENCE.seconds} s: its process or machine is gone"
    crash = ChangeFlowRunState(name=None, state=StateType.CRASHED, message=reason, force=False)
    with get_client(sync_client=True) as client:
        for earlier in client.read_automations_by_name(ZOMBIES):  # of another version, perhaps
            client.delete_automation(earlier.id)
        client.create_automation(AutomationCore(name=ZOMBIES, trigger=silent, actions=[crash]))


def configured() -> bool:
    """Whether the user has a Prefect API of their own."""
    profiles = Path(os.environ.get("PREFECT_HOME", "")) / "profiles.toml"
    return bool(os.environ.get(API)) or (profiles.is_file() and API in profiles.read_text())


def check_answers() -> None:
    """Raises StillhouseError where nothing answers at PREFECT_API_URL, before seconds are spent on
    Prefect's import. What Prefect itself must settle (a profile, a password, a certificate) is not
    looked at.
    """
    api = os.environ.get(API)
    if not api:
        return
    try:
        with urllib.request.urlopen(f"{api.rstrip('/')}/health", timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            return
        found = "is none (404)"
    except (OSError, ValueError, OverflowError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return
        found = f"does not answer ({' '.join(str(reason).split())})"
    raise no_server(found)


def no_server(found: str) -> StillhouseError:
    """What to say where Prefect's server is not as it should be."""
    at = os.environ.get(API) or "the address of your profile"
    return StillhouseError(
        f"Prefect's server at {at} {found}; what is finished is kept. "
        f"Start it (stillhouse flow server), or unset {API}"
    )


def stop(server: "subprocess.Popen[bytes]") -> None:
    """End a server that this process started."""
    server.terminate()  # it still has events to write
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        kill_group(server.pid)
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _check_free(host: str, port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise StillhouseError(
            f"{host}:{port}: {error.strerror}; give another --port, or end what listens there"
        ) from error


def _wait_for(
    api: str,
    server: "subprocess.Popen[bytes]",
    log: Path,
    meanwhile: Callable[[], None] | None,
) -> None:
    end = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < end and server.poll() is None:
        if meanwhile is not None:
            meanwhile()
        try:
            with urllib.request.urlopen(f"{api}/health", timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise StillhouseError(
        f"Prefect's local server did not start (its log is {log}); "
        f"try again, or set {API} to a server of yours"
    )


def main(host: str, port: int) -> None:
    """Serve until stopped, or until the process that started it is gone."""
    die_with_parent()
    import uvicorn

    uvicorn.run(
        "stillhouse_flows.server.page:create",
        factory=True,
        host=host,
        port=port,
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
