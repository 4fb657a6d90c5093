"""A federation through a SuperLink: its ServerApp plays the rounds, SuperNodes hold the clients.

The stage writes a small app of two imports, hands it to the SuperLink and watches a folder that
the ServerApp writes to: it runs on the SuperLink's host. What the stage is travels as the recipe's
name and settings; each node builds it from its own installation, and reads its own data.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from stillhouse.errors import BadRecipe, StillhouseError
from stillhouse.federated.flower.node import EVENTS, EXCHANGE_FILE, JOB, OUTCOME, node_folder
from stillhouse.federated.rounds import Played, exchange_from
from stillhouse.federated.stage import Federate
from stillhouse.files import write_text
from stillhouse.recipe import Context, Event

APP, CONNECTION = "stillhouse_federation", "stillhouse"
RUN = "run.json"
POLL_SECONDS = 0.3
# how often the SuperLink is queried whether the run is still there
QUERY_SECONDS = 15.0
ENDED = "finished"
CLI = "from flwr.cli.app import app; app()"


def deploy(
    stage: Federate, ctx: Context, folder: Path, *, address: str, seconds: float
) -> tuple[Played, dict[str, dict[str, Tensor]]]:
    """The rounds that were played, and the weights of the clients whose nodes are on this
    machine, by name. Ended from outside, it ends the run on the SuperLink.

    Raises StillhouseError for what the server or the SuperLink refuses.
    """
    if ctx.settings is None or not ctx.settings.is_file():
        raise BadRecipe(
            f"stage '{stage.name}': nodes build it from a recipe and its settings, "
            "so it can only be deployed by `stillhouse run` or `stillhouse stage`"
        )
    # a run that a killed stage has left may write to its own folder for a while
    attempt = folder / f"run-{uuid.uuid4().hex[:8]}"
    _write_app(stage, ctx, folder, attempt, seconds)
    _connect(folder, address)
    _stop(folder)
    try:
        run = _flwr(folder, "run", str(folder / "app"), CONNECTION)
        write_text(folder / RUN, json.dumps({"run": run["run-id"]}))
        outcome = _watch(folder, attempt, ctx)
    except BaseException:
        _stop(folder)
        raise
    (folder / RUN).unlink()
    if "error" in outcome:
        raise StillhouseError(outcome["error"])
    played = Played(
        exchange=exchange_from(load_file(str(attempt / EXCHANGE_FILE))),
        clients=stage.clients,
        resumed_at=outcome["resumed_at"],
    )
    return played, _weights_here(stage, ctx)


def _weights_here(stage: Federate, ctx: Context) -> dict[str, dict[str, Tensor]]:
    """Of the clients whose folder is on this machine."""
    from stillhouse.federated.flower.client import newest

    folders = {name: node_folder(ctx.checkpoints.name, name) for name in stage.clients}
    found = {n: newest(folder, stage.rounds) for n, folder in folders.items() if folder.is_dir()}
    return {name: state for name, state in found.items() if state}


def _write_app(stage: Federate, ctx: Context, folder: Path, attempt: Path, seconds: float) -> None:
    """Flower's app: a project with two imports, and the configuration that all nodes get."""
    assert ctx.settings is not None
    config: dict[str, str | int] = {
        "recipe": ctx.recipe,
        "settings": json.dumps(json.loads(ctx.settings.read_text())),
        "stage": stage.name,
        "key": ctx.checkpoints.name,
        "threads": torch.get_num_threads(),
        "folder": str(attempt),
    }
    shutil.rmtree(folder / "app", ignore_errors=True)
    write_text(folder / "app" / "pyproject.toml", PROJECT.format(config=_toml(config)))
    write_text(folder / "app" / APP / "__init__.py", '"""Stillhouse\'s federation."""\n')
    write_text(folder / "app" / APP / "apps.py", APPS)
    # for the ServerApp alone
    job = {"root": str(ctx.settings.parents[4]), "server": str(folder / "server")}
    write_text(attempt / JOB, json.dumps({**job, "seconds": seconds}))


def _toml(config: Mapping[str, str | int]) -> str:
    # a JSON string or number is one of TOML too
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in config.items())


def _connect(folder: Path, address: str) -> None:
    """Flower's own configuration, in a home of its own."""
    secure = os.environ.get("STILLHOUSE_FLOWER_ROOT_CERTIFICATES", "")
    trust = f"root-certificates = {json.dumps(secure)}" if secure else "insecure = true"
    text = f"[superlink.{CONNECTION}]\naddress = {json.dumps(address)}\n{trust}\n"
    write_text(folder / "home" / "config.toml", text)


def _flwr(folder: Path, *words: str) -> Any:  # Any: JSON
    """The output of `flwr ... --format json`; raises StillhouseError with its reason."""
    command = [sys.executable, "-c", CLI, *words, "--format", "json"]
    done = subprocess.run(
        command,
        env={**os.environ, "FLWR_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {"error-message": " ".join((done.stderr or done.stdout).split()[-40:])}
    if done.returncode or not answer.get("success", True):
        raise StillhouseError(f"flwr {words[0]}: {answer.get('error-message', answer)}")
    return answer


def _watch(folder: Path, attempt: Path, ctx: Context) -> Any:  # Any: JSON
    """Pass on the events of the ServerApp until it has written how it ended."""
    run, seen, queried = json.loads((folder / RUN).read_text())["run"], 0, time.monotonic()
    while True:
        ended = (attempt / OUTCOME).is_file()
        text = (attempt / EVENTS).read_text() if (attempt / EVENTS).is_file() else ""
        # the last line may be half-written
        lines = text[: text.rfind("\n") + 1].splitlines()
        for line in lines[seen:]:
            ctx.observe(_event(json.loads(line)))
        seen = len(lines)
        if ended:
            return json.loads((attempt / OUTCOME).read_text())
        if time.monotonic() - queried > QUERY_SECONDS:
            queried = time.monotonic()
            status = str(
                _flwr(folder, "list", "--run-id", str(run), CONNECTION)["runs"][0]["status"]
            )
            if status.startswith(ENDED) and not (attempt / OUTCOME).is_file():
                raise StillhouseError(
                    f"stage '{ctx.stage}': run {run} has ended on the SuperLink ({status}) without "
                    "a word from its server; `flwr log` has the reason"
                )
        time.sleep(POLL_SECONDS)


def _event(record: Any) -> Event:  # Any: JSON
    return Event(
        stage=record["stage"],
        text=record["text"],
        done=record["done"],
        total=record["total"],
        scores=record["scores"],
    )


def _stop(folder: Path) -> None:
    """End the run this folder knows of, if it still runs."""
    if (folder / RUN).is_file():
        run = json.loads((folder / RUN).read_text())["run"]
        with contextlib.suppress(StillhouseError):  # it has ended, or its SuperLink has
            _flwr(folder, "stop", str(run), CONNECTION)
        (folder / RUN).unlink()


PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "stillhouse-federation"
version = "0.1.0"
description = "A federated stage of a Stillhouse recipe"
license = "Apache-2.0"
dependencies = ["flwr>=1.42"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "stillhouse"

[tool.flwr.app.components]
serverapp = "stillhouse_federation.apps:server"
clientapp = "stillhouse_federation.apps:client"

[tool.flwr.app.config]
{config}
"""
APPS = '''"""Both apps are in the installed package."""

from stillhouse.federated.flower.node import client_app, server_app

server = server_app()
client = client_app()
'''
