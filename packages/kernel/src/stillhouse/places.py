"""Where a project and the user's own files are."""

import os
from pathlib import Path

import platformdirs

ROOT_MARKS = ("params.yaml", "data.dvc", ".git")


def project_root(start: Path | None = None) -> Path:
    """$STILLHOUSE_ROOT, else the nearest parent with params.yaml, data.dvc or .git, else the
    working directory.
    """
    if chosen := os.environ.get("STILLHOUSE_ROOT"):
        return Path(chosen).expanduser().resolve()
    here = (start or Path.cwd()).resolve()
    marked = (p for p in [here, *here.parents] if any((p / mark).exists() for mark in ROOT_MARKS))
    return next(marked, here)


def home() -> Path:
    """$STILLHOUSE_HOME, else the platform's user-data folder: checkpoints, teacher caches,
    workspaces.
    """
    chosen = os.environ.get("STILLHOUSE_HOME")
    return (
        Path(chosen).expanduser().resolve()
        if chosen
        else Path(platformdirs.user_data_dir("stillhouse"))
    )
