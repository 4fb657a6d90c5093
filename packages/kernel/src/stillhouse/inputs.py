"""What a stage's ports refer to outside the recipe: project data, files, built-in arrays, hub
repositories, files of packages.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from stillhouse.artifact import Artifact
from stillhouse.digest import arrays_digest, known_digest
from stillhouse.errors import BadData, BadRecipe, MissingData, MissingExtra
from stillhouse.packages import SCHEME, fetch, package_file
from stillhouse.trusted import array_maker

OPEN_PATH = "stillhouse.inputs:as_path"
OPEN_BUILTIN = "stillhouse.inputs:builtin"
PROJECT = "STILLHOUSE_PROJECT"  # set in a run's workspace: the project it was made from


def outside(ref: str, root: Path) -> Artifact:
    """The artifact of "data:", "file:", "builtin:", "hub:" or "package:" references; raises
    MissingData with how to get it.
    """
    scheme, _, rest = ref.partition(":")
    match scheme:
        case "data":
            return _path_artifact(_inside(root / "data", rest, ref))
        case "file":
            return _path_artifact(_file(Path(rest).expanduser(), root, ref))
        case "builtin":
            return Artifact(
                kind="data",
                path=Path(rest),
                digest=arrays_digest(builtin(Path(rest))),
                opener=OPEN_BUILTIN,
            )
        case "hub":
            return _path_artifact(_hub(rest))
        case "package":
            return _path_artifact(fetch(ref))
        case _:
            raise BadRecipe(
                f"'{ref}': inputs start with data:, file:, builtin:, hub: or package:, or name a "
                "stage's port"
            )


def raw_input(ref: str, root: Path) -> Any:  # Any: a Path, or arrays by name
    """What a "data:", "file:", "builtin:", "hub:" or "package:" reference names, without its
    digest. Where `root` is a run's workspace that has no such file yet, the project it was made
    from is searched.

    Raises as `outside`.
    """
    scheme, _, rest = ref.partition(":")
    roots = [root, *(Path(p) for p in [os.environ.get(PROJECT, "")] if p)]
    match scheme:
        case "data":
            return _first_there(roots, lambda at: _inside(at / "data", rest, ref))
        case "file":
            return _first_there(roots, lambda at: _file(Path(rest).expanduser(), at, ref))
        case "builtin":
            return builtin(Path(rest))
        case "hub":
            return _hub(rest)
        case "package":
            return fetch(ref)
        case _:
            return outside(ref, root)  # which says what is wrong


def _first_there(roots: Sequence[Path], find: Callable[[Path], Path]) -> Path:
    for at in roots[:-1]:
        with contextlib.suppress(MissingData):
            return find(at)
    return find(roots[-1])


def check_present(refs: Iterable[str], root: Path) -> None:
    """Raise MissingData for every "data:" or "file:" reference that leads to nothing, and BadRecipe
    for a "package:" reference that cannot be read, before anything is read or run.
    """
    missing = list[str]()
    for ref in refs:
        if ref.startswith(("data:", "file:")):
            try:
                raw_input(ref, root)
            except MissingData as error:
                missing.append(str(error))
        elif ref.startswith(SCHEME):
            package_file(ref)
    if missing:
        raise MissingData("; ".join(missing))


def _path_artifact(path: Path) -> Artifact:
    kind = "model" if (path / "model.json").is_file() else "data"
    opener = "stillhouse.artifact:load_model" if kind == "model" else OPEN_PATH
    if (path / "data.json").is_file():
        opener = "stillhouse.data.shards:load_data"
    return Artifact(kind=kind, path=path, digest=known_digest(path), opener=opener)


def _inside(data: Path, name: str, ref: str) -> Path:
    path = data / name
    # not resolved: DVC may have linked the files from its cache
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadRecipe(f"'{ref}': leads out of {data}; use file:<path> for files elsewhere")
    if not path.exists():
        raise MissingData(
            f"'{ref}': {path} not found. Run: stillhouse data pull {name.partition('/')[0]} "
            "(needs a DVC remote), or use --set data=file:<your folder>"
        )
    return path


def _file(path: Path, root: Path, ref: str) -> Path:
    full = path if path.is_absolute() else root / path
    if not full.exists():
        raise MissingData(
            f"'{ref}': {full} not found; give an existing file or folder, as in file:<path> "
            f"(relative to {root})"
        )
    return full


def _hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtra(
            f"'hub:{name}'", "huggingface_hub", install="uv add huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise MissingData(
            f"'hub:{name}' cannot be fetched ({reason}); with the files at hand use file:<folder>"
        ) from error


def as_path(path: Path) -> Path:
    """The opener of raw input: its path."""
    return path


def builtin(name: Path) -> Mapping[str, Any]:  # Any: numpy arrays or tensors
    """The arrays of "module:function" of stillhouse or a plugin, made by calling it. Raises
    PluginError for a function that is not annotated to make some, BadData for one that makes none.
    """
    import numpy as np
    from torch import Tensor

    found: Any = array_maker(str(name))()
    if not isinstance(found, Mapping) or not found:
        raise BadData(f"'builtin:{name}': gave a {type(found).__name__} without arrays")
    arrays = cast("Mapping[str, Any]", found)  # Any: as above
    for key, value in arrays.items():
        numbers = isinstance(value, np.ndarray) and not value.dtype.hasobject
        if not (numbers or isinstance(value, Tensor)):
            raise BadData(
                f"'builtin:{name}': '{key}' is no array of numbers or texts (a "
                f"{type(value).__name__})"
            )
    return arrays
