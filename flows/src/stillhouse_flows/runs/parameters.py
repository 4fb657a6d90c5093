"""Parameters of flows: types that Prefect's UI shows as a form, and that its API and the
command line check before anything runs.

Everything here ends up in names of folders and branches, in files that DVC reads, or in the
environment of a process; nothing else than these forms may.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stillhouse.errors import BadSetting

NAME = r"[a-z0-9][a-z0-9_-]*"
RECIPE = rf"{NAME}/{NAME}(@{NAME})?"
DEVICE = r"auto|cpu|cuda(:[0-9]{1,2})?"
REF = r"[A-Za-z0-9_][A-Za-z0-9_./~^@{}-]*"

# what each means is said in the docstring of a flow, from which Prefect makes its form
RecipeName = Annotated[str, Field(pattern=rf"^{RECIPE}$")]
ScaleName = Literal["", "tiny", "small", "paper"]
SettingValues = dict[str, Any]  # Any: JSON values, checked by the recipe's own settings
Device = Annotated[str, Field(pattern=rf"^({DEVICE})$")]
Ref = Annotated[str, Field(pattern=rf"^({REF})?$")]
Pools = Mapping[
    Annotated[str, Field(pattern=r"^(gpu|cpu)$")],
    Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$")],
]


class RequestedRun(BaseModel):
    """One run of the flow `compare`."""

    model_config = ConfigDict(extra="forbid")

    recipe: RecipeName
    scale: ScaleName = ""
    settings: SettingValues = {}


# of the flow `stage`, which other machines ask for
RunBranch = Annotated[str, Field(pattern=r"^runs/[A-Za-z0-9][A-Za-z0-9_-]*$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")]
StageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


def check_name(recipe: str, scale: str) -> None:
    """Raises BadSetting for a recipe or scale that cannot be one."""
    if not re.fullmatch(RECIPE, recipe):
        raise BadSetting(
            f"recipe {recipe!r}: expected domain/recipe or domain/recipe@variant; "
            "`stillhouse list` shows them"
        )
    if scale not in ("", "tiny", "small", "paper"):
        raise BadSetting(f"scale {scale!r}: expected tiny, small or paper")


def check_place(device: str, ref: str) -> None:
    """Raises BadSetting for a device or commit that cannot be one."""
    if not re.fullmatch(DEVICE, device):
        raise BadSetting(f"device {device!r}: expected auto, cpu, cuda or cuda:1")
    if ref and not re.fullmatch(REF, ref):
        raise BadSetting(f"ref {ref!r}: expected a commit, branch or tag")
