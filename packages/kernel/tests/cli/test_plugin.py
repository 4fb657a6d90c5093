"""`new plugin`: what it writes, what it refuses, and that it is well-formed."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from stillhouse.cli.plugin import write_plugin

from .conftest import declare


def test_writes_a_package_that_declares_its_domain(stillhouse, tmp_path) -> None:
    code, out, _ = stillhouse("new", "plugin", "night_sky", "--into", str(tmp_path))
    folder = tmp_path / "stillhouse-night-sky"
    assert code == 0
    assert out.startswith(f"Wrote {folder}. Next:\n")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "stillhouse-night-sky"
    points = project["entry-points"]["stillhouse.domains"]
    assert points == {"night_sky": "stillhouse_night_sky:domain"}
    text = "".join(f.read_text() for f in folder.rglob("*") if f.is_file())
    assert "$" not in text
    assert 'domain = "night_sky"' in (folder / "tests" / "test_domain.py").read_text()


def test_refuses_names_that_cannot_be_a_domain(stillhouse, tmp_path, project) -> None:
    for name in ("Vision", "3d", "my-domain", "class", ""):
        code, _, err = stillhouse("new", "plugin", "--into", str(tmp_path), "--", name)
        assert code == 2
        assert err.startswith(f"error: plugin name '{name}': use lower-case letters, digits")
    code, _, err = stillhouse("new", "plugin", "spirals", "--into", str(tmp_path))
    assert code == 2
    assert err.startswith("error: plugin name 'spirals' is taken by an installed domain: ")


def test_never_overwrites(stillhouse, tmp_path) -> None:
    write_plugin("sky", tmp_path)
    code, _, err = stillhouse("new", "plugin", "sky", "--into", str(tmp_path))
    assert code == 2
    assert "stillhouse-sky exists already" in err


def test_what_it_writes_is_formatted_and_clean(tmp_path) -> None:
    folder = write_plugin("sky", tmp_path)
    ruff = [sys.executable, "-m", "ruff"]
    rules = ["--isolated", "--line-length", "100", "--target-version", "py311"]
    for words in (
        ["format", "--check", *rules],
        ["check", "--select", "E,F,I,B,UP,N,SIM,RUF,PTH,ARG", *rules],
    ):
        done = subprocess.run(
            [*ruff, *words], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_it_writes_passes_its_own_suite(tmp_path) -> None:
    folder = write_plugin("sky", tmp_path)
    site = tmp_path / "site"
    declare(site, "stillhouse_sky", "stillhouse.domains", {"sky": "stillhouse_sky:domain"})
    places = [str(site), str(folder / "src"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--basetemp",
            tmp_path / "t",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert Path(folder / "runs").exists() is False
