"""A trained subset of a model, adapters or a head: saved without the base it was trained on.

The safetensors hold what the base has not with the same bits: what was trained, and what BatchNorm
counted. model.json says of the rest under which names the base has it, and names the base by its
digest and by the reference under which the stage had it. Loading puts both together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stillhouse.artifact import SPEC, WEIGHTS
from stillhouse.digest import known_digest
from stillhouse.errors import BadRecipe, CorruptArtifact, MissingData, StillhouseError
from stillhouse.json_files import brief, read_json
from stillhouse.loading import Places, memory_of, places_in, stored_tensors

AGAIN = "run the stage that made it again"


@runtime_checkable
class Wrapping(Protocol):
    """A network that holds its base's tensors under other names than the base does."""

    def base_names(self) -> Mapping[str, str]:
        """Of each tensor of the base in it: its name here, and in the base."""
        ...


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model a subset is trained on: its folder, its digest, and what a stage calls it."""

    folder: Path
    digest: str
    ref: str  # "stage.port", or a reference to what is outside the recipe


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The tensors to be saved, and of the others the names here and in the base."""

    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]


def subset_of(module: nn.Module, base: Base) -> Subset:
    """What a module has that its base has not with the same bits; of tied tensors the first."""
    state: dict[str, Tensor] = module.state_dict()
    of = _base_names(module, places_of(base.folder))
    same = {
        name: of[name]
        for name, tensor in stored_tensors(base_places(module, base))
        if _same_bits(state[name], tensor)
    }
    done = {memory_of(state[name]) for name in same}
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if memory_of(value) not in done:
            done.add(memory_of(value))
            tensors[name] = value.detach().contiguous()
    return Subset(tensors=tensors, names=same)


def base_places(module: nn.Module, base: Base) -> dict[str, tuple[Path, str]]:
    """Where the tensors lie that the base gives to a module; raises BadRecipe for none."""
    stored = places_of(base.folder)
    found = {own: stored[name] for own, name in _base_names(module, stored).items()}
    if not found:
        raise BadRecipe(
            f"base '{base.ref}' has none of the tensors of the {type(module).__name__} (it has "
            f"{', '.join(list(stored)[:3])} ...); say their names by a method `base_names`"
        )
    return found


def places_of(folder: Path, base: Path | None = None) -> Places:
    """Where the tensors of a model folder lie: in it, and in its base where it has one, which is at
    `base` or where its stage had it from.

    Raises MissingData where the base is not found or is another one, CorruptArtifact.
    """
    record = read_json(folder / SPEC, dict[str, Any], redo=AGAIN).get("base")  # Any: JSON values
    own = places_in(folder / WEIGHTS)
    if record is None:
        return own
    match record:
        case {"digest": str(digest), "from": str(ref), "names": dict(names)}:
            stored = places_of(_found(folder, digest, ref, base))
        case _:
            raise CorruptArtifact(f"{folder}: base: {brief(record)} names no model; {AGAIN}")
    if unknown := [name for name in names.values() if name not in stored]:
        raise CorruptArtifact(f"{folder}: its base has no tensor {brief(unknown[0])}; {AGAIN}")
    return {**{name: stored[in_base] for name, in_base in names.items()}, **own}


def _base_names(module: nn.Module, stored: Places) -> dict[str, str]:
    """The tensors of a module that a base gives: own names to the base's, which are the same where
    it wraps nothing, or where the base is wrapped alike.
    """
    wrapped = module.base_names() if isinstance(module, Wrapping) else {}
    pairs = [(own, name) for own in module.state_dict() for name in (wrapped.get(own, own), own)]
    # the first of each that the base has
    return {own: name for own, name in reversed(pairs) if name in stored}


def _same_bits(value: Tensor, stored: Tensor) -> bool:
    if value.shape != stored.shape:
        return False
    one, other = value.detach().contiguous(), stored.to(value.dtype).contiguous()
    # as bytes: NaN is not NaN
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _found(folder: Path, digest: str, ref: str, given: Path | None) -> Path:
    place = given or _place(folder, ref)
    what = f"{folder}: holds what was trained on a base ('{ref}', digest {digest[:12]}...)"
    if place is None or not place.is_dir():
        raise MissingData(
            f"{what}, which is not found; run its stage, or give its folder: "
            "load_model(folder, base=...)"
        )
    if (here := known_digest(place)) != digest:
        raise MissingData(f"{what}; {place} is another model ({here[:12]}...); {AGAIN}")
    return place


def _place(folder: Path, ref: str) -> Path | None:
    """The folder that a reference names, seen from a stage's output."""
    from stillhouse.inputs import raw_input
    from stillhouse.places import project_root
    from stillhouse.recipe import OUTSIDE

    if not ref.startswith(OUTSIDE):
        stage, _, port = ref.partition(".")
        return folder.absolute().parents[1] / stage / port  # <variant>/<stage>/<port>
    try:
        found = raw_input(ref, project_root())
    except StillhouseError:
        return None
    return found if isinstance(found, Path) else None
