"""References between stages: "stage.port", which know the stage that they lead to."""

from typing import TYPE_CHECKING

from stillhouse.errors import BadRecipe, UnknownName

if TYPE_CHECKING:
    from stillhouse.recipe import Stage


class Ref(str):
    """The text "stage.port"; `stage` is what leaves it. It is hashed and compared as its text."""

    stage: "Stage"


def reference(stage: "Stage", port: str) -> Ref:
    """The reference to an output of a stage; raises UnknownName where there is no such port."""
    if port not in stage.outputs:
        raise UnknownName("output", port, stage.outputs, where=f"stage '{stage.name}'")
    ref = Ref(f"{stage.name}.{port}")
    ref.stage = stage
    return ref


def out(stage: "Stage") -> Ref:
    """The reference to the first output of a stage."""
    return reference(stage, stage.outputs[0])


def collected(*last: "Stage") -> tuple["Stage", ...]:
    """The stages and all that their references lead to, each once and behind what it reads.

    Raises BadRecipe where two different stages have one name.
    """
    found: dict[str, Stage] = {}
    for stage in last:
        _collect(stage, found)
    return tuple(found.values())


def _collect(stage: "Stage", found: dict[str, "Stage"]) -> None:
    if stage.name not in found:
        for ref in stage.inputs.values():
            if isinstance(ref, Ref):
                _collect(ref.stage, found)
        found[stage.name] = stage
    elif found[stage.name] is not stage and found[stage.name] != stage:
        raise BadRecipe(f"stage '{stage.name}': two different stages have this name")
