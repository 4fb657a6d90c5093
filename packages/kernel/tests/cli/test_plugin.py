"""`new plugin`: what it writes, what it refuses, and that it is well-formed."""

import json
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import stillhouse as kernel
from stillhouse.cli.plugin import source, write_plugin

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


def test_the_settings_that_its_readme_shows_are_no_defaults(stillhouse, tmp_path) -> None:
    stillhouse("new", "plugin", "night_sky", "--into", str(tmp_path))
    folder = tmp_path / "stillhouse-night-sky"
    recipe = next(folder.rglob("recipes/distill.py")).read_text()
    shown = dict(re.findall(r"--set (\w+)=(\w+)", (folder / "README.md").read_text()))
    default = re.search(r"temperature: float = pydantic.Field\(([\d.]+)", recipe)
    assert default is not None
    assert float(shown["temperature"]) != float(default[1])


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


@pytest.mark.parametrize(("origin", "lines"), [
    ({}, ""),
    ({"url": "file:///a%20b/kernel", "dir_info": {"editable": True}},
     'stillhouse = { path = "/a b/kernel", editable = true }'),
    ({"url": "file:///w/stillhouse-1-py3-none-any.whl", "archive_info": {}},
     'stillhouse = { path = "/w/stillhouse-1-py3-none-any.whl" }'),
    ({"url": "https://host/repo.git", "subdirectory": "packages/kernel",
      "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}},
     'stillhouse = { git = "https://host/repo.git", rev = "c0ffee", subdirectory = "packages/kernel" }'),
    ({"url": "https://host/stillhouse-1-py3-none-any.whl", "archive_info": {}},
     'stillhouse = { url = "https://host/stillhouse-1-py3-none-any.whl" }'),
], ids=["index", "editable", "wheel", "git", "url"])  # fmt: skip
def test_a_plugin_finds_the_stillhouse_that_wrote_it(origin: dict, lines: str) -> None:
    text = source(json.dumps(origin))
    assert text == (f"[tool.uv.sources]\n{lines}\n\n" if lines else "")
    assert list(tomllib.loads(text)) == (["tool"] if lines else [])


def test_its_project_has_tests_and_this_source(tmp_path) -> None:
    project = tomllib.loads((write_plugin("sky", tmp_path) / "pyproject.toml").read_text())
    assert project["dependency-groups"]["dev"] == ["pytest>=8"]
    here = project["tool"]["uv"]["sources"]["stillhouse"]
    assert Path(here["path"], "src", "stillhouse", "__init__.py").samefile(str(kernel.__file__))


@pytest.mark.slow
def test_the_printed_steps_are_all_it_takes(stillhouse, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, _ = stillhouse("new", "plugin", "sky")
    head, *steps = out.splitlines()
    assert head == "Wrote stillhouse-sky. Next:"
    folder = tmp_path / "stillhouse-sky"
    # what `uv run` makes first, without a network: an environment with the plugin and all else
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (site,) = (folder / ".venv").glob("lib/python*/site-packages")
    else_where = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})"
    (site / "all-else.pth").write_text(f"{else_where}\n{folder / 'src'}\n")
    python = folder / ".venv" / "bin" / "python"
    for name in ("pytest", "stillhouse"):
        script = python.with_name(name)
        script.write_text(
            f"#!{python}\nimport runpy\nrunpy.run_module({name!r}, run_name='__main__')\n"
        )
        script.chmod(0o755)
    declare(site, "stillhouse_sky", "stillhouse.domains", {"sky": "stillhouse_sky:domain"})
    monkeypatch.setenv("UV_NO_SYNC", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")
    for name in ("VIRTUAL_ENV", "STILLHOUSE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run(
        ["sh", "-e"], input="\n".join(steps), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    page = folder / "runs" / "sky" / "distill" / "tiny" / "report" / "report.html"
    assert done.stdout.splitlines()[-1] == f"Report: {page}"


@pytest.mark.slow
def test_uv_resolves_its_project(tmp_path) -> None:
    folder = write_plugin("sky", tmp_path)
    done = subprocess.run(["uv", "lock"], cwd=folder, capture_output=True, text=True, check=False)
    if "error sending request" in done.stderr or "Could not connect" in done.stderr:
        pytest.skip("needs a package index")
    assert done.returncode == 0, done.stderr
    lock = tomllib.loads((folder / "uv.lock").read_text())
    assert {"pytest", "stillhouse", "stillhouse-sky"} <= {p["name"] for p in lock["package"]}
