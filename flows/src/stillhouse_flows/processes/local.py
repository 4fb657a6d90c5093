"""Local, quiet, telemetry-free defaults of Prefect and DVC, set before either is imported.

What the user has set stays.
"""

import os
from pathlib import Path

from stillhouse.files import storage
from stillhouse.places import home

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # a run's lines are its own; Prefect keeps the full log, but the terminal gets none of it
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    # its own machinery has a handler of its own: an event that was late is nobody's business
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
    # the most often that Prefect allows: from these a server knows that a run is gone
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "DVC_NO_ANALYTICS": "1",
    "DVC_STUDIO_OFFLINE": "1",
}


def settle() -> None:
    """Set the defaults in this process's environment, for it and for its children."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("PREFECT_API_URL"):
        place = Path(os.environ.setdefault("PREFECT_HOME", str(home() / "prefect")))
        with storage(place):
            place.mkdir(parents=True, exist_ok=True)  # Prefect itself makes the last folder only
