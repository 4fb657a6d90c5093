"""Where the code of a run lies: a project's own source folders, and what a child must import."""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stillhouse.code.sources import source_root
from stillhouse.errors import StillhouseError


def source_path(package: str) -> Path:
    """The folder (or single file) of a top-level package, found without importing it."""
    root = source_root(package)
    if root is None:
        raise StillhouseError(f"package '{package}' is not installed, or has no source")
    return root.resolve()


def stage_packages() -> tuple[str, ...]:
    """The kernel and every plugin: the packages whose code decides what a stage leaves."""
    points = importlib.metadata.entry_points(group="stillhouse.domains")
    names = sorted(point.value.partition(":")[0].partition(".")[0] for point in points)
    return tuple(n for n in dict.fromkeys(("stillhouse", *names)) if importlib.util.find_spec(n))


def inside(folder: Path, root: Path) -> bool:
    """Whether a package is source of the project at `root`, not of an environment inside it."""
    return folder.is_relative_to(root) and "site-packages" not in folder.relative_to(root).parts


def source_folders(root: Path) -> tuple[str, ...]:
    """What to put on PYTHONPATH, relative to `root`, for packages that the project holds."""
    folders = [source_path(package) for package in stage_packages()]
    parents = [f.parent.relative_to(root).as_posix() for f in folders if inside(f, root)]
    return tuple(dict.fromkeys(parents))


def stage_environment(root: Path, folders: Sequence[str], device: str) -> dict[str, str]:
    """The environment in which `stillhouse stage` runs the code of `root` with this interpreter.

    Raises StillhouseError when `root` lacks a source folder: an old commit must not run new code.
    """
    paths = [root / folder for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise StillhouseError(
                f"{path}: not there at this commit, so its code cannot run; choose a later --ref"
            )
    environ = dict(os.environ)
    search = [*map(str, paths), *filter(None, [environ.get("PYTHONPATH")])]
    return environ | {
        "STILLHOUSE_ROOT": str(root),
        "PYTHONPATH": os.pathsep.join(search),
        # no __pycache__ in a tree that is frozen
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", "")]),
        # the shell that DVC uses; a user's own could change the environment
        "SHELL": "/bin/sh",
        **_visible(device),
    }


def _visible(device: str) -> dict[str, str]:
    """A stage takes the GPU it sees: choosing a device is showing it that one only."""
    kind, _, index = device.partition(":")
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {"CUDA_VISIBLE_DEVICES": index} if kind == "cuda" and index else {}


def check_code(root: Path, folders: Sequence[str]) -> None:
    """Raises StillhouseError when `root` holds stillhouse and another would be imported."""
    found = source_path("stillhouse")
    if any((root / folder / "stillhouse").is_dir() for folder in folders) and not inside(
        found, root
    ):
        raise StillhouseError(f"stillhouse would be imported from {found}, not from {root}")
