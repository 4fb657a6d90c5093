"""One vocabulary: what the field has a term for is called by it, in names, docstrings and help."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    file
    for folder in ("packages", "plugins", "flows")
    for file in (ROOT / folder).rglob("*.py")
    if "src" in file.relative_to(ROOT).parts
)
# word, as a part of a name or in a text -> what to write
WRITE = {
    "picture": "image; figure for what is plotted",
    "pictures": "images; figures for what is plotted",
    "ask": "query, request, prompt, read, need: what is done",
    "asks": "queries, requests, needs: what is done",
    "asked": "requested, queried, prompted, read: what is done",
    "asking": "querying, requesting, prompting",
    "said": "printed, logged, predicted, stated; message for an error's text",
    "told": "logged, given, recorded",
    "tell": "log, report, distinguish, show",
    "tells": "logs, reports, distinguishes, shows",
    "telling": "logging, reporting",
    "hear": "record, receive",
    "hears": "records, receives",
    "heard": "recorded, received, lines",
    "surest": "most confident",
    "awake": "trainable",
    "zoo": "detector family; distillation methods",
    "spare": "ground-truth sample",
    "spares": "ground-truth samples",
    "party": "client",
    "parties": "clients",
    "hunt": "search state",
    "adopt": "import or load a checkpoint",
    "shipped": "exported",
    "ships": "exports, deploys",
}
CLASSES = {
    "Turn": "PhaseState",
    "Party": "ClientProxy",
    "Hunt": "SearchState",
    "Place": "Position",
}
PHRASES = {
    "is not there": "not found, is missing",
    "are not there": "not found, are missing",
    "of your own": "your, custom",
}
# first-party and third-party are terms
TERM = re.compile(r"(first|third)[-_ ]part(y|ies)", re.IGNORECASE)
HELP = {"Field", "Option", "Argument"}
# (file, name or text that holds the word) -> why it stays
KERNEL = "packages/kernel/src/stillhouse"
LANGUAGE = "plugins/language/src/stillhouse_language"
EXCEPTIONS = {
    (f"{KERNEL}/data/stored.py", "tell"): "a method of Python's files",
    (f"{KERNEL}/report/document.py", "pictures"): "a key of every report.json, published ones too",
    (f"{LANGUAGE}/arte/tasks.py", "ask"): "a key of the tasks in data of finished runs",
    (f"{LANGUAGE}/recipes/arte_settings.py", "asked"): "a `--set` key of finished runs",
}


class Found(NamedTuple):
    file: str
    line: int
    text: str
    write: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text!r}; write {self.write}"


def parts(name: str) -> list[str]:
    """The words of an identifier."""
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", TERM.sub("", name))
    return [part for part in split.casefold().split("_") if part]


def named(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Identifiers that the module makes: of functions, classes, arguments and variables."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield node.lineno, name
            case ast.AsyncFunctionDef(name=name) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case _:
                pass


def described(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """First lines of docstrings, and what `--help` and `show` print of options and settings."""
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if text := ast.get_docstring(node):
                    yield node.body[0].lineno, text.partition("\n")[0]
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in HELP:
                for keyword in node.keywords:
                    if keyword.arg in ("help", "description"):
                        text = "".join(strings(keyword.value))
                        yield keyword.value.lineno, text
            case _:
                pass


def strings(node: ast.AST) -> Iterator[str]:
    yield from (
        one.value
        for one in ast.walk(node)
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    )


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every text in the code, docstrings too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def refused(code: str, file: str = "") -> Iterator[Found]:
    tree = ast.parse(code)
    for line, name in named(tree):
        if name.strip("_") in CLASSES:
            yield Found(file, line, name, CLASSES[name.strip("_")])
        yield from (Found(file, line, name, WRITE[p]) for p in parts(name) if p in WRITE)
    for line, text in described(tree):
        plain = re.findall(r"[a-z]+", TERM.sub("", re.sub(r"`[^`]*`", "", text)).casefold())
        yield from (Found(file, line, text, WRITE[word]) for word in plain if word in WRITE)
    for line, text in messages(tree):
        plain = " ".join(text.casefold().split())
        yield from (Found(file, line, text, w) for phrase, w in PHRASES.items() if phrase in plain)


def test_the_fields_words_are_written() -> None:
    found = [
        one
        for file in SOURCES
        for one in refused(file.read_text(), file.relative_to(ROOT).as_posix())
    ]
    assert found, "the sources are read"
    left = [str(one) for one in found if (one.file, one.text) not in EXCEPTIONS]
    assert not left, "\n".join(["the field has other words for these:", *left])
    stale = EXCEPTIONS.keys() - {(one.file, one.text) for one in found}
    assert not stale, f"nothing needs these exceptions any more: {sorted(stale)}"


@pytest.mark.parametrize(
    ("code", "write"),
    [
        ("class Turn: ...", "PhaseState"),
        ("class _Hunt: ...", "SearchState"),
        ("class WithPictures: ...", "images; figures for what is plotted"),
        ("def f(spare_rows): ...", "ground-truth sample"),
        ("self.told = 1", "logged, given, recorded"),
        ('"""Pictures of faces."""', "images; figures for what is plotted"),
        ('x: int = Field(1, description="of the surest " "rows")', "most confident"),
        ('"""Line."""\nraise E(f"{x} is not there; get it")', "not found, is missing"),
    ],
)
def test_a_word_is_found_and_the_fields_is_given(code: str, write: str) -> None:
    assert write in {one.write for one in refused(code)}


@pytest.mark.parametrize(
    "code",
    [
        "class Built: ...",
        "tasks = masked = outstanding = 1",
        "third_party = first_party = 1",
        '"""Modules of first-party code, and a third party\'s."""',
        '"""Line.\n\nWhat is asked here is below the first line."""',
        '"""Rows of `spare_boxes`, a column."""',
    ],
)
def test_terms_and_other_words_pass(code: str) -> None:
    assert not list(refused(code))
