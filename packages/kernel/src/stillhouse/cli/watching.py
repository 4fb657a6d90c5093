"""Who watches a run from outside: mmengine's hooks by name, and trackers. None is part of a key."""

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.errors import BadSetting, MissingExtra, UnknownName

if TYPE_CHECKING:
    from stillhouse.recipe import Event, Observer
    from stillhouse.runs import Runs
    from stillhouse.training import Watch

TRACK = "STILLHOUSE_TRACK"
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
Hooks = Annotated[
    list[str],
    typer.Option(
        "--hook",
        metavar="MODULE:CLASS",
        help="An mmengine Hook that watches trainings; may be repeated.",
    ),
]
Track = Annotated[
    str,
    typer.Option(
        help="Log losses and scores to tensorboard, mlflow, wandb, aim or clearml, below "
        f"runs/track; default: ${TRACK}, else nowhere."
    ),
]
# name -> mmengine's backend, and the package that it needs
BACKENDS = {
    "tensorboard": ("TensorboardVisBackend", "tensorboard"),
    "mlflow": ("MLflowVisBackend", "mlflow"),
    "wandb": ("WandbVisBackend", "wandb"),
    "aim": ("AimVisBackend", "aim"),
    "clearml": ("ClearMLVisBackend", "clearml"),
}


def watch_of(names: Sequence[str]) -> "Watch | None":
    """The hooks that watch each training; None without any. Raises BadSetting as `hook_of`."""
    if not names:
        return None
    from stillhouse.hooks import watched_by  # mmengine takes seconds to import

    return watched_by(*map(hook_of, names))


def hook_of(name: str) -> Any:  # Any: an mmengine Hook
    """A new hook of the class "module:Class"; raises BadSetting where it is not found, is no
    mmengine Hook, or cannot be made.
    """
    from stillhouse.hooks import Hook

    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` does: a hook beside the data is found
    try:
        found: Any = getattr(importlib.import_module(module), attribute)  # Any: a user's class
    except Exception as error:  # whatever a user's module does when it is imported
        raise BadSetting(
            f"hook '{name}': {_line(error)}; name a module and a class in it, as in my_hooks:Alarm"
        ) from error
    finally:
        sys.path.remove(here)
    if not (isinstance(found, type) and issubclass(found, Hook)):
        raise BadSetting(f"hook '{name}': not a class on mmengine.hooks.Hook")
    try:
        return found()
    except Exception as error:  # whatever a user's class does when it is made
        raise BadSetting(f"hook '{name}': {_line(error)}; it is made without arguments") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def tracked(name: str, runs: "Runs", settings: Mapping[str, Any]) -> "Generator[Runs]":
    """The runs, whose losses and scores are also logged by the tracker `name`; as they are for "".
    Raises UnknownName, or MissingExtra where the tracker's package is not installed.
    """
    chosen = name or os.environ.get(TRACK, "")
    if not chosen:
        yield runs
        return
    if chosen not in BACKENDS:
        raise UnknownName("tracker", chosen, BACKENDS)
    kind, package = BACKENDS[chosen]
    if importlib.util.find_spec(package) is None:
        raise MissingExtra("--track " + chosen, package, install=f"uv pip install {package}")
    from stillhouse.hooks import tracker  # mmengine takes seconds to import

    folder = runs.root / "runs" / "track" / chosen
    options: dict[str, Any] = {}  # Any: the backend's own
    if chosen == "mlflow":  # which has one store for all runs
        options = {"exp_name": runs.recipe, "run_name": runs.variant}
        options["tracking_uri"] = os.environ.get("MLFLOW_TRACKING_URI")
        # its folders of files need this since MLflow 3; a database would need its whole package
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    else:
        folder = folder / runs.recipe / runs.variant
    folder.mkdir(parents=True, exist_ok=True)
    backend = tracker(kind, folder, dict(settings), options)
    try:
        yield replace(runs, observe=_Tracked(runs.observe, backend, runs))
    finally:
        backend.close()
    print(f"tracked: {folder}", file=sys.stderr)


class _Tracked:
    """An observer that passes events on, and logs what they hold."""

    def __init__(self, observe: "Observer", backend: Any, runs: "Runs") -> None:
        self.observe, self.backend, self.runs = observe, backend, runs

    def __call__(self, event: "Event") -> None:
        self.observe(event)
        if event.scores and not event.text:
            self._log(event.stage, event.scores, event.done)
        elif event.text == "done":
            file = self.runs.folder / f"{event.stage}.scores.json"
            if file.is_file():
                from stillhouse.json_files import read_json  # pydantic, half the start

                self._log(event.stage, read_json(file, dict[str, Any], redo="run again"), 0)

    def _log(self, stage: str, scores: Mapping[str, float], step: int) -> None:
        # MLflow takes no other characters in a name
        named = {NOT_IN_NAMES.sub("_", f"{stage}/{k}"): float(v) for k, v in scores.items()}
        self.backend.add_scalars(named, step=step)
