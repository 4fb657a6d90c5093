"""No package's modules import each other in a circle."""

import graphlib
from pathlib import Path

import pytest
from import_graph import PACKAGES, graph, modules


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_modules_import_each_other_in_no_circle(package: Path) -> None:
    found = graph(modules(package))
    assert found
    graphlib.TopologicalSorter(found).prepare()  # CycleError names the circle


def test_a_circle_is_found() -> None:
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
