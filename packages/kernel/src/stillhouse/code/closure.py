"""The modules that code can reach, by a static walk over import statements and the strings that
name modules.
"""

import contextlib
import gc
from collections.abc import Generator, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from stillhouse.code.effects import has_effect, is_harmless
from stillhouse.code.syntax import Import, Syntax
from stillhouse.digest import text_digest
from stillhouse.errors import PluginError

KERNEL = "stillhouse"
# modules of the kernel that import by name: what they are given are openers, which the module
# itself lists, and names in a stage, in its inputs or in a domain, which `keys` looks at; `sources`
# only sees what is loaded
DOORS = {f"{KERNEL}.{name}" for name in ("artifact", "code.sources", "domain", "trusted")}


@contextlib.contextmanager
def _uncollected() -> Generator[None]:
    """Without garbage collection: for each few hundred of the many small objects of a syntax tree
    it would look at all that torch has made, which doubles the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True, kw_only=True)
class Code:
    """First-party modules by name."""

    modules: Mapping[str, Syntax]
    doors: Set[str] = frozenset(DOORS)
    _edges: dict[str, tuple[frozenset[str], tuple[str, ...]]] = field(
        default_factory=dict[str, tuple[frozenset[str], tuple[str, ...]]]
    )
    _effects: dict[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])

    def digest(self, reached: Iterable[str]) -> str:
        """sha256 over the syntax of modules and where the names that they import are defined."""
        lines = (
            " ".join([name, self.modules[name].digest, *self._reaches(name)[1]])
            for name in sorted(reached)
        )
        return text_digest("\n".join(lines))

    def reached(self, roots: Iterable[str]) -> frozenset[str]:
        """The modules that `roots` can reach, with themselves; a name that is none is left out.

        Modules of the same packages that do something when they are imported are among them.
        """
        found: set[str] = set()
        todo = [name for name in roots if name in self.modules]
        with _uncollected():
            while todo:
                name = todo.pop()
                if name not in found:
                    found.add(name)
                    todo += self._reaches(name)[0] | self._acting(name.partition(".")[0])
        return frozenset(found)

    def whole(self, package: str) -> set[str]:
        """A package with all below it; a module alone."""
        return {n for n in self.modules if n == package or n.startswith(f"{package}.")}

    def named(self, text: str) -> str:
        """The module that "module:name" or "package.module.name" begins with; empty for other
        text, as for the name of a package alone, which is a word.
        """
        module = text.partition(":")[0]
        while module not in self.modules and "." in module:
            module = module.rpartition(".")[0]
        return module if module in self.modules and (module != text or "." in module) else ""

    def around(self, name: str) -> set[str]:
        """The package that holds a module, whole; a package itself."""
        return self.whole(name if self.modules[name].package else name.rpartition(".")[0] or name)

    def _acting(self, package: str) -> frozenset[str]:
        if package not in self._effects:
            self._effects[package] = frozenset(n for n in self.whole(package) if self._acts(n))
        return self._effects[package]

    def _acts(self, name: str) -> bool:
        try:
            return has_effect(self.modules[name], self._harmless)
        except PluginError:  # no Python: nothing can import it
            return False

    def _harmless(self, module: str, name: str, called: bool) -> bool:
        for home, inner in self._definitions(module, name):
            found = self.modules.get(home)
            if found is None or not is_harmless(found, inner, called, self._harmless):
                return False
        return bool(self._definitions(module, name))

    def _reaches(self, name: str) -> tuple[frozenset[str], tuple[str, ...]]:
        """The modules that one module leads to, and what its names mean."""
        if name not in self._edges:
            syntax, found, meanings = self.modules[name], set[str](), set[str]()
            for each in syntax.imports:
                found |= self._imported(each, meanings)
            found |= self._by_string(syntax)
            if syntax.dynamic and name not in self.doors:
                found |= self.whole(name.partition(".")[0])
            self._edges[name] = frozenset(found), tuple(sorted(meanings))
        return self._edges[name]

    def _imported(self, each: Import, meanings: set[str]) -> set[str]:
        if each.module not in self.modules:
            return set()
        if not each.name:  # `import package.module` binds the package
            top = each.module.partition(".")[0]
            return self.whole(each.module if each.bound != top else top)
        if not self.modules[each.module].package:
            return {each.module}
        found: set[str] = set()
        for home, inner in self._definitions(each.module, each.name):
            meanings.add(f"{each.module}:{each.name}={home}:{inner}")
            found |= {home} if inner else self.whole(home)
        return found

    def _by_string(self, syntax: Syntax) -> set[str]:
        """What strings name: the package that holds it, but in the kernel the module alone."""
        named = {text: name for text in syntax.strings if (name := self.named(text))}
        if syntax.name.partition(".")[0] != KERNEL:
            return {each for name in named.values() for each in self.around(name)}
        # a name that is no module's is a group of entry points, or of records in a log
        exact = {name for text, name in named.items() if text.partition(":")[0] == name}
        return {each for name in exact for each in self.whole(name)}

    def _definitions(self, module: str, name: str) -> set[tuple[str, str]]:
        """Where a name of a module is defined, as (module, name), through what packages import
        from elsewhere; (module, "") for a module, or where that cannot be seen.
        """
        return set(self._follow(module, name, set()))

    def _follow(
        self, module: str, name: str, seen: set[tuple[str, str]]
    ) -> Iterator[tuple[str, str]]:
        syntax = self.modules.get(module)
        if syntax is None or (module, name) in seen:
            return
        if not syntax.package:
            yield module, name
            return
        seen.add((module, name))
        bound = syntax.bindings(typed=module.partition(".")[0] == KERNEL).get(name, [])
        for each in bound:
            if each is None:
                yield module, name
            elif not each.name:
                yield each.module, ""
            else:
                yield from self._follow(each.module, each.name, seen)
        if f"{module}.{name}" in self.modules:
            yield f"{module}.{name}", ""
        elif not bound:  # `*`, or made on demand
            yield module, ""
