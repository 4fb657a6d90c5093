"""The apps of a deployment: what a SuperNode and a ServerApp make of their configurations.

The configuration of the run comes with the app and names recipe, settings, stage and input key;
that of a node is its operator's: which client it is, and where its data are.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import save_file

from stillhouse.artifact import Artifact
from stillhouse.data.data import Columns
from stillhouse.data.shards import SCHEMA, save_data
from stillhouse.errors import BadRecipe, BadSetting, StillhouseError, UnknownName
from stillhouse.federated.flower import bridge
from stillhouse.federated.flower.bridge import Config, Grid
from stillhouse.federated.flower.client import Answers, Seat
from stillhouse.federated.flower.messages import ACTIONS
from stillhouse.federated.flower.server import serve
from stillhouse.federated.rounds import Played
from stillhouse.federated.stage import DATA, TRANSFER, Federate
from stillhouse.files import write_text, writing
from stillhouse.inputs import outside
from stillhouse.places import home, project_root
from stillhouse.recipe import Context, Event, Recipe
from stillhouse.runs import Runs, input_of
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Make

JOB, EVENTS, OUTCOME = "job.json", "events.jsonl", "outcome.json"
EXCHANGE_FILE = "exchange.safetensors"
# an input key is a sha256; it becomes a folder's name, and comes from the server
KEY = re.compile(r"[0-9a-f]{64}")


def node_folder(key: str, client: str) -> Path:
    """Where a node keeps the weights of its client."""
    if not KEY.fullmatch(key):
        raise BadSetting(f"input key '{key}': expected 64 hexadecimal digits")
    return home() / "federated" / key / client


@dataclass(frozen=True, kw_only=True)
class NodeSeats:
    """A SuperNode's client, from --node-config: `client`, and where they are not the run's own
    `data` and `transfer` (folders of shards; `data` also images, see `node_data`), `root` (the
    project), `device`, `threads`.
    """

    def __call__(self, run: Config, node: Config) -> Seat:
        root = Path(str(node["root"])) if "root" in node else project_root()
        recipe, stage, runs = staged(run, root)
        client = str(node.get("client", ""))
        if client not in stage.clients:
            raise UnknownName("client", client, stage.clients, where="--node-config")
        own = {client: client, client + DATA: "data", TRANSFER: "transfer"}
        inputs: dict[str, Artifact] = {}
        for port, key in own.items():
            if port in stage.inputs:
                inputs[port] = (
                    node_data(recipe, stage.inputs[port], Path(str(node[key])), run)
                    if key in node
                    else input_of(recipe, stage.inputs[port], runs)
                )
        return Seat(
            name=client,
            stage=stage,
            inputs=inputs,
            folder=node_folder(str(run["key"]), client),
            device=str(node.get("device", "cpu")),
            threads=int(node.get("threads", run["threads"])),
        )


@runtime_checkable
class ReadsClient(Protocol):
    """A recipe's `make` that can read one client's own folder."""

    def read_client(self, folder: Path) -> Columns: ...


def node_data(recipe: Recipe, ref: str, path: Path, run: Config) -> Artifact:
    """What an operator gave: a folder of shards as it is; else a folder that the recipe's stage can
    read, turned into shards once. Raises BadSetting where the recipe has no such stage.
    """
    found = outside(f"file:{path.absolute()}", path.parent)
    if (path / SCHEMA).is_file() or path.is_file():
        return found
    stage = recipe.stage(ref.partition(".")[0])
    make = stage.make if isinstance(stage, Make) else None
    if not isinstance(make, ReadsClient):
        raise BadSetting(
            f"--node-config data: {path}: no {SCHEMA} in it; give a folder of shards, or run the "
            "recipe with your clients, which read folders of images"
        )
    folder = node_folder(str(run["key"]), "own-data") / found.digest
    if not folder.is_dir():
        with writing(folder) as out:
            save_data(out / "data", make.read_client(path))
    return outside(f"file:{folder / 'data'}", path.parent)


def staged(run: Config, root: Path) -> tuple[Recipe, Federate, Runs]:
    """The federation that a run's configuration means, in the project at `root`."""
    name, record = str(run["recipe"]), json.loads(str(run["settings"]))
    settings = make_settings(name, record["scale"], record["settings"])
    recipe = make_recipe(name, settings)
    stage = recipe.stage(str(run["stage"]))
    if not isinstance(stage, Federate):
        raise BadRecipe(f"stage '{stage.name}' of {name} is no federation")
    return recipe, stage, Runs(root=root, recipe=name, variant=settings.variant())


def client_app() -> Any:  # Any: Flower's ClientApp
    """What a SuperNode runs for each message."""
    return bridge.client_app(Answers(seats=NodeSeats()), ACTIONS)


def server_app() -> Any:  # Any: Flower's ServerApp
    """What the SuperLink runs once."""
    return bridge.server_app(_serve)


def _serve(grid: Grid, run: Config) -> None:
    """Play the rounds and leave in the run's folder what the waiting stage needs."""
    torch.set_num_threads(int(run["threads"]))
    folder = Path(str(run["folder"]))
    job = json.loads((folder / JOB).read_text())
    try:
        played = _played(grid, run, folder, job)
    except StillhouseError as error:
        write_text(folder / OUTCOME, json.dumps({"error": str(error)}))
        raise
    write_text(folder / OUTCOME, json.dumps({"resumed_at": played.resumed_at}))


def _played(grid: Grid, run: Config, folder: Path, job: Mapping[str, Any]) -> Played:  # Any: JSON
    recipe, stage, runs = staged(run, Path(job["root"]))
    inputs = (
        {TRANSFER: input_of(recipe, stage.inputs[TRANSFER], runs)}
        if TRANSFER in stage.inputs
        else {}
    )
    ctx = Context(
        stage=stage.name,
        out=folder,
        checkpoints=Path(job["server"]),
        caches=folder,
        observe=_Events(folder / EVENTS),
    )
    played = serve(stage, inputs, grid, ctx, seconds=float(job["seconds"]), alive=_always)
    save_file(dict(played.exchange.state_dict()), str(folder / EXCHANGE_FILE))
    return played


class _Events:
    """An observer that appends to a file, for the process that waits."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(
                json.dumps({**asdict(replace(event, scores={})), "scores": dict(event.scores)})
                + "\n"
            )


def _always() -> None:
    """Flower ends this process itself."""
