"""The pages of docs/ and README.md: every command on them is one that the command line takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from stillhouse.cli.app import app
from stillhouse.cli.groups import load, points

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"])
BLOCK = re.compile(r"^```(?:bash|console|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:uv run )?stillhouse [a-z][^`]*)`")
SHORT = ("MissingParameter", "BadOptionUsage")  # what names a command or an option alone


def commands(text: str) -> Iterator[list[str]]:
    """The words after `stillhouse` of each command in blocks and in the text."""
    lines = [
        line.partition(" #")[0].removeprefix("$ ")
        for block in BLOCK.findall(text)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    for line in [*lines, *INLINE.findall(text)]:
        line = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line.strip())
        if "..." in line or not re.match(r"(?:uv run (?:--locked )?)?stillhouse ", line):
            continue
        words = shlex.split(re.split(r" (?:&&|&$|\||>|;) ?", line)[0])
        yield words[words.index("stillhouse") + 1 :]


def parsed(words: list[str]) -> None:
    """Raises a usage error where a command or an option is none."""
    group: Any = typer.main.get_group(app)
    for point in points():
        group.commands.setdefault(point.name, load(point))
    command, rest, context = group, list(words), None
    while rest and hasattr(command, "resolve_command"):
        at = command.context_class(command, info_name="stillhouse", parent=context)
        _, child, rest = command.resolve_command(at, rest)
        command, context = child, at
    if rest:  # else the command is only named
        command.make_context("command", rest, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_on_a_page_are_ones(page: Path) -> None:
    text = page.read_text()
    blocks = list(commands(INLINE.sub("", text)))
    for words in commands(text):
        if words[-1] in ("--help", "--version"):
            continue
        try:
            parsed(words)
        except Exception as error:
            if type(error).__name__ not in SHORT or words in blocks:
                raise


def test_enough_of_them_are_looked_at() -> None:
    assert sum(1 for page in PAGES for _ in commands(page.read_text())) > 60


def test_a_wrong_one_is_found() -> None:
    with pytest.raises(Exception, match="No such option: --scales"):
        parsed(["run", "vision/distill", "--scales", "tiny"])
    with pytest.raises(Exception, match="No such command 'flow-run'"):
        parsed(["flow-run"])
