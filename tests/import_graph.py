"""What the packages' modules import when they are imported, read from their source."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(
    path.parent
    for pattern in (
        "packages/*/src/*/__init__.py",
        "plugins/*/src/*/__init__.py",
        "flows/src/*/__init__.py",
    )
    for path in ROOT.glob(pattern)
)


def modules(package: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """What is imported when the module is: not in functions, not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                continue
            case ast.If() if "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            case ast.ImportFrom(module=str(module)):
                yield module
                yield from (f"{module}.{name.name}" for name in node.names)
            case ast.Import():
                yield from (name.name for name in node.names)
            case _:
                yield from imported(node)


def graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module -> those of `files` that it imports."""
    found = {
        name: {other for other in imported(ast.parse(file.read_text())) if other in files} - {name}
        for name, file in files.items()
    }
    # a package that is named where one of its modules is imported from is no import of its names
    for name, others in found.items():
        found[name] = {o for o in others if not any(p.startswith(f"{o}.") for p in others | {name})}
    return found
