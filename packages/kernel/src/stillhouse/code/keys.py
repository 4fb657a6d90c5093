"""Code keys: of a stage, of a recipe, of any value."""

import contextlib
import dataclasses
import functools
import json
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from enum import Enum
from pathlib import Path
from typing import Any

from stillhouse.code.closure import KERNEL
from stillhouse.code.sources import sources
from stillhouse.recipe import OUTSIDE, Recipe, Stage

# what a stage of these classes saves has one of the specs in the field, or one of an input's
SPECS = {"stillhouse.stages.train:Train": "fresh", "stillhouse.federated.stage:Federate": "fresh"}
# what these save has no spec
NO_MODELS = {"stillhouse.stages.make:Make", "stillhouse.stages.evaluate:Evaluate"}
# gives a stage all that it has to run with; of what it imports, what no stage reaches keeps books
RUNNER = "stillhouse.runs"
BUILTIN, SPEC = "builtin:", "model.json"


def stage_modules(recipe: Recipe, stage: Stage, builds: Iterable[str] = ()) -> frozenset[str]:
    """The modules that a stage can reach: from what it holds, from what builds the models that it
    reads, and from `builds`, names in the specs of models from outside the recipe.
    """
    return sources().code.reached(stage_roots(recipe, stage) | _exact(builds)) | {RUNNER}


def stage_roots(recipe: Recipe, stage: Stage) -> set[str]:
    """The modules that a stage leads to directly."""
    builtin = (r.removeprefix(BUILTIN) for r in stage.inputs.values() if r.startswith(BUILTIN))
    return _held(stage) | _builders(recipe, stage) | _exact(builtin)


def code_key(modules: Iterable[str]) -> str:
    """sha256 of what modules say."""
    return sources().code.digest(modules)


def stage_code(recipe: Recipe, stage: Stage, builds: Iterable[str] = ()) -> str:
    """sha256 of what the modules say that a stage can reach."""
    return code_key(stage_modules(recipe, stage, builds))


def recipe_code(recipe: Recipe) -> str:
    """sha256 of what the modules say that any stage of a recipe can reach."""
    return code_key(frozenset[str]().union(*(stage_modules(recipe, s) for s in recipe.stages)))


def value_code(value: object) -> str:
    """sha256 of what the modules say that a value can reach."""
    return reached_code(_held(value))


def reached_code(names: Iterable[str]) -> str:
    """sha256 of what the modules say that those of these names can reach."""
    return code_key(sources().code.reached(names))


def code_version(package: str) -> str:
    """sha256 of what all modules of the kernel and of `package` say."""
    code = sources().code
    return code_key(code.whole(KERNEL) | code.whole(package))


def builds_in(folder: Path) -> tuple[str, ...]:
    """The first-party modules that the model.json of a folder, or of one in it, names."""
    named, found = sources().code.named, set[str]()
    for file in [folder / SPEC, *folder.glob(f"*/{SPEC}")]:
        # opening it says what is wrong with one that is no JSON
        with contextlib.suppress(OSError, ValueError):
            found |= {
                name for text in _texts(json.loads(file.read_text())) if (name := named(text))
            }
    return tuple(sorted(found))


def _texts(value: Any) -> Iterator[str]:  # Any: JSON
    match value:
        case str():
            yield value
        case dict():
            yield from (text for inner in value.values() for text in _texts(inner))
        case list():
            yield from (text for inner in value for text in _texts(inner))
        case _:
            return


def _exact(names: Iterable[str]) -> set[str]:
    """The modules that "module:function" names: it is looked up there and nowhere else."""
    code = sources().code
    return {each for name in names for each in code.whole(name.partition(":")[0])}


def _builders(recipe: Recipe, stage: Stage) -> set[str]:
    """What may build the models that a stage reads from others."""
    found: set[str] = set()
    for name in recipe.upstream(stage):
        above = recipe.stage(name)
        kind = f"{type(above).__module__}:{type(above).__qualname__}"
        if kind not in NO_MODELS:
            found |= _held(getattr(above, SPECS[kind]) if kind in SPECS else above)
            found |= _builders(recipe, above)
    return found


def _held(value: object) -> set[str]:
    """Modules of everything in a value that has a module, and those that its texts name."""
    code, found = sources().code, set[str]()
    for each in _inside(value):
        if not isinstance(each, str):
            found.add(str(getattr(each, "__module__", "")))
        elif not each.startswith(OUTSIDE) and (name := code.named(each)):
            found |= code.around(name)
    return found


def _inside(value: Any) -> Iterator[Any]:  # Any: whatever `digest.canonical` takes
    """Texts, functions and classes in a value, and the classes of what it holds."""
    match value:
        case str() | type() | types.FunctionType() | types.BuiltinFunctionType():
            yield value
        case functools.partial():
            yield from _all([value.func, value.args, value.keywords])
        case Enum():
            yield type(value)
        case Path():
            return
        case Mapping():
            yield from _all([*value.keys(), *value.values()])
        case Set() | Sequence():
            yield from _all(value)
        case _ if dataclasses.is_dataclass(value):
            yield type(value)
            yield from _all(getattr(value, f.name) for f in dataclasses.fields(value))
        case _ if hasattr(value, "model_dump"):
            yield type(value)
            yield from _all([value.model_dump(mode="json")])
        case _:
            return


def _all(values: Iterable[Any]) -> Iterator[Any]:  # Any: as above
    for value in values:
        yield from _inside(value)
