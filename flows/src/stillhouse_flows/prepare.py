"""Settle a run inside its workspace, with the workspace's own code.

`python -m stillhouse_flows.prepare REQUEST` finds the settings, writes the variant into params.yaml
and its pipeline where they differ, and prints what the run needs.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.errors import BadSetting
from stillhouse.runs import Runs
from stillhouse.settings import Settings, find_settings, make_settings, read_params
from stillhouse_flows import generate
from stillhouse_flows.parameters import check_name
from stillhouse_flows.process import answer


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for: RECIPE[@VARIANT], or RECIPE at a scale with `--set` values."""

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


def prepare(root: Path, request: Request) -> Prepared:
    """Make `root` hold the variant, its pipeline and its settings.json."""
    name, settings = _settings(root, request)
    chosen = generate.target(root, name, settings)
    note_variant(root, chosen)
    generate.write(chosen)
    # a stage that DVC brings back from its cache does not write it
    Runs(root=root, recipe=name, variant=chosen.variant).note_settings(settings)
    return Prepared(
        recipe=name,
        variant=chosen.variant,
        pipeline=chosen.pipeline,
        runs=chosen.runs,
        data=chosen.outside("data:"),
        files=chosen.outside("file:"),
    )


def _settings(root: Path, request: Request) -> tuple[str, Settings]:
    if "@" in request.recipe:
        if request.scale or request.settings:
            raise BadSetting(
                f"{request.recipe} has settings of its own; "
                "leave out @VARIANT, or --scale and --set"
            )
        return find_settings(request.recipe, root, root / "runs")
    scale = request.scale or "tiny"
    kept = read_params(root).get(request.recipe, {}).get(scale) or {}
    return request.recipe, make_settings(request.recipe, scale, {**kept, **request.settings})


def note_variant(root: Path, chosen: generate.Target) -> None:
    """Have params.yaml name the variant with these settings; its comments stay."""
    from dvc.utils.serialize import modify_yaml

    wanted = chosen.settings.overrides()
    variants = read_params(root).get(chosen.name, {})
    if chosen.variant in variants and (variants[chosen.variant] or {}) == wanted:
        return
    domain, _, recipe = chosen.name.partition("/")
    (root / "params.yaml").touch()
    with modify_yaml(str(root / "params.yaml")) as tree:
        below = tree.get(domain) or {}
        entry = below.get(recipe) or {}
        tree[domain], below[recipe], entry[chosen.variant] = below, entry, wanted


def main(argv: Sequence[str]) -> int:
    (text,) = argv
    return answer(lambda: json.dumps(asdict(prepare(Path.cwd(), Request(**json.loads(text))))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
