"""Artifacts (immutable files with a digest and an opener) and models (JSON spec + safetensors,
never a pickle).
"""

import contextlib
import importlib
import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillhouse.errors import CorruptArtifact, MissingExtra, PluginError, StillhouseError
from stillhouse.json_files import brief, read_json
from stillhouse.trusted import builder, check_arguments

if TYPE_CHECKING:
    import torch
    from torch import nn

    from stillhouse.subsets import Base

Kind = Literal["data", "model", "scores"]
OPEN_MODEL = "stillhouse.artifact:load_model"
SPEC, WEIGHTS = "model.json", "model.safetensors"
# all that may open an artifact; what a record of a run names beside them is not called
OPENERS = (
    OPEN_MODEL,
    "stillhouse.data.shards:load_data",
    "stillhouse.stages.evaluate:load_scores",
    "stillhouse.inputs:as_path",
    "stillhouse.inputs:builtin",
)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What a stage reads or leaves: a file or folder, its sha256, the function that opens it."""

    kind: Kind
    path: Path
    digest: str
    opener: str

    def open(self) -> Any:  # Any: what the opener of this kind returns
        """The opened artifact: a `Built` for a model, a `Data` for data, a mapping for scores, a
        Path for raw input. Raises CorruptArtifact for an opener that is none.
        """
        if self.opener not in OPENERS:
            raise CorruptArtifact(
                f"{self.path}: {brief(self.opener)} opens no artifact; run the stage that made it "
                f"again (openers: {', '.join(OPENERS)})"
            )
        module, _, function = self.opener.partition(":")
        return getattr(importlib.import_module(module), function)(self.path)


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
    """A module together with the spec that rebuilds it, and its assets by name: files and folders
    that whoever uses it needs, such as a tokenizer's.
    """

    spec: Model
    module: "nn.Module"
    assets: Mapping[str, Path] = field(default_factory=dict[str, Path])


Record = Mapping[str, Any]  # Any: {"build": name, "kwargs": JSON values}


def recorded(spec: Model) -> dict[str, Any]:  # Any: as Record
    """A spec as JSON values: its builder's name and arguments."""
    from stillhouse.digest import canonical

    name = canonical(spec.build, at="model.build")["name"]
    return {"build": name, "kwargs": dict(spec.kwargs)}


def spec_of(record: Record) -> Model:
    """The spec that `recorded` wrote; nothing that it names is called.

    Raises CorruptArtifact for another record or arguments that the builder does not take,
    PluginError for what is no builder of `stillhouse` or of a package that declares a domain.
    """
    name, kwargs = record.get("build"), record.get("kwargs")
    if not isinstance(name, str) or not isinstance(kwargs, Mapping):
        raise CorruptArtifact(
            f'expected {{"build": "module:name", "kwargs": {{...}}}} (got {brief(record)})'
        )
    build = builder(name)
    check_arguments(build, kwargs, name=name)
    return Model(build=build, kwargs=kwargs)


def save_model(path: Path, built: Built, *, base: "Base | None" = None) -> Artifact:
    """Write `model.json`, `model.safetensors` and the assets into the new folder `path`; its
    artifact. With a `base`, what it has already is left out (see subsets.py). Raises BadData for
    assets that are not data.
    """
    from safetensors.torch import save_file
    from safetensors.torch import save_model as save

    from stillhouse.assets import copy_assets
    from stillhouse.digest import path_digest
    from stillhouse.files import share

    path.mkdir(parents=True)
    assets = copy_assets(built.assets, path)
    record = recorded(built.spec) | ({"assets": assets} if assets else {})
    if base is None:
        save(built.module, str(path / WEIGHTS))  # keeps tied weights once
    else:
        from stillhouse.subsets import subset_of

        subset = subset_of(built.module, base)
        record["base"] = {"digest": base.digest, "from": base.ref, "names": subset.names}
        save_file(dict(subset.tensors), str(path / WEIGHTS), metadata={"format": "pt"})
    text = json.dumps(record, indent=1, sort_keys=True)
    (path / SPEC).write_text(text + "\n")
    share(path / WEIGHTS)
    return Artifact(kind="model", path=path, digest=path_digest(path), opener=OPEN_MODEL)


def load_model(
    path: Path, *, dtype: "torch.dtype | None" = None, base: Path | None = None
) -> Built:
    """The model of a folder with `model.json` and `model.safetensors`, in eval mode, on the CPU,
    without a second copy of its weights; floating ones in `dtype`, or that of the module built.
    `base` is the folder of the model it was trained on, where it was saved without that.

    Raises CorruptArtifact for unreadable files and for arguments that make no network, or one far
    larger than the weights, PluginError for a builder that is none of `stillhouse` and its plugins,
    MissingData where its base is not found or is another one.
    """
    from stillhouse.allocation import Bounded
    from stillhouse.assets import read_assets
    from stillhouse.loading import cast_buffers, overwrite, without_copy
    from stillhouse.subsets import places_of

    file, files = path / SPEC, {path / WEIGHTS}
    record = read_json(file, dict[str, Any], redo="run the stage that made it again")
    if "base" in record:
        with _fitting(path):
            files |= {where for where, _ in places_of(path, base).values()}

    def build() -> "nn.Module":
        with Bounded(sum(map(_size, files))):
            return spec.new()

    with _about(file):
        spec = spec_of(record)
        module = without_copy(build, lambda: places_of(path, base), dtype=dtype)
        whole = module is not None
        module = module or build()
    if not whole:
        with _fitting(path):
            overwrite(module, places_of(path, base), dtype=dtype)
    if dtype is not None:
        cast_buffers(module, dtype)
    assets = read_assets(record.get("assets", {}), path)
    return Built(spec=spec, module=module.eval(), assets=assets)


@contextlib.contextmanager
def _fitting(path: Path) -> Generator[None]:
    """What is wrong with the weights of a folder, as one line about it."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptArtifact(f"{path}: {WEIGHTS} does not fit {SPEC} ({reason})") from error


@contextlib.contextmanager
def _about(file: Path) -> Generator[None]:
    """What goes wrong while a network is built, as one line about its file."""
    try:
        yield
    except MissingExtra:
        raise
    except PluginError as error:
        raise PluginError(f"{file}: {error}") from error
    except Exception as error:  # whatever a builder does with numbers that it was not made for
        kind = "" if isinstance(error, StillhouseError) else f"{type(error).__name__}: "
        text = str(error) if kind == "" else next(iter(str(error).splitlines()), "")
        reason = " ".join(f"{kind}{text}".split())
        raise CorruptArtifact(f"{file}: builds no network: {reason}") from error


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
