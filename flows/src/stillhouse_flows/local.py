"""Local, quiet and telemetry-free defaults of Prefect and DVC, set before either is imported; what the user set stays."""

import os
from pathlib import Path

from stillhouse.files import storage
from stillhouse.runs import home

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # a run's lines are its own; Prefect keeps the full log, but the terminal gets none of it
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "DVC_NO_ANALYTICS": "1",
    "DVC_STUDIO_OFFLINE": "1",
}
EPHEMERAL = {
    "PREFECT_SERVER_API_HOST": "127.0.0.1",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    # slots held in memory would leak with a killed server
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # what only a long-lived server needs
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}


def settle() -> None:
    """Set the defaults in this process's environment, for it and for its children."""
    chosen = dict(QUIET)
    if not os.environ.get("PREFECT_API_URL"):
        chosen |= EPHEMERAL | {"PREFECT_HOME": str(_prefect_home())}
    for name, value in chosen.items():
        os.environ.setdefault(name, value)


def _prefect_home() -> Path:
    chosen = os.environ.get("PREFECT_HOME")
    place = Path(chosen) if chosen else home() / "prefect"
    with storage(place):
        place.mkdir(parents=True, exist_ok=True)  # Prefect itself makes the last folder only
    return place
