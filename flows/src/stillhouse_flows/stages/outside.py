"""What a variant reads that DVC cannot compare by itself, as small files that it can.

The DVC stage `inputs` writes runs/<domain>/<recipe>/<variant>/inputs/: code.json, the code key of
each stage, which are DVC's parameters; settings.json, for DVC takes 1, 1.0 and true of params.yaml
for the same; and a file for each input by "file:" or "hub:" with its digest, for such a folder may
lie anywhere, behind links too.

`python -m stillhouse_flows.stages.outside REQUEST`, called in a workspace with its code, refuses a
stage whose code key is not the one noted there.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from stillhouse.code import builds_in, reached_code, stage_code
from stillhouse.digest import text_digest
from stillhouse.errors import BadRecipe, StillhouseError
from stillhouse.files import write_text
from stillhouse.inputs import outside
from stillhouse.recipe import Recipe, Stage
from stillhouse.settings import Settings, find_settings, make_recipe
from stillhouse_flows.processes.querying import answer
from stillhouse_flows.stages.project import INPUTS

SETTINGS = f"{INPUTS}/settings.json"
CODE = f"{INPUTS}/code.json"
SCHEMES = ("file:", "hub:")


def refs(stages: Iterable[Stage]) -> tuple[str, ...]:
    """The "file:" and "hub:" inputs of stages, each once."""
    read = (ref for stage in stages for ref in stage.inputs.values())
    return tuple(dict.fromkeys(ref for ref in read if ref.startswith(SCHEMES)))


def leads_out(name: str) -> bool:
    """Whether the path of a "file:" input is written as one outside the project."""
    return Path(name).is_absolute() or name.startswith("~") or ".." in Path(name).parts


def note_of(ref: str) -> str:
    """The file, below the variant's folder, that has the digest of `ref`."""
    return f"{INPUTS}/{text_digest(ref)[:12]}.json"


def settings_text(settings: Settings) -> str:
    """What differs from the preset, one spelling each; empty where nothing does. More seeds are
    more stages, and change none that is there.
    """
    values = {k: v for k, v in settings.overrides().items() if k != "seeds"}
    return json.dumps(values, indent=1, sort_keys=True) + "\n" if values else ""


def notes(settings: Settings, stages: Sequence[Stage]) -> list[str]:
    """The files that those stages depend on, besides their code keys."""
    kept = [SETTINGS] if settings_text(settings) else []
    return [*kept, *map(note_of, refs(stages))]


def check_free(recipe: Recipe) -> None:
    """Raises BadRecipe where a stage has the name of ours."""
    if any(stage.name == INPUTS for stage in recipe.stages):
        raise BadRecipe(f"recipe '{recipe.name}': '{INPUTS}' is DVC's stage of a flow; rename it")


def write_notes(root: Path, ref: str) -> None:
    """Write the files of RECIPE@VARIANT as everything is now.

    Raises BadSetting where params.yaml has other settings below the variant's name, MissingData.
    """
    name, settings = find_settings(ref, root, root / "runs")
    folder = root / "runs" / name / settings.variant()
    if text := settings_text(settings):
        write_text(folder / SETTINGS, text)
    recipe = make_recipe(name, settings)
    write_text(folder / CODE, json.dumps(_keys(recipe), indent=1) + "\n")
    for each in refs(recipe.stages):
        given = outside(each, root)
        note = {"ref": each, "digest": given.digest}
        if builds := builds_in(given.path):
            note["code"] = reached_code(builds)
        write_text(folder / note_of(each), json.dumps(note, indent=1) + "\n")


def _keys(recipe: Recipe) -> dict[str, str]:
    return {stage.name: stage_code(recipe, stage) for stage in recipe.stages}


def check_key(root: Path, ref: str, stage: str) -> None:
    """Raises StillhouseError where a stage reaches other code here than where its key was noted."""
    name, settings = find_settings(ref, root, root / "runs")
    noted = json.loads((root / "runs" / name / settings.variant() / CODE).read_text())
    recipe = make_recipe(name, settings)
    if noted[stage] != stage_code(recipe, recipe.stage(stage)):
        raise StillhouseError(
            f"stage '{stage}': this machine's stillhouse or plugin differs from the sender's; "
            "install the same versions on both"
        )


def stale(root: Path, files: Iterable[Path]) -> list[str]:
    """Inputs whose digest is not the one noted in `files`."""
    names = {Path(SETTINGS).name, Path(CODE).name}
    ours = [f for f in files if f.parent.name == INPUTS and f.name not in names]
    ours = [f for f in ours if f.parent.resolve().is_relative_to(root.resolve() / "runs")]
    noted = [json.loads(f.read_text()) for f in ours if f.is_file()]
    return [each["ref"] for each in noted if outside(each["ref"], root).digest != each["digest"]]


def main(argv: Sequence[str]) -> int:
    request = json.loads(argv[0])

    def checked() -> str:
        check_key(Path.cwd(), request["ref"], request["stage"])
        return ""

    return answer(checked)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
