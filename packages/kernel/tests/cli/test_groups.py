"""Command groups of other packages: listed without being imported, harmless when broken."""

import sys

import pytest

from .conftest import declare

GROUP = '''
"""Greets people."""

import typer

app = typer.Typer()


@app.callback()
def _greet() -> None: ...


@app.command()
def hello(name: str) -> None:
    print(f"hello {name}")
'''


@pytest.fixture
def greet(site):
    (site / "greeting.py").write_text(GROUP.lstrip())
    (site / "breaking.py").write_text('"""Breaks."""\n\nimport a_package_that_is_not_there\n')
    points = {"greet": "greeting:app", "breaks": "breaking:app", "wrong": "greeting:typer"}
    declare(site, "greeting", "stillhouse.commands", points | {"list": "greeting:app"})
    yield
    sys.modules.pop("greeting", None)


def test_groups_are_in_the_help_and_not_imported(stillhouse, greet) -> None:
    code, out, _ = stillhouse("--help")
    assert code == 0
    listed = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  ")]
    assert ["greet", "Greets people."] in listed
    assert ["breaks", "Breaks."] in listed
    assert "greeting" not in sys.modules


def test_a_group_runs(stillhouse, greet) -> None:
    assert stillhouse("greet", "hello", "you") == (0, "hello you\n", "")
    code, out, _ = stillhouse("greet", "--help")
    assert code == 0
    assert "hello" in out


def test_a_broken_group_is_one_line_when_used(stillhouse, greet) -> None:
    code, _, err = stillhouse("breaks", "now")
    assert code == 2
    assert err == (
        "error: command group 'breaks' (breaking:app) cannot be loaded: "
        "ModuleNotFoundError: No module named 'a_package_that_is_not_there'\n"
    )


def test_something_else_than_a_group_is_told(stillhouse, greet) -> None:
    _, _, err = stillhouse("wrong")
    assert err == "error: command group 'wrong': greeting:typer is a module, not a typer.Typer\n"


def test_the_kernels_own_commands_stay(stillhouse, greet) -> None:
    code, out, _ = stillhouse("list", "--help")
    assert code == 0
    assert "Domains and recipes" in out


def test_doctor_tells_of_a_broken_group(stillhouse, greet) -> None:
    code, out, _ = stillhouse("doctor")
    assert code == 2
    assert "commands      greet: ok, from greeting:app\n" in out
    assert "commands      breaks: FAILS: command group 'breaks' (breaking:app) cannot be" in out
