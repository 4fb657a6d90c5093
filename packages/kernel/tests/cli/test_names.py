"""The public names of `stillhouse`: there, typed, and imported only when used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stillhouse


def typed_names() -> dict[str, str]:
    """Name -> module of the imports that type checkers read."""
    tree = ast.parse(Path(stillhouse.__file__).read_text())
    blocks = (node for node in tree.body if isinstance(node, ast.If))
    imports = (node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom))
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_every_public_name_is_what_type_checkers_read() -> None:
    assert sorted(typed_names()) == sorted(stillhouse.__all__)
    for name, module in typed_names().items():
        assert getattr(stillhouse, name) is getattr(sys.modules[module], name)
        assert name in dir(stillhouse)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'stillhouse' has no attribute 'distil'"):
        _ = stillhouse.distil


def test_a_domain_can_be_declared_without_torch() -> None:
    program = "import sys; from stillhouse import Domain; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
