"""Flower's simulation: clients in Ray's actors on this machine, the server in this process."""

import os
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from stillhouse.artifact import Artifact
from stillhouse.errors import StillhouseError
from stillhouse.federated.flower import bridge
from stillhouse.federated.flower.bridge import Config, Grid
from stillhouse.federated.flower.client import Answers, Seat
from stillhouse.federated.flower.messages import ACTIONS
from stillhouse.federated.flower.server import serve
from stillhouse.federated.rounds import Played
from stillhouse.federated.stage import Federate
from stillhouse.recipe import Context

# Flower's name for the number of a simulated node
PARTITION = "partition-id"
JOIN_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class SimulatedSeats:
    """Node k is the stage's client k."""

    stage: Federate
    inputs: Mapping[str, Artifact]
    folder: Path
    device: str
    threads: int

    def __call__(self, run: Config, node: Config) -> Seat:
        return self.seat(self.stage.clients[int(node[PARTITION])])

    def seat(self, name: str) -> Seat:
        return Seat(
            name=name,
            stage=self.stage,
            inputs=self.inputs,
            folder=self.folder / "clients" / name,
            device=self.device,
            threads=self.threads,
        )


class Stopped(BaseException):
    """The stage is being ended; not an Exception, so that nothing on the way takes it for one."""


@dataclass(frozen=True, kw_only=True)
class _Server:
    """The ServerApp in this process; what became of it."""

    stage: Federate
    inputs: Mapping[str, Artifact]
    ctx: Context
    seconds: float
    stop: threading.Event = field(default_factory=threading.Event)
    done: list[Played | BaseException] = field(default_factory=list[Played | BaseException])

    def __call__(self, grid: Grid, run: Config) -> None:
        try:
            found = serve(
                self.stage, self.inputs, grid, self.ctx, seconds=self.seconds, alive=self._alive
            )
        except BaseException as error:  # of another thread: raised again in `simulate`
            self.done.append(error)
        else:
            self.done.append(found)

    def _alive(self) -> None:
        if self.stop.is_set():
            raise Stopped


def simulate(
    stage: Federate,
    inputs: Mapping[str, Artifact],
    ctx: Context,
    folder: Path,
    *,
    seconds: float,
) -> tuple[Played, dict[str, dict[str, Tensor]]]:
    """The rounds that were played, and the weights of every client by name.

    As many clients train at a time as this machine has processors for, each with as many threads
    as this process: the bits depend on them. The rounds that `folder` has are not played again.
    """
    threads = torch.get_num_threads()
    seats = SimulatedSeats(
        stage=stage, inputs=inputs, folder=folder, device=ctx.device, threads=threads
    )
    server = _Server(stage=stage, inputs=inputs, ctx=_beside(ctx, folder), seconds=seconds)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            bridge.simulate(
                bridge.server_app(server),
                bridge.client_app(Answers(seats=seats), ACTIONS),
                nodes=len(stage.clients),
                backend=backend(len(stage.clients), threads, ctx.device),
            )
        except BaseException as error:
            failed.append(error)

    # Flower lets every DeprecationWarning through, here and after
    with warnings.catch_warnings():
        _beside_this(run, server.stop)
    for found in server.done:
        if isinstance(found, BaseException):
            raise found
        return found, {name: seats.seat(name).weights() for name in stage.clients}
    reason = f"{failed[0]}" if failed else "without a word"
    raise StillhouseError(f"stage '{stage.name}': Flower's simulation ended: {reason}")


def _beside_this(run: Callable[[], None], stop: threading.Event) -> None:
    """Run in a thread, so that this one takes Ctrl-C: Flower would wait for the last round."""
    flower = threading.Thread(target=run, name="flower", daemon=True)
    flower.start()
    try:
        while flower.is_alive():
            flower.join(JOIN_SECONDS)
    except BaseException:
        stop.set()
        flower.join()
        raise


def backend(clients: int, threads: int, device: str) -> dict[str, dict[str, object]]:
    """Ray on 127.0.0.1 without a dashboard; a client takes its threads and a share of the GPU."""
    at_once = max(1, min(clients, (os.cpu_count() or 1) // threads))
    gpus = 1 if device.startswith("cuda") else 0
    return {
        "init_args": {
            "num_cpus": at_once * threads,
            "num_gpus": gpus,
            "_node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": "error",
        },
        "client_resources": {"num_cpus": threads, "num_gpus": gpus / at_once},
    }


def _beside(ctx: Context, folder: Path) -> Context:
    return replace(ctx, checkpoints=folder / "server")
