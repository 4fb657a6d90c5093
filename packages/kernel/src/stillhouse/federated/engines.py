"""Where the clients of a federation run: names, and whether what they need is installed."""

import importlib.util

from stillhouse.errors import MissingExtra, UnknownName

ENGINES = ("local", "flower")
INSTALL = "uv sync --no-default-groups --extra federated   or   pip install 'stillhouse[federated]'"


def check_engine(name: str) -> None:
    """Raises UnknownName for an engine that is none, MissingExtra where it cannot run here."""
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)
    for package in ("flwr", "ray") if name == "flower" else ():
        if importlib.util.find_spec(package) is None:
            raise MissingExtra("--engine flower", package, install=INSTALL)
