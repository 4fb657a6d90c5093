"""Tables and durations as people read them."""

import os
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

HEAD = 12  # characters in which the head of a column of numbers is set
ENDLESS = 10_000


def print_table(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int = 200,
    numbers: Collection[int] = (),
) -> None:
    """A table on standard output: as wide as a terminal, or `width` where that is none.

    `numbers` are columns that are right-aligned and never broken. A table that would break a path
    over lines is as wide as its content.
    """
    table = _table(title, head, rows, numbers)
    columns = None if sys.stdout.isatty() else width
    text = _drawn(table, columns)
    words = {word for row in (head, *rows) for cell in row for word in cell.split()}
    if any(word not in text for word in words if os.sep in word):
        text = _drawn(table, ENDLESS)
    print(text)


def _table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int]
) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, name in enumerate(head):
        if i in numbers:
            table.add_column(textwrap.fill(name, HEAD), justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _drawn(table: "Table", width: int | None) -> str:
    from rich.console import Console

    console = Console(highlight=False, width=width, markup=False)
    with console.capture() as drawn:
        console.print(table)
    return "\n".join(line.rstrip() for line in drawn.get().splitlines())


def print_json(value: object) -> None:
    """A value, dataclasses included, as JSON on standard output."""
    import json
    from dataclasses import asdict, is_dataclass

    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    print(json.dumps(plain, indent=1))


def duration(seconds: float) -> str:
    """Seconds as "8.1 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def size(amount: int) -> str:
    """Bytes as "512 B", "3.4 MiB" or "1.2 GiB"."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if amount >= 1024**power:
            return f"{amount / 1024**power:.1f} {unit}"
    return f"{amount} B"
