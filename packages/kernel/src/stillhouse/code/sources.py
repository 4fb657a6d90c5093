"""First-party sources as this process first saw them, and which of them changed since."""

import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stillhouse.code.closure import KERNEL, Code
from stillhouse.code.syntax import Syntax
from stillhouse.errors import PluginError
from stillhouse.trusted import trusted_packages

# cli, report and testing do not change what a stage computes
NOT_CODE = ("cli", "report", "testing")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The code, and the modules that were loaded from it: what becomes of their files later
    changes nothing.
    """

    code: Code
    known: set[str]


def sources() -> Sources:
    """The sources of the kernel and of every package that declares a domain, read once."""
    return snapshot(_roots(tuple(sys.path)))


@functools.cache
def snapshot(roots: tuple[tuple[str, Path], ...]) -> Sources:
    """The sources of packages at these roots as they are when they are first read."""
    modules = read(dict(roots))
    return Sources(code=Code(modules=modules), known=_loaded(modules))


@functools.cache
def _roots(path: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:  # noqa: ARG001  the cache's key
    named = ((name, source_root(name)) for name in sorted(trusted_packages()))
    return tuple((name, root) for name, root in named if root)


def source_root(package: str) -> Path | None:
    """The folder (or single file) of a top-level package, which is not imported; None where it has
    none.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.has_location and spec.origin else None


def read(roots: Mapping[str, Path]) -> Mapping[str, Syntax]:
    """The modules below the folders (or in the single files) of packages, but NOT_CODE, by name."""
    return {
        syntax.name: syntax for package, root in roots.items() for syntax in _files(package, root)
    }


def _files(package: str, root: Path) -> Iterator[Syntax]:
    for file in [root] if root.is_file() else sorted(root.rglob("*.py")):
        inside = () if root.is_file() else file.relative_to(root).with_suffix("").parts
        init = inside[-1:] == ("__init__",)
        parts = (package, *(inside[:-1] if init else inside))
        if not (package == KERNEL and parts[1:2] and parts[1] in NOT_CODE):
            yield Syntax(name=".".join(parts), path=file, text=file.read_bytes(), package=init)


def changed_code(reached: Iterable[str]) -> list[str]:
    """The files of those modules that this process may have loaded after they had changed."""
    seen = sources()
    modules = {name: seen.code.modules[name] for name in reached}
    loaded = _loaded(modules)
    changed = {name for name in loaded - seen.known if _changed(modules[name])}
    seen.known.update(loaded - changed)
    tops = {name.partition(".")[0] for name in modules}
    new = {name for name in _loaded(sys.modules) if name.partition(".")[0] in tops}
    new = {name for name in new - set(seen.code.modules) if _is_code(name)}
    return sorted(map(_inside, changed | new))


def _changed(syntax: Syntax) -> bool:
    """Whether a file says something else than when it was read."""
    try:
        text = syntax.path.read_bytes()
    except OSError:
        return True
    if text == syntax.text:
        return False
    now = Syntax(name=syntax.name, path=syntax.path, text=text, package=syntax.package)
    try:
        return now.digest != syntax.digest
    except PluginError:
        return True


def _loaded(names: Iterable[str]) -> set[str]:
    return {name for name in names if name in sys.modules}


def _is_code(name: str) -> bool:
    """Whether a loaded module of a first-party package is a file that counts."""
    package, _, inner = name.partition(".")
    return not (package == KERNEL and inner.partition(".")[0] in NOT_CODE) and bool(
        getattr(sys.modules[name], "__file__", "")
    )


def _inside(name: str) -> str:
    """A module's file relative to what holds its package."""
    file = str(getattr(sys.modules[name], "__file__", "") or "")
    init = Path(file).name == "__init__.py"
    return f"{name.replace('.', '/')}{'/__init__' if init else ''}.py"
