"""One source file as a syntax tree: its digest, blind to comments, docstrings, positions and what
stands under TYPE_CHECKING, and the ways in which it reaches other modules.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeGuard

from stillhouse.digest import text_digest
from stillhouse.errors import PluginError

# calls by which code finds modules, or classes, that its text does not name
DYNAMIC = {
    *("import_module", "__import__", "run_module", "run_path", "resolve_name", "import_string"),
    *("locate", "walk_packages", "iter_modules", "spec_from_file_location", "entry_points"),
    "__subclasses__",
}
# the same, but for methods of other things with these names
BUILTIN = {"exec", "eval"}
# fields of no meaning at run time
SKIPPED = {"ctx", "kind", "type_comment"}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@dataclass(frozen=True, kw_only=True)
class Import:
    """`from module import name as bound`; without a name `import module`."""

    module: str
    name: str
    bound: str


@dataclass(frozen=True, kw_only=True)
class Syntax:
    """A module's source; a query of it raises PluginError where it is no Python."""

    name: str
    path: Path
    text: bytes
    package: bool  # whether it is an __init__.py

    @property
    def digest(self) -> str:
        """sha256 of the tree."""
        return self._walked.digest

    @property
    def strings(self) -> set[str]:
        """String constants without spaces."""
        return self._walked.strings

    @property
    def dynamic(self) -> bool:
        """Whether it finds modules by names that do not stand in its text."""
        return self._walked.dynamic

    @cached_property
    def imports(self) -> list[Import]:
        """Imports anywhere in the file, also inside functions, but under TYPE_CHECKING."""
        return [found for node in self._walked.imports for found in self._imported(node)]

    @cached_property
    def body(self) -> list[ast.stmt]:
        """The statements that run at import."""
        try:
            return ast.parse(self.text).body
        except (SyntaxError, ValueError) as error:
            syntax = isinstance(error, SyntaxError)
            line, reason = (f", line {error.lineno}", error.msg) if syntax else ("", error)
            raise PluginError(
                f"{self.path}{line}: {reason}; mend it: a stage's key covers the code that the "
                "stage can reach"
            ) from error

    @cached_property
    def definitions(self) -> dict[str, list[ast.stmt]]:
        """Classes and functions by name."""
        found: dict[str, list[ast.stmt]] = {}
        for node in self.body:
            if isinstance(node, Definition):
                found.setdefault(node.name, []).append(node)
        return found

    def bindings(self, *, typed: bool) -> dict[str, list[Import | None]]:
        """Names of the module -> the imports that bind them, None for a definition; empty where
        `from x import *` may bind any. `typed`: what stands under TYPE_CHECKING is what the
        module's __getattr__ gives.
        """
        found: dict[str, list[Import | None]] = {}
        for node in self.body:
            self._bind(node, found, typed=typed and "__getattr__" in self.definitions)
        return {} if "*" in found else found

    def _bind(self, node: ast.AST, found: dict[str, list[Import | None]], *, typed: bool) -> None:
        for each in self._imported(node):
            found.setdefault(each.bound, []).append(each)
        if isinstance(node, Definition):
            found.setdefault(node.name, []).append(None)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.setdefault(node.id, []).append(None)
        else:
            hidden = node.body if is_type_checking(node) and not typed else []
            for child in ast.iter_child_nodes(node):
                if child not in hidden:
                    self._bind(child, found, typed=typed)

    def _imported(self, node: ast.AST) -> Iterator[Import]:
        """What an import statement binds, relative names resolved; nothing for other nodes."""
        match node:
            case ast.Import():
                for alias in node.names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    yield Import(module=alias.name, name="", bound=bound)
            case ast.ImportFrom():
                module = self._absolute(node)
                for alias in node.names:
                    yield Import(module=module, name=alias.name, bound=alias.asname or alias.name)
            case _:
                return

    def _absolute(self, node: ast.ImportFrom) -> str:
        parts = self.name.split(".")
        # in an __init__ one dot is the package itself
        up = node.level - 1 if self.package else node.level
        base = parts[: len(parts) - up] if node.level else []
        return ".".join([*base, *filter(None, [node.module])])

    @cached_property
    def _walked(self) -> "_Walk":
        return _Walk(self.body, docs=b"__doc__" in self.text)


def is_type_checking(node: ast.AST) -> TypeGuard[ast.If]:
    """Whether a statement is `if TYPE_CHECKING:`."""
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            return True
        case _:
            return False


class _Walk:
    """One walk over a tree. `docs`: the code reads its docstrings, so they count."""

    def __init__(self, body: list[ast.stmt], *, docs: bool) -> None:
        self.docs = docs
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.strings: set[str] = set()
        self.dynamic = False
        self.words: list[str] = []
        self._body(body)
        self.digest = text_digest(" ".join(self.words))
        self.words.clear()

    def _body(self, body: list[ast.stmt]) -> None:
        self._list(body if self.docs or not _has_docstring(body) else body[1:])

    def _list(self, values: Sequence[object]) -> None:
        self.words.append("[")
        for value in values:
            self._write(value)
        self.words.append("]")

    def _write(self, value: object) -> None:
        """Class names, field names and constants in order. What is empty is left out: newer
        versions of Python add fields.
        """
        if isinstance(value, list):
            self._list(value)
        elif not isinstance(value, ast.AST):
            self.words.append(repr(value))
        elif is_type_checking(value):
            self._list(value.orelse)
        else:
            self._look(value)
            self.words.append(f"({type(value).__name__}")
            for name in value._fields:
                inner = getattr(value, name, None)
                if inner is not None and inner != [] and name not in SKIPPED:
                    self.words.append(name)
                    if name == "body" and isinstance(value, Definition):
                        self._body(inner)
                    else:
                        self._write(inner)
            self.words.append(")")

    def _look(self, node: ast.AST) -> None:
        match node:
            case ast.Constant(value=str() as text):
                if " " not in text:
                    self.strings.add(text)
            case ast.Import() | ast.ImportFrom():
                self.imports.append(node)
            case ast.Call():
                self.dynamic |= _is_dynamic(node)
            case ast.Attribute(value=ast.Name(id="sys"), attr="modules"):
                self.dynamic = True
            case _:
                return


def _has_docstring(body: list[ast.stmt]) -> bool:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *_]:
            return True
        case _:
            return False


def _is_dynamic(call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in DYNAMIC:
            # a string that names a module is looked at wherever it stands
            return not (call.args and _is_absolute(call.args[0]))
        case ast.Name(id=name):
            return name in BUILTIN
        case _:
            return False


def _is_absolute(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not str(node.value).startswith(".")
