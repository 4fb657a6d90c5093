"""What a package says of itself, read from its source text: nothing is imported."""

import ast
import importlib.util
from pathlib import Path


def summary(target: str) -> str:
    """First line of the docstring of "module:name", else of the module; empty without one."""
    module, _, name = target.partition(":")
    try:
        file = _source(module)
        tree = ast.parse(file.read_text()) if file else None
    except (OSError, SyntaxError, ValueError):
        return ""
    if tree is None:
        return ""
    nodes = (
        n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name
    )
    text = next(filter(None, map(ast.get_docstring, nodes)), None) or ast.get_docstring(tree) or ""
    return text.partition("\n")[0]


def _source(module: str) -> Path | None:
    """The file of a module; walked by hand: `find_spec` of a submodule imports its parents."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    if not rest:
        return path
    path = path.parent.joinpath(*rest)
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)
