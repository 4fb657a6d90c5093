"""The kernel knows no plugin: neither its name, nor its recipes', nor its scores'."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from stillhouse.domain import Domain, domains
from stillhouse.metrics import Lines, Metric
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Evaluate

KERNEL = Path(__file__).parents[1] / "packages" / "kernel" / "src" / "stillhouse"
# words that only one field uses, as parts of its scores' names
FIELD = {"miou", "nme", "bev", "cyclist", "pedestrian"}
# vision/distill is the example of the command line's help and errors; `stillhouse new` writes a
# recipe called distill; DisWOT's score and KnFu's rule are methods that the kernel itself holds
# (objectives/language.py has losses of long vocabularies)
ALLOWED = {"vision", "distill", "diswot", "knfu", "language", "clip"}


def inner(metric: Metric) -> Iterator[Metric]:
    for one in metric.lines.values() if isinstance(metric, Lines) else (metric,):
        yield from (one,) if one is metric else inner(one)


def names() -> tuple[set[str], set[str]]:
    """Of domains and recipes; of the scores that metrics of plugins alone declare."""
    places, kernel, plugins = set[str](), set[str](), set[str]()
    for name, domain in domains().items():
        assert isinstance(domain, Domain)
        for recipe in domain.recipes:
            places |= {name, recipe}
            made = make_recipe(f"{name}/{recipe}", make_settings(f"{name}/{recipe}", "tiny", {}))
            stages = [stage for stage in made.stages if isinstance(stage, Evaluate)]
            given = [m for stage in stages for m in (*stage.metrics, *stage.measures)]
            for metric in (one for outer in given for one in inner(outer)):
                own = type(metric).__module__.startswith("stillhouse.")
                (kernel if own else plugins).update(score.name for score in metric.scores())
    return places, plugins - kernel


def texts(tree: ast.Module) -> Iterator[str]:
    """Identifiers and strings, but docstrings: these cite the papers."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, holders) and node.body]
    docs = {id(statement.value) for statement in first if isinstance(statement, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.arg(arg=text):
                yield text
            case ast.ClassDef(name=text) | ast.FunctionDef(name=text) | ast.alias(name=text):
                yield text
            case ast.keyword(arg=str(text)):
                yield text
            case ast.Constant(value=str(text)) if id(node) not in docs:
                yield text
            case _:
                pass


def parts(text: str) -> set[str]:
    """The words of a text, as they stand and with the parts of each identifier."""
    whole = set(re.findall(r"\w+", text.casefold()))
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", text).casefold()
    return whole | {part for word in re.findall(r"\w+", split) for part in word.split("_")}


def test_no_word_of_a_plugin_stands_in_the_kernel() -> None:
    places, scores = names()
    assert {"landmarks", "pointcloud", "sam", "tinysam", "two_teacher"} <= places
    assert {part for score in scores for part in score.split("_")} >= FIELD
    # a score's name of one word may be an English word
    words = (places - ALLOWED) | FIELD | {score for score in scores if "_" in score}
    found = {
        f"{file.relative_to(KERNEL)}: {text[:60]!r}"
        for file in KERNEL.rglob("*.py")
        for text in texts(ast.parse(file.read_text()))
        if words & parts(text)
    }
    assert found == set()


def test_words_are_found_where_they_stand() -> None:
    code = '"""Of the sam."""\nclass SamLoss: ...\nx = {"click9_miou": 1}\ny.nme(bev_size=2)\n'
    found = set[str]().union(*(parts(text) for text in texts(ast.parse(code))))
    assert {"sam", "miou", "click9_miou", "nme", "bev"} <= found
    assert "of" not in found
