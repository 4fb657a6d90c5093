"""Functions of Solidity files, found by tree-sitter's grammar, with their places in the file."""

import functools
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal["function", "constructor", "fallback", "modifier"]
KINDS: dict[str, Kind] = {
    "function_definition": "function",
    "constructor_definition": "constructor",
    "fallback_receive_definition": "fallback",
    "modifier_definition": "modifier",
}
QUERY = "\n".join(
    [*(f"({kind}) @{name}" for kind, name in KINDS.items()), "(ERROR) @error", "(MISSING) @error"]
)
HOLDERS = ("contract_declaration", "library_declaration", "interface_declaration")
PRAGMA = re.compile(r"pragma\s+solidity\s+([^;]+);")
# a function that stands alone is no program of the grammar: it is read as part of one. Atomic: a
# comment ends at its first end, not at a later one that has a function behind it
ALONE = re.compile(
    r"(?>\s+|//[^\n]*\n|/\*[\s\S]*?\*/)*(?:function|constructor|fallback|receive|modifier)\b"
)
HEAD, TAIL = "contract Fragment {", "\n}"


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A function with a body: its text, the contract and name it has, and the lines of the file
    from 1 on, both included. `error` is whether the grammar understood part of it only.
    """

    code: str
    kind: Kind
    contract: str
    function: str
    start_line: int
    end_line: int
    error: bool = False


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A file: its functions in order, the version that its pragma names ("" without one), and
    the lines at which the grammar met what it does not know.
    """

    fragments: tuple[Fragment, ...]
    pragma: str
    error_lines: tuple[int, ...]


def fragments(source: str) -> list[Fragment]:
    """The functions, modifiers and constructors with a body in a Solidity source, or in a function
    that stands alone, in order. Where the grammar does not understand a part, what lies around it
    is found all the same.
    """
    return list(parse(source).fragments)


def parse(source: str) -> Parsed:
    """A file read by the grammar (Solidity 0.4 to 0.8)."""
    alone = ALONE.match(source) is not None
    text = f"{HEAD}{source}{TAIL}" if alone else source
    # lone surrogates, of names that are no UTF-8, have no bytes
    raw = text.encode(errors="replace")
    parser, query = _grammar()
    root = parser.parse(raw).root_node
    errors = list[int]()
    if root.has_error:  # functions may stand anywhere, below nodes that are no contracts
        captured: dict[str, list[Any]] = _captures(query, root)
        errors = sorted({node.start_point[0] + 1 for node in captured.get("error", [])})
        nodes = ((k, node, _holder(node)) for k in get_args(Kind) for node in captured.get(k, []))
    else:
        nodes = _functions(root)
    found = [
        _fragment(raw, kind, node, "" if alone else holder)
        for kind, node, holder in nodes
        if node.child_by_field_name("body") is not None
    ]
    pragma = PRAGMA.search(source)
    return Parsed(
        fragments=tuple(sorted(found, key=lambda f: (f.start_line, f.end_line, f.function))),
        pragma=" ".join(pragma[1].split()) if pragma else "",
        error_lines=tuple(errors),
    )


def _functions(root: Any) -> Iterator[tuple[Kind, Any, str]]:  # Any: nodes
    """Functions of a tree without errors, with their contracts: they stand nowhere else."""
    for node in root.children:
        if node.type in HOLDERS:
            holder = _name(node)
            for below in node.child_by_field_name("body").children:
                if below.type in KINDS:
                    yield KINDS[below.type], below, holder
        elif node.type in KINDS:
            yield KINDS[node.type], node, ""


@functools.cache
def _grammar() -> tuple[Any, Any]:  # Any: tree-sitter's types are known where it is installed
    import tree_sitter_solidity
    from tree_sitter import Language, Parser, Query

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the grammar gives a number yet
        language = Language(tree_sitter_solidity.language())  # pyright: ignore[reportDeprecated]
    return Parser(language), Query(language, QUERY)


def _captures(query: Any, root: Any) -> dict[str, list[Any]]:  # Any: as above
    from tree_sitter import QueryCursor

    return QueryCursor(query).captures(root)


def _fragment(raw: bytes, kind: Kind, node: Any, holder: str) -> Fragment:  # Any: a node
    last = raw.count(b"\n", node.start_byte, node.end_byte - 1)
    line = node.start_point[0] + 1
    return Fragment(
        code=raw[node.start_byte : node.end_byte].decode(errors="replace"),
        kind=kind,
        contract=holder,
        function=_name(node) or kind,
        start_line=line,
        end_line=line + last,
        error=node.has_error,
    )


def _holder(node: Any) -> str:  # Any: a node
    above = node.parent
    while above is not None and above.type not in HOLDERS:
        above = above.parent
    return _name(above) if above is not None else ""


def _name(node: Any) -> str:  # Any: a node
    name = node.child_by_field_name("name")
    return name.text.decode(errors="replace") if name is not None else ""
