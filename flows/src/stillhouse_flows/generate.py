"""DVC pipelines from recipes, one way only: pipelines/<domain>/<recipe>/<variant>/dvc.yaml for each variant in params.yaml.

Every path in them is relative to the project's root (`wdir` leads there). Of a stage's files only its folder is cached;
<stage>.run.json, .scores.json and .curves.tsv are metrics and plots that git keeps on the run's branch. They must be
metrics or plots: a plain `cache: false` output would shut the stage out of DVC's run cache.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stillhouse.digest import code_version
from stillhouse.domain import recipe_function
from stillhouse.files import write_text
from stillhouse.recipe import OUTSIDE, Recipe, Stage
from stillhouse.settings import Settings, make_recipe, make_settings, read_params
from stillhouse_flows.sources import inside, package_folder

HEADER = "# Generated from the recipe by `stillhouse flow dvc`; change the recipe or params.yaml instead.\n"
CODE = "code.json"
TIMEOUTS = {"tiny": 900, "small": 4 * 3600}  # seconds a stage; none at scale paper
GPU_KINDS = ("Train", "Search", "Federate")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One variant of a recipe in a project."""

    root: Path
    name: str  # "domain/recipe"
    settings: Settings
    recipe: Recipe

    @property
    def variant(self) -> str:
        return self.settings.variant()

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.variant}"

    @property
    def runs(self) -> str:
        return f"runs/{self.name}/{self.variant}"

    @property
    def folder(self) -> str:
        return f"pipelines/{self.name}/{self.variant}"

    @property
    def pipeline(self) -> str:
        return f"{self.folder}/dvc.yaml"

    def outside(self, scheme: str) -> tuple[str, ...]:
        """What the stages read from outside the recipe by "data:", "file:" ..., each once."""
        refs = (ref for stage in self.recipe.stages for ref in stage.inputs.values())
        return tuple(
            dict.fromkeys(ref.removeprefix(scheme) for ref in refs if ref.startswith(scheme))
        )


def target(root: Path, name: str, settings: Settings) -> Target:
    """The target of these settings; raises BadRecipe when the recipe cannot be made."""
    return Target(root=root, name=name, settings=settings, recipe=make_recipe(name, settings))


def targets(root: Path) -> Iterator[Target]:
    """Every variant that params.yaml keeps reproducible."""
    for name, variants in read_params(root).items():
        for variant, values in variants.items():
            settings = make_settings(name, variant.partition("-")[0], values or {})
            yield target(root, name, settings)


def write(chosen: Target) -> None:
    """Write the pipeline of one target."""
    for path, text in files(chosen).items():
        write_text(path, text)


def drifted(root: Path) -> list[Path]:
    """Files under pipelines/ that are not what the recipes and params.yaml say, missing and left-over ones included."""
    return list(_differences(root))


def write_all(root: Path) -> list[Path]:
    """Write every pipeline and remove those that params.yaml no longer names; returns what changed."""
    differ = _differences(root)
    for path, text in differ.items():
        if text:
            write_text(path, text)
        else:
            path.unlink()
            path.with_suffix(".lock").unlink(missing_ok=True)
    return list(differ)


def _differences(root: Path) -> dict[Path, str]:
    """Path -> the text it should have; empty for a file that should not be there."""
    wanted = {path: text for each in targets(root) for path, text in files(each).items()}
    differ = {p: text for p, text in wanted.items() if not p.is_file() or p.read_text() != text}
    return differ | {p: "" for p in _generated(root) if p not in wanted}


def _generated(root: Path) -> Iterator[Path]:
    """dvc.yaml files that this module wrote; somebody's own are left alone."""
    for path in sorted((root / "pipelines").glob("*/*/*/dvc.yaml")):
        if path.read_text().startswith(HEADER):
            yield path


def files(chosen: Target) -> Mapping[Path, str]:
    """The files of one target's pipeline: dvc.yaml, and code.json where code lies outside the project."""
    package = recipe_function(chosen.name).__module__.partition(".")[0]
    folders = {p: package_folder(p) for p in ("stillhouse", package)}
    code = [
        f.relative_to(chosen.root).as_posix() for f in folders.values() if inside(f, chosen.root)
    ]
    folder = chosen.root / chosen.folder
    made: dict[Path, str] = {}
    if len(code) < len(folders):
        # installed packages cannot be a dependency of DVC's; their digest in a file can
        made[folder / CODE] = json.dumps({package: code_version(package)}, indent=1) + "\n"
        code.append(f"{chosen.folder}/{CODE}")
    stages = {s.name: _stage(chosen, s, code) for s in chosen.recipe.stages}
    text = yaml.dump({"stages": stages}, Dumper=_Plain, sort_keys=False, width=100)
    return made | {chosen.root / chosen.pipeline: HEADER + text}


class _Plain(yaml.SafeDumper):
    """No anchors: lists that are equal are written out."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _stage(chosen: Target, stage: Stage, code: list[str]) -> dict[str, Any]:  # Any: YAML
    base, kind = f"{chosen.runs}/{stage.name}", type(stage).__name__
    domain, _, recipe = chosen.name.partition("/")
    keys = [f"{domain}.{recipe}.{chosen.variant}.{key}" for key in _keys(chosen)]
    metrics = [f"{base}.run.json", *([f"{base}.scores.json"] if kind == "Evaluate" else [])]
    plots = [f"{base}.curves.tsv"] if kind == "Train" else []
    entry: dict[str, Any] = {
        "cmd": f"stillhouse stage {chosen.ref} {stage.name}",
        "wdir": "/".join([".."] * (chosen.folder.count("/") + 1)),
        "deps": [*_data(chosen, stage), *_upstream(chosen, stage), *code],
        "params": keys,
        "outs": [base],
        "metrics": [{path: {"cache": False}} for path in metrics],
        "plots": [{path: {"cache": False, "x": "step"}} for path in plots],
        "meta": {"prefect": _hints(chosen, kind)},
    }
    return {key: value for key, value in entry.items() if value}


def _keys(chosen: Target) -> list[str]:
    """Settings of the variant; more seeds are more stages, and change none that is there."""
    return sorted(set(chosen.settings.overrides()) - {"seeds"})


def _upstream(chosen: Target, stage: Stage) -> list[str]:
    return [f"{chosen.runs}/{name}" for name in chosen.recipe.upstream(stage)]


def _data(chosen: Target, stage: Stage) -> list[str]:
    refs = dict.fromkeys(ref for ref in stage.inputs.values() if ref.startswith(OUTSIDE))
    data = [f"data/{ref.removeprefix('data:')}" for ref in refs if ref.startswith("data:")]
    names = [ref.removeprefix("file:") for ref in refs if ref.startswith("file:")]
    # a file elsewhere on this machine is not the project's; the kernel's own key still covers it
    return data + [n for n in names if not Path(n).is_absolute() and not n.startswith(("~", ".."))]


def _hints(chosen: Target, kind: str) -> dict[str, Any]:  # Any: YAML
    hints: dict[str, Any] = {"resource": "gpu" if kind in GPU_KINDS else "cpu"}
    if kind == "Train":
        hints["retries"] = 1  # of a crash, not of an error: training goes on at its checkpoint
    if timeout := TIMEOUTS.get(chosen.settings.scale):
        hints["timeout"] = timeout
    return hints
