"""A plugin written by `new plugin`, in sight of this process and its children; an empty project."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.cli.app import main
from stillhouse.cli.plugin import write_plugin

Main = Callable[..., tuple[int, str, str]]


def declare(site: Path, name: str, group: str, points: dict[str, str]) -> None:
    """What an installer leaves for `importlib.metadata`: a distribution with these entry points."""
    info = site / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = [f"{key} = {value}" for key, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))


@pytest.fixture(scope="session")
def spirals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the plugin `spirals` and its metadata."""
    site = tmp_path_factory.mktemp("site")
    write_plugin("spirals", site)
    (site / "stillhouse-spirals" / "src" / "stillhouse_spirals").rename(site / "stillhouse_spirals")
    declare(
        site, "stillhouse_spirals", "stillhouse.domains", {"spirals": "stillhouse_spirals:domain"}
    )
    return site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder on the path of this process and its children, for a test's own packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    see(folder, monkeypatch)
    return folder


@pytest.fixture
def project(tmp_path: Path, spirals: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project in which the domain `spirals` is installed."""
    see(spirals, monkeypatch)
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.setenv("STILLHOUSE_ROOT", str(root))
    monkeypatch.chdir(tmp_path)
    return root


def see(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ.get("PYTHONPATH")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), before))))


@pytest.fixture
def stillhouse(capsys: pytest.CaptureFixture[str]) -> Main:
    """`stillhouse("list")` is (exit code, stdout, stderr) of the command line in this process."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return run
