"""What a run was made from, in digests that two runs are compared by.

`python -m stillhouse_flows.promotion.inputs REQUEST`, called in a prepared workspace with its code,
prints what the recipe would read there now.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stillhouse.digest import text_digest
from stillhouse.errors import MissingData
from stillhouse.inputs import outside
from stillhouse.recipe import OUTSIDE
from stillhouse.report.document import Document
from stillhouse_flows.data.pinned import Pin, below, listing
from stillhouse_flows.processes.querying import answer
from stillhouse_flows.promotion.gate import outside_digests, rows_of_recipe, scores_of_recipe

DATA = "data:"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Settings, code, and a digest of everything read from outside the recipe."""

    variant: str
    settings: Mapping[str, Any]  # Any: JSON values; what differs from the scale's preset
    code: str
    data: str  # the data version; empty where none is pinned
    outside: Mapping[str, str]  # "data:cifar10-subset" -> digest


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a recipe would read now, before the data version is looked at; and its report's rows."""

    inputs: Inputs
    rows: tuple[str, ...]
    exported: tuple[str, ...]  # rows of the student that the recipe exports
    method: str  # the row that is the system itself; "" where the recipe names none
    scores: Mapping[str, tuple[str, ...]]  # by row, the scores that it may have


def inputs_from(record: Mapping[str, Any]) -> Inputs:  # Any: JSON
    """The `Inputs` that were written as JSON."""
    return Inputs(**{key: record[key] for key in Inputs.__dataclass_fields__})


def reading_from(text: str) -> Reading:
    """The `Reading` that this module printed."""
    record = json.loads(text)
    return Reading(
        inputs=inputs_from(record["inputs"]),
        rows=tuple(record["rows"]),
        exported=tuple(record["exported"]),
        method=record["method"],
        scores={row: tuple(scores) for row, scores in record["scores"].items()},
    )


def inputs_of(report: Document, pinned: Pin | None, cache: Path) -> Inputs:
    """What a finished run was made from."""
    read = Inputs(
        variant=report.variant,
        settings=report.settings,
        code=report.lineage.code,
        data="",
        outside=outside_digests(report),
    )
    return with_data(read, pinned, cache)


def with_data(inputs: Inputs, pinned: Pin | None, cache: Path) -> Inputs:
    """`inputs` with the digests of what they read under data/ at a data version.

    Taken from the version's listing, so that nothing need be here; without it, the version's own.
    """
    known = listing(cache, pinned) if pinned else None
    version = pinned.md5 if pinned else ""
    digests = {
        ref: _part(known, ref.removeprefix(DATA)) if known else version
        for ref in inputs.outside
        if ref.startswith(DATA)
    }
    return replace(inputs, data=version, outside={**inputs.outside, **digests})


def _part(known: Mapping[str, str], path: str) -> str:
    return text_digest("\n".join(f"{name} {known[name]}" for name in sorted(below(known, path))))


def changes(old: Inputs, new: Inputs, *, code: bool) -> list[str]:
    """What differs, in words; `code` says whether other code counts."""
    found: list[str] = []
    if old.variant != new.variant:
        found.append(f"variant {old.variant} -> {new.variant}")
    found += _settings(old.settings, new.settings)
    for ref in sorted({*old.outside, *new.outside}):
        before, after = old.outside.get(ref, ""), new.outside.get(ref, "")
        same_version = ref.startswith(DATA) and before and after and old.data == new.data
        if before != after and not same_version:
            found.append(f"{ref} {before[:8] or 'not read'} -> {after[:8] or 'not read'}")
    if code and old.code != new.code:
        found.append(f"code {old.code[:8]} -> {new.code[:8]}")
    return found


def _settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterable[str]:  # Any: JSON
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            values = [json.dumps(each[key]) if key in each else "preset" for each in (old, new)]
            yield f"setting {key} {values[0]} -> {values[1]}"


def read(root: Path, project: Path, ref: str) -> Reading:
    """What RECIPE@VARIANT would read in `root`, or in `project` where git ignores it."""
    from stillhouse.code import recipe_code
    from stillhouse.settings import find_settings, make_recipe

    name, settings = find_settings(ref, root, root / "runs")
    recipe = make_recipe(name, settings)
    refs = {r for s in recipe.stages for r in s.inputs.values() if r.startswith(OUTSIDE)}
    inputs = Inputs(
        variant=settings.variant(),
        settings=settings.overrides(),
        code=recipe_code(recipe),
        data="",
        outside={r: "" if r.startswith(DATA) else _digest(r, root, project) for r in sorted(refs)},
    )
    return Reading(
        inputs=inputs,
        rows=tuple(recipe.rows),
        exported=rows_of_recipe(recipe),
        method=recipe.method,
        scores=scores_of_recipe(recipe),
    )


def _digest(ref: str, root: Path, project: Path) -> str:
    try:
        return outside(ref, root).digest
    except MissingData:
        return outside(ref, project).digest


def main(argv: Sequence[str]) -> int:
    request = json.loads(argv[0])
    return answer(
        lambda: json.dumps(asdict(read(Path.cwd(), Path(request["project"]), request["ref"])))
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
