"""An extension of griffe: our docstrings are prose with `code` in it, not Markdown; the signs that
Markdown would read otherwise ("<role>", "a * b", "[B, C]") are escaped for mkdocstrings.
"""

import re
from typing import Any

from griffe import Extension, Object

CODE = re.compile(r"(`[^`]*`)")
SIGNS = re.compile(r"([*_\[\]])")


def escaped(text: str) -> str:
    """The text as Markdown that shows it; code and indented examples stay."""
    parts = CODE.split(text)
    parts[::2] = ["\n".join(map(_line, part.split("\n"))) for part in parts[::2]]
    return "".join(parts)


def _line(line: str) -> str:
    return line if line.startswith("    ") else SIGNS.sub(r"\\\1", line.replace("<", "&lt;"))


class Prose(Extension):
    """Escapes each docstring once its package is read."""

    def on_object(self, *, obj: Object, **others: Any) -> None:  # Any: griffe's own arguments
        if obj.docstring is not None:
            obj.docstring.value = escaped(obj.docstring.value)
