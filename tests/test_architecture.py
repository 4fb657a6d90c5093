"""docs/architecture.md draws packages, their rooms and what imports what: no more and no less."""

import graphlib
import re

import pytest
from import_graph import PACKAGES, ROOT, graph, modules

PAGE = ROOT / "docs" / "architecture.md"
BOX = re.compile(r"^ *(\w+)\[", re.MULTILINE)
ARROW = re.compile(r"^ *(\w+) --> (\w+(?: & \w+)*)$", re.MULTILINE)
SHARED = "kernel_top"  # what lies beside the kernel's rooms: all of them share it, it has no box
Edges = set[tuple[str, str]]


def drawn(page: str) -> tuple[set[str], Edges]:
    """The boxes and the arrows of a page."""
    found = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert found
    arrows = ARROW.findall(found[1])
    assert len(arrows) == found[1].count("-->")
    edges = {(one, other) for one, others in arrows for other in others.split(" & ")}
    return set(BOX.findall(found[1])), edges


def place(module: str, folders: set[str]) -> tuple[str, str]:
    """The package of a module and its box: a plugin, or a room of the kernel or of flows."""
    package, _, rest = module.partition(".")
    short = package.removeprefix("stillhouse_") if "_" in package else "kernel"
    if short not in ("kernel", "flows"):
        return short, short
    room = rest.partition(".")[0]
    return short, f"{short}_{room if f'{package}.{room}' in folders else 'top'}"


@pytest.fixture(scope="module")
def source() -> tuple[set[str], Edges]:
    """The boxes and the arrows of the source: between packages, and between rooms of one."""
    files = {name: file for package in PACKAGES for name, file in modules(package).items()}
    folders = {name for name, file in files.items() if file.name == "__init__.py"}
    places = {name: place(name, folders) for name in files}
    edges: Edges = set()
    for name, others in graph(files).items():
        for other in others:
            ours, theirs = places[name], places[other]
            pair = zip(ours, theirs, strict=True)
            edges.add(next(((a, b) for a, b in pair if a != b), (SHARED, SHARED)))
    boxes = {box for _, box in places.values()} - {SHARED}
    return boxes, {edge for edge in edges if SHARED not in edge}


def test_every_package_and_room_is_drawn(source: tuple[set[str], Edges]) -> None:
    assert drawn(PAGE.read_text())[0] == source[0]


def test_the_arrows_are_the_imports(source: tuple[set[str], Edges]) -> None:
    page = drawn(PAGE.read_text())[1]
    assert page - source[1] == set(), "drawn, but nothing imports so"
    assert source[1] - page == set(), "imported, but not drawn"


def test_rooms_of_flows_import_each_other_in_no_circle(source: tuple[set[str], Edges]) -> None:
    rooms: dict[str, set[str]] = {}
    for one, other in source[1]:
        if other.startswith("flows_"):
            rooms.setdefault(one, set()).add(other)
    assert len(rooms) > 5
    graphlib.TopologicalSorter(rooms).prepare()  # CycleError names the circle


def test_an_arrow_is_read_with_all_it_leads_to() -> None:
    page = '```mermaid\nflowchart TD\n  subgraph x["X"]\n    a["A"]\n  end\n  a --> b & c\n```'
    assert drawn(page) == ({"a"}, {("a", "b"), ("a", "c")})
