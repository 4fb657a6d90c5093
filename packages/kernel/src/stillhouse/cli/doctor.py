"""`doctor`: what this installation can and cannot do, with the reason."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import typer

from stillhouse.cli.groups import load, points
from stillhouse.cli.listing import Json, install_hint, one_line
from stillhouse.cli.tables import print_json, size
from stillhouse.domain import Domain, domains
from stillhouse.errors import PluginError

PACKAGES = ("stillhouse", "torch", "torchvision", "mmengine", "onnxruntime", "prefect", "dvc")


def doctor(json: Json = False) -> None:
    """What this installation can do, and what it cannot, and why.

    Exits with 2 when a plugin cannot be loaded; a missing extra is only printed.
    """
    failing, plugins = 0, list[dict[str, object]]()
    facts = dict[str, str]()
    for label, value in _facts():
        facts[label] = value
        if not json:
            print(f"{label:<14}{value}")
    for label, value, fails in _plugins():
        failing += fails
        plugins.append({"kind": label, "text": value, "fails": fails})
        if not json:
            print(f"{label:<14}{value}")
    if json:
        print_json({**facts, "plugins": plugins})
    if failing:
        raise typer.Exit(2)


def _facts() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"
    yield "cpu", f"{os.cpu_count()} cores"
    yield "gpu", _gpu()
    yield from _places()


def _gpu() -> str:
    try:
        import torch
    except Exception as error:  # a broken torch is what a doctor diagnoses
        return f"torch cannot be imported: {one_line(error)}"
    if not torch.cuda.is_available():
        return f"none that torch {torch.__version__} can use; --device cpu"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} ({size(p.total_memory)})" for p in names)


def _places() -> Iterator[tuple[str, str]]:
    from stillhouse.places import home, project_root

    for label, path in (("home", home()), ("project", project_root())):
        yield label, f"{path} ({size(shutil.disk_usage(_existing(path)).free)} free)"


def _existing(path: Path) -> Path:
    """The nearest parent that is there."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _plugins() -> Iterator[tuple[str, str, bool]]:
    """(label, what is printed, whether it is a failure) a domain and a command group."""
    for name, domain in domains().items():
        if not isinstance(domain, Domain):
            yield "domain", f"{name}: FAILS: {one_line(domain)}", True
        elif missing := domain.missing():
            yield (
                "domain",
                f"{name}: missing {', '.join(missing)}; run: {install_hint(name)}",
                False,
            )
        else:
            yield "domain", f"{name}: ok, {len(domain.recipes)} recipes", False
    for point in points():
        try:
            load(point)
        except PluginError as error:
            yield "commands", f"{point.name}: FAILS: {' '.join(str(error).split())}", True
        else:
            yield "commands", f"{point.name}: ok, from {point.value}", False
