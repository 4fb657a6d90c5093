"""First lines of docstrings, read without importing."""

import sys

import pytest

from stillhouse.cli.sources import summary

FILE = '''
"""The file."""


def told():
    """The function.

    More."""


def mute(): ...
'''


@pytest.fixture
def package(site):
    folder = site / "unimported" / "inner"
    folder.mkdir(parents=True)
    (site / "unimported" / "__init__.py").write_text("raise RuntimeError\n")
    (folder / "__init__.py").write_text('"""Inner.\n\nMore."""\n')
    (folder / "file.py").write_text(FILE)
    (folder / "broken.py").write_text("def\n")
    return site


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("unimported.inner.file:told", "The function."),
        ("unimported.inner.file:mute", "The file."),
        ("unimported.inner.file:not_there", "The file."),
        ("unimported.inner:anything", "Inner."),
        ("unimported.inner.broken:told", ""),
        ("unimported.inner.nothing:told", ""),
        ("no_such_package_at_all:told", ""),
        ("sys:exit", ""),
    ],
)
def test_summary(package, target: str, expected: str) -> None:
    assert summary(target) == expected
    assert "unimported" not in sys.modules
