"""What importing a module does beyond defining its own names: a registry filled, another module's
attribute set. Whatever is not surely harmless counts as such an effect.
"""

import ast
import builtins
import sys
from collections.abc import Callable, Iterable, Mapping

from stillhouse.code.syntax import Definition, Function, Syntax, is_type_checking

# libraries whose functions, as decorators or values of constants, and base classes enlist nothing
HARMLESS = {
    *sys.stdlib_module_names,
    *("PIL", "jaxtyping", "matplotlib", "mmengine", "numpy", "onnx", "pydantic", "safetensors"),
    *("torch", "torchvision", "typer", "typing_extensions", "yaml"),
}
# ... but for those whose names say so
ENLISTING = {"add_safe_globals", "custom_op", "define", "filterwarnings", "impl", "patch"}
# methods of plain values that change nothing
CHANGING = {"clear", "pop", "popitem", "setdefault", "update"}
PURE = {n for kind in (str, bytes, dict, tuple, frozenset, float) for n in dir(kind)} - CHANGING
# what Python calls when a class is subclassed, and when it is made
SUBCLASSED = {"__init_subclass__", "__set_name__"}
MADE = {"__post_init__", "__init__", "__new__"}
# `harmless(module, name, called)`: the same question about a name of another module
Lookup = Callable[[str, str, bool], bool]


def has_effect(syntax: Syntax, harmless: Lookup) -> bool:
    """Whether a statement that runs at import may act outside the module."""
    return _Scan(syntax, harmless).any(syntax.body)


def is_harmless(syntax: Syntax, name: str, called: bool, harmless: Lookup) -> bool:
    """Whether subclassing the class `name` of this module, or calling it or the function `name`,
    acts on nothing but its own values.
    """
    found, scan = syntax.definitions.get(name, []), _Scan(syntax, harmless)
    return bool(found) and all(scan.definition(node, called) for node in found)


class _Scan:
    """One module's statements at import; names are looked up in its imports and definitions."""

    def __init__(self, syntax: Syntax, lookup: Lookup) -> None:
        self.syntax, self.lookup = syntax, lookup
        self.imports: Mapping[str, tuple[str, str]] = {
            found.bound: (found.module, found.name) for found in syntax.imports
        }

    def any(self, statements: Iterable[ast.AST]) -> bool:
        return any(map(self.statement, statements))

    def statement(self, node: ast.AST) -> bool:
        """Whether a statement, or one inside it that runs with it, has an effect."""
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
                return self.decorated(node) or self.values(defaults)
            case ast.ClassDef():
                bases = all(self.harmless(base, False) for base in _bases(node))
                return self.decorated(node) or not bases or self.any(node.body)
            case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.Pass():
                return False
            case ast.Assign(targets=targets) | ast.Delete(targets=targets):
                return any(map(self.outside, targets)) or self.values([node])
            case ast.AnnAssign() | ast.AugAssign() | ast.For():
                inner = [*node.body, *node.orelse] if isinstance(node, ast.For) else []
                return self.outside(node.target) or self.values([node]) or self.any(inner)
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                return False  # a process of its own
            case ast.If() if is_type_checking(node):
                return self.any(node.orelse)
            case ast.If() | ast.Try():
                return self.any(ast.iter_child_nodes(node))
            case ast.ExceptHandler():
                return self.any(node.body)
            case ast.Raise() | ast.Assert():
                return False
            case ast.expr():  # a condition
                return self.values([node])
            case _:  # a call whose result nobody keeps, `with`, `while` ...
                return True

    def definition(self, node: ast.stmt, called: bool) -> bool:
        """As `is_harmless`, of a class or function of this module."""
        match node:
            case ast.ClassDef():
                hooks = SUBCLASSED | (MADE if called else set())
                ran = [m for m in node.body if isinstance(m, Function) and m.name in hooks]
                return all(self.harmless(base, called) for base in _bases(node)) and all(
                    called and m.name in MADE and self.quiet(m) for m in ran
                )
            case ast.FunctionDef():
                return called and not node.decorator_list and self.quiet(node)
            case _:
                return False

    def quiet(self, function: Function) -> bool:
        """Whether the body of a function changes nothing but its own variables."""
        arguments = {arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)}
        nodes = list(ast.walk(ast.Module(body=function.body, type_ignores=[])))
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        return all(self._quiet(node, arguments | stored, stored) for node in nodes)

    def _quiet(self, node: ast.AST, local: set[str], own: set[str]) -> bool:
        match node:
            case ast.Global() | ast.Nonlocal() | ast.Import() | ast.ImportFrom():
                return False
            case ast.Subscript(value=value, ctx=ast.Store() | ast.Del()):
                return isinstance(value, ast.Name) and value.id in own
            case ast.Attribute(value=value, ctx=ast.Store() | ast.Del()):
                return isinstance(value, ast.Name) and (value.id in own or value.id == "self")
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)) if name in own:
                return attr in PURE or attr in {"add", "append", "extend", "insert"}
            case ast.Call(func=ast.Attribute(value=value, attr=attr)):
                return attr in PURE or (not _holds(value, local) and self.harmless(node.func, True))
            case ast.Call(func=ast.Name(id=name)) if name in local:
                return False
            case ast.Call(func=func):
                return self.harmless(func, True)
            case _:
                return True

    def decorated(self, node: Definition) -> bool:
        return not all(self.harmless(decorator, True) for decorator in node.decorator_list)

    def values(self, nodes: Iterable[ast.AST]) -> bool:
        """Whether an expression calls something that is not surely harmless."""
        calls = [n.func for node in nodes for n in ast.walk(node) if isinstance(n, ast.Call)]
        return not all(
            (isinstance(f, ast.Attribute) and f.attr in PURE) or self.harmless(f, True)
            for f in calls
        )

    def harmless(self, node: ast.expr, called: bool) -> bool:
        """Whether a base class, or a decorator or function that is `called`, enlists nothing."""
        match node:
            case ast.Call(func=inner) | ast.Subscript(value=inner):
                return self.harmless(inner, called)
            case ast.Attribute(value=inner, attr=attr):
                return not _enlists(attr) and self.harmless(inner, called)
            case ast.Name(id=name):
                return not _enlists(name) and self.known(name, called)
            case ast.Constant() | ast.JoinedStr():
                return True
            case _:
                return False

    def known(self, name: str, called: bool) -> bool:
        if name in self.imports:
            module, inner = self.imports[name]
            return module.partition(".")[0] in HARMLESS or self.lookup(module, inner, called)
        if name in self.syntax.definitions:
            return self.lookup(self.syntax.name, name, called)
        return hasattr(builtins, name) or self.made(name)

    def made(self, name: str) -> bool:
        """Whether a variable of the module is a value of its own, no other name for one."""
        values = [
            node.value
            for node in self.syntax.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name) and target.id == name
        ]
        aliases = (ast.Name, ast.Attribute, ast.Subscript)
        return bool(values) and not any(isinstance(value, aliases) for value in values)

    def outside(self, target: ast.expr) -> bool:
        """Whether an assignment changes what another module holds."""
        match target:
            case ast.Tuple(elts=inner) | ast.List(elts=inner):
                return any(map(self.outside, inner))
            case ast.Attribute(value=value) | ast.Subscript(value=value):
                return not isinstance(value, ast.Name) or not self.made(value.id)
            case _:
                return False


def _bases(node: ast.ClassDef) -> list[ast.expr]:
    """Base classes and metaclass."""
    return [*node.bases, *(k.value for k in node.keywords if k.arg == "metaclass")]


def _enlists(name: str) -> bool:
    return name in ENLISTING or name.lower().startswith(("register", "enlist"))


def _holds(node: ast.expr, local: set[str]) -> bool:
    """Whether an expression begins with a local variable."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return isinstance(node, ast.Name) and node.id in local
