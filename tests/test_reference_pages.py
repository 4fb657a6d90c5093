"""docs/reference/: every public name of the kernel is on a page, once, and in the navigation."""

import re
import runpy
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import stillhouse
import stillhouse.federated
import stillhouse.objectives
import stillhouse.quantize
import stillhouse.search
import stillhouse.search.proxies

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
TOLD = [
    name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
]
SHOWN = {name.rpartition(".")[2] for name in TOLD}
PLUGINS = ("vision", "clip", "language", "diffusion", "landmarks", "sam", "pointcloud", "contracts")
# collections of what stands on the page by itself; told in words
IN_WORDS = {"DISTILLATION_METHODS", "COMPARISON", "METHODS"}


@pytest.mark.parametrize(
    "module",
    [
        stillhouse,
        stillhouse.objectives,
        stillhouse.search,
        stillhouse.search.proxies,
        stillhouse.quantize,
        stillhouse.federated,
    ],
    ids=lambda module: module.__name__,
)
def test_every_public_name_is_on_a_page(module: ModuleType) -> None:
    assert set(module.__all__) - IN_WORDS - SHOWN == set()


def test_what_is_told_in_words_is() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in IN_WORDS if f"`{name}`" not in text] == []


def test_no_name_is_on_two_pages() -> None:
    assert [name for name, count in Counter(TOLD).items() if count > 1] == []


def test_every_plugin_has_a_page() -> None:
    assert {f"{name}.md" for name in PLUGINS} <= {page.name for page in PAGES}


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    nav = yaml.safe_dump(yaml.safe_load(text)["nav"])
    assert [page.name for page in PAGES if f"reference/{page.name}" not in nav] == []


def test_docstrings_are_shown_as_they_are() -> None:
    code = runpy.run_path(str(ROOT / "docs" / "_site" / "prose.py"))
    text = 'Reads "<role>.<output>" [B, C], a * b; see `kd_loss` and\n`Term`:\n\n    x[0] = a * b'
    assert code["escaped"](text) == (
        'Reads "&lt;role>.&lt;output>" \\[B, C\\], a \\* b; see `kd_loss` and\n`Term`:\n\n'
        "    x[0] = a * b"
    )
