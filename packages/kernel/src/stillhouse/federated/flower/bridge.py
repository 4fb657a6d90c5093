"""Flower as the rest of this package sees it. The only file that imports it."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from stillhouse.federated.engines import check_engine

# nothing is sent home, nothing is installed while it runs; who sets them has the last word
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray warns of a future default otherwise
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
Names = Mapping[str, "str | int"]
Config = Mapping[str, Any]  # Any: Flower's configuration values, read by `text` and `number`


@runtime_checkable
class Grid(Protocol):
    """Flower's connection of a server to its nodes; Any: Flower's messages."""

    def get_node_ids(self) -> Iterable[int]: ...
    def push_messages(self, messages: Iterable[Any]) -> Iterable[str]: ...
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]: ...


Serve = Callable[[Grid, Config], None]
# action, names and arrays of a message, configuration of the run and of the node
Answer = Callable[
    [str, Names, Mapping[str, Tensor], Config, Config], tuple[Names, dict[str, Tensor]]
]


def prepare() -> None:
    """Before the first import of Flower: raises MissingExtra, and keeps it quiet."""
    check_engine("flower")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import flwr  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]

    logging.getLogger("flwr").setLevel(logging.ERROR)


def message(action: str, node: int, names: Names, arrays: Mapping[str, Tensor]) -> Any:
    """A message to a node; Any: Flower's."""
    flwr = _app()
    return flwr.Message(
        content=_records(names, arrays), dst_node_id=node, message_type=f"train.{action}"
    )


def opened(found: Any) -> tuple[Names, dict[str, Tensor]]:  # Any: Flower's message
    """Names and arrays of a message; whatever else is in it is not looked at."""
    records = found.content
    names: dict[str, str | int] = {}
    for record in records.config_records.values():
        names |= dict(record)
    arrays = {
        name: torch.from_numpy(array.numpy().copy())
        for record in records.array_records.values()
        for name, array in record.items()
    }
    return names, arrays


def failure(found: Any) -> str | None:  # Any: Flower's message
    """Why there is no answer in a reply; None where there is one."""
    return str(found.error.reason) if found.has_error() else None


def sender(found: Any) -> int:  # Any: Flower's message
    """The node a reply comes from."""
    return int(found.metadata.src_node_id)


def client_app(answer: Answer, actions: Iterable[str]) -> Any:
    """A ClientApp that hands the `actions` it is sent to `answer`; Any: Flower's."""
    from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]

    app: Any = ClientApp()
    for action in actions:
        app.train(action)(_Handler(action, answer))
    return app


class _Handler:
    """One action of a ClientApp; Any: Flower's message and context."""

    def __init__(self, action: str, answer: Answer) -> None:
        self.action, self.answer = action, answer

    def __call__(self, message: Any, context: Any) -> Any:
        given = (*opened(message), dict(context.run_config), dict(context.node_config))
        records = _records(*self.answer(self.action, *given))
        return _app().Message(content=records, reply_to=message)


def server_app(serve: Serve) -> Any:
    """A ServerApp that does `serve`; Any: Flower's."""
    from flwr.serverapp import ServerApp  # pyright: ignore[reportMissingImports]

    app: Any = ServerApp()

    def main(grid: Any, context: Any) -> None:  # Any: Flower's
        serve(grid, dict(context.run_config))

    app.main()(main)
    return app


def simulate(server: Any, client: Any, *, nodes: int, backend: Mapping[str, Any]) -> None:
    """Run both apps (Flower's) with so many nodes in Ray's actors on this machine."""
    from flwr.simulation import run_simulation  # pyright: ignore[reportMissingImports]

    run: Any = run_simulation
    # deprecated for `flwr run`, which would want a SuperLink of its own
    run(server_app=server, client_app=client, num_supernodes=nodes, backend_config=backend)


def _records(names: Names, arrays: Mapping[str, Tensor]) -> Any:  # Any: Flower's records
    flwr = _app()
    records = flwr.RecordDict({"names": flwr.ConfigRecord(dict(names))})
    if arrays:
        held = {name: flwr.Array(value.numpy()) for name, value in arrays.items()}
        records["arrays"] = flwr.ArrayRecord(held)
    return records


def _app() -> Any:  # Any: Flower's module
    import flwr.app as found  # pyright: ignore[reportMissingImports]

    return found
