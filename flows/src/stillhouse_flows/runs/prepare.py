"""Settle a run inside its workspace, with the workspace's own code.

`python -m stillhouse_flows.runs.prepare REQUEST` finds the settings, writes the variant into
params.yaml and its pipeline where they differ, and prints what the run needs.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stillhouse.errors import BadSetting
from stillhouse.reach import checked_settings
from stillhouse.runs import Runs
from stillhouse.settings import Settings, find_settings, make_settings, read_params
from stillhouse_flows.processes.querying import answer
from stillhouse_flows.runs.request import Prepared, Request
from stillhouse_flows.stages import generate


def prepare(root: Path, request: Request) -> Prepared:
    """Make `root` hold the variant, its pipeline and its settings.json."""
    name, settings = settings_of(root, request)
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


def settings_of(root: Path, request: Request) -> tuple[str, Settings]:
    """ "domain/recipe" and the settings of a request, with what params.yaml of `root` says."""
    if "@" in request.recipe:
        if request.scale or request.settings:
            raise BadSetting(
                f"{request.recipe} has settings of its own; "
                "leave out @VARIANT, or --scale and --set"
            )
        return find_settings(request.recipe, root, root / "runs")
    scale = request.scale or "tiny"
    kept = read_params(root).get(request.recipe, {}).get(scale) or {}
    values = {**kept, **request.settings}
    return request.recipe, checked_settings(request.recipe, scale, values, request.settings)


def note_variant(root: Path, chosen: generate.Target) -> None:
    """Have params.yaml name the variant with these settings; its comments stay."""
    from dvc.utils.serialize import modify_yaml

    wanted = chosen.settings.overrides()
    variants = read_params(root).get(chosen.name, {})
    if chosen.variant in variants:
        kept = make_settings(chosen.name, chosen.settings.scale, variants[chosen.variant])
        if kept == chosen.settings:
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
