"""Artifacts (immutable files with a digest and an opener) and models (JSON spec + safetensors,
never a pickle).
"""

import importlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillhouse.errors import BadRecipe, CorruptArtifact, PluginError

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["data", "model", "scores"]
OPEN_MODEL = "stillhouse.artifact:load_model"
SPEC, WEIGHTS = "model.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a stage reads or leaves: a file or folder, its sha256, the function that opens it."""

    kind: Kind
    path: Path
    digest: str
    opener: str

    def open(self) -> Any:  # Any: what the opener of this kind returns
        """The opened artifact: a `Built` for a model, a `Data` for data, a mapping for scores, a
        Path for raw input.
        """
        return resolve(self.opener)(self.path)


@dataclass(frozen=True, kw_only=True)
class Model:
    """How to build a module whose forward maps named tensors to named tensors.

    `build` is a module-level function or class of `stillhouse` or of a package that declares a
    domain;
    `kwargs` are JSON values. Weights are not part of it.
    """

    build: "Callable[..., nn.Module]"
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: JSON values

    def new(self) -> "nn.Module":
        """A module with fresh weights, drawn from torch's global generator."""
        return self.build(**self.kwargs)


@dataclass(frozen=True, kw_only=True)
class Built:
    """A module together with the spec that rebuilds it."""

    spec: Model
    module: "nn.Module"


Record = Mapping[str, Any]  # Any: {"build": name, "kwargs": JSON values}


def recorded(spec: Model) -> dict[str, Any]:  # Any: as Record
    """A spec as JSON values: its builder's name and arguments."""
    from stillhouse.digest import canonical

    name = canonical(spec.build, at="model.build")["name"]
    return {"build": name, "kwargs": dict(spec.kwargs)}


def spec_of(record: Record) -> Model:
    """The spec that `recorded` wrote; PluginError for a builder outside `stillhouse` and its
    plugins, KeyError for another record.
    """
    return Model(build=resolve(record["build"]), kwargs=record["kwargs"])


def save_model(path: Path, built: Built) -> Artifact:
    """Write `model.json` and `model.safetensors` into the new folder `path`; its artifact."""
    from safetensors.torch import save_model as save

    from stillhouse.digest import path_digest
    from stillhouse.files import share

    path.mkdir(parents=True)
    text = json.dumps(recorded(built.spec), indent=1, sort_keys=True)
    (path / SPEC).write_text(text + "\n")
    save(built.module, str(path / WEIGHTS))  # keeps tied weights once
    share(path / WEIGHTS)
    return Artifact(kind="model", path=path, digest=path_digest(path), opener=OPEN_MODEL)


def load_model(path: Path) -> Built:
    """The model of a folder with `model.json` and `model.safetensors`, in eval mode, on the CPU.

    Raises CorruptArtifact for unreadable files, PluginError for a builder outside `stillhouse` and
    its plugins.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model as load

    try:
        record = json.loads((path / SPEC).read_text())
        spec = spec_of(record)
    except (OSError, ValueError, KeyError) as error:
        raise CorruptArtifact(
            f"{path}: {SPEC} cannot be read ({error}); run the stage that made it again"
        ) from error
    module = spec.new()
    try:
        load(module, str(path / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptArtifact(f"{path}: {WEIGHTS} does not fit {SPEC} ({reason})") from error
    return Built(spec=spec, module=module.eval())


def resolve(name: str) -> Any:  # Any: a function or class of a trusted package
    """The object `module:qualname`, only from `stillhouse` or a package that declares a
    `stillhouse.domains` entry point.
    """
    module, _, qualname = name.partition(":")
    package = module.partition(".")[0]
    if package not in trusted_packages():
        raise PluginError(
            f"'{name}': package '{package}' is neither stillhouse nor a plugin that declares a "
            "'stillhouse.domains' entry point; nothing of it is imported"
        )
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise BadRecipe(f"'{name}' cannot be found: {error}") from error
    return found


def trusted_packages() -> set[str]:
    """Top-level packages whose builders and openers a stored spec may name."""
    points = importlib.metadata.entry_points(group="stillhouse.domains")
    return {"stillhouse"} | {point.value.partition(":")[0].partition(".")[0] for point in points}
