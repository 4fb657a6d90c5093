"""What the ports of a stage hold: roles and data, each refused where it is the other."""

from collections.abc import Mapping

from torch import nn

from stillhouse.artifact import Artifact, Built
from stillhouse.data.data import Data
from stillhouse.errors import BadRecipe, UnknownName
from stillhouse.inputs import OPEN_BUILTIN, OPEN_PATH

# by opener, else by kind
HELD = {
    OPEN_PATH: "a file or folder",
    OPEN_BUILTIN: "arrays",
    "model": "a model",
    "data": "data",
    "scores": "scores",
}


class Roles(dict[str, nn.Module]):
    """Models by role; raises UnknownName for one that the stage has not."""

    def __init__(self, models: Mapping[str, nn.Module], *, stage: str) -> None:
        super().__init__(models)
        self.stage = stage

    def __missing__(self, role: str) -> nn.Module:
        raise UnknownName("role", role, self, where=f"stage '{self.stage}'")


def open_role(port: str, artifact: Artifact, *, stage: str) -> Built:
    """The model of a port; raises BadRecipe where it holds none."""
    found = artifact.open()
    if not isinstance(found, Built):
        raise _other(port, artifact, stage, "a role, a model that a stage or a folder holds")
    return found


def open_set(port: str, artifact: Artifact, *, stage: str) -> Data:
    """The data of a port; raises BadRecipe where it holds none."""
    found = artifact.open()
    if not isinstance(found, Data):
        raise _other(port, artifact, stage, "data that a stage made")
    return found


def _other(port: str, artifact: Artifact, stage: str, wanted: str) -> BadRecipe:
    held = HELD.get(artifact.opener, HELD[artifact.kind])
    return BadRecipe(f"stage '{stage}': port '{port}' holds {held}, and is read as {wanted}")
