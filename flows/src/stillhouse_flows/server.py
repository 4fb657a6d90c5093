"""Prefect's server for the time of one run, where the user has none.

Prefect would start one itself, but in the terminal's process group: Ctrl-C would end it first, and
the run would knock at its door for minutes. This one has a session of its own, and goes when the
process that started it goes, in whatever way.
"""

import atexit
import importlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from stillhouse.errors import StillhouseError
from stillhouse_flows.process_group import die_with_parent, kill_group

HOST = "127.0.0.1"
API = "PREFECT_API_URL"
STARTUP_SECONDS = 300.0
ENVIRONMENT = {
    "PREFECT_UI_ENABLED": "0",
    # Prefect's own marks of a server that serves one process
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    # slots held in memory leak when a server is killed
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
    # what only a long-lived server needs
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}


def ensure_api() -> None:
    """Have a Prefect API until this process ends; call it before Prefect is imported."""
    if _configured():
        return
    log, port = Path(os.environ["PREFECT_HOME"]) / "server.log", _free_port()
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "stillhouse_flows.server", str(port)],
            env=ENVIRONMENT | dict(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # before Prefect registers its own: those run first, and send their last lines here
    atexit.register(_stop, server)
    os.environ[API] = f"http://{HOST}:{port}/api"
    # seconds of work, as the server's start is: done side by side
    importlib.import_module("prefect")
    _wait_for(os.environ[API], server, log)


def _configured() -> bool:
    """Whether the user has a Prefect API of their own."""
    profiles = Path(os.environ.get("PREFECT_HOME", "")) / "profiles.toml"
    return bool(os.environ.get(API)) or (profiles.is_file() and API in profiles.read_text())


def _stop(server: "subprocess.Popen[bytes]") -> None:
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


def _wait_for(api: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{api}/health", timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise StillhouseError(
        f"Prefect's local server did not start (its log is {log}); "
        f"try again, or set {API} to a server of yours"
    )


def main(port: int) -> None:
    """Serve until told to stop, or until the process that asked for it is gone."""
    die_with_parent()
    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host=HOST,
        port=port,
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
