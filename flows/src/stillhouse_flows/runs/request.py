"""The request of a run, and its workspace's code: light to import."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stillhouse_flows.runs.parameters import check_name


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request of a user: RECIPE[@VARIANT], or RECIPE at a scale with `--set` values."""

    recipe: str = "vision/distill"
    scale: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: JSON values

    def __post_init__(self) -> None:
        check_name(self.recipe, self.scale)

    def label(self) -> str:
        """What the workspace and the branch are called, before the settings are known."""
        name = self.recipe.replace("/", "-").replace("@", "-")
        return name if "@" in self.recipe else f"{name}-{self.scale or 'tiny'}"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run of it needs to know. Paths are relative to the root."""

    recipe: str
    variant: str
    pipeline: str
    runs: str
    data: tuple[str, ...]  # under data/
    files: tuple[str, ...]  # of the user's own, by "file:"

    @property
    def ref(self) -> str:
        return f"{self.recipe}@{self.variant}"


def prepared_from(text: str) -> Prepared:
    """The `Prepared` that this module printed."""
    record = json.loads(text)
    return Prepared(**record | {key: tuple(record[key]) for key in ("data", "files")})
