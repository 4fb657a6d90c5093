"""mmdetection3d, imported when it is needed, with its own noise left out."""

import functools
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.errors import MissingExtra

# mmcv without its operators installs too, and is no use here
PACKAGES = ("mmcv", "mmdet", "mmdet3d")
EXTRA = (
    "uv sync --no-default-groups --extra pointcloud-mmdet3d   (compiles mmcv's operators, about "
    "ten minutes)"
)


def missing() -> str:
    """The first of mmdetection3d's packages that is not installed; "" where all are."""
    return next((name for name in PACKAGES if importlib.util.find_spec(name) is None), "")


def imported(name: str) -> Any:  # Any: mmdetection3d has no types
    """The module `name` of mmdetection3d or of what it is made of (mmcv, mmdet, mmengine), with all
    of its layers registered. Raises MissingExtra.
    """
    if package := missing():
        raise MissingExtra("mmdetection3d's detectors", package, install=EXTRA)
    _register()
    with quiet():
        return importlib.import_module(name)


def configs() -> Path:
    """The folder of the configuration files that come with mmdetection3d."""
    return Path(imported("mmdet3d").__file__).parent / ".mim" / "configs"


@functools.cache
def _register() -> None:
    with quiet():
        for name in ("mmdet.models", "mmdet3d.models", "mmdet3d.structures"):
            importlib.import_module(name)


@contextmanager
def quiet() -> Generator[None]:
    """Its warnings and its notes left out: they are about its own code and its dependencies', which
    nobody here can change, and about every tensor that it draws.
    """
    before = logging.root.manager.disable
    with warnings.catch_warnings(action="ignore"):
        logging.disable(max(before, logging.INFO))
        try:
            yield
        finally:
            logging.disable(before)
