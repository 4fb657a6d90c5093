"""Which folder holds a finished run's student, and how its files are handed over."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.artifact import SPEC, WEIGHTS, Artifact
from stillhouse.digest import path_digest
from stillhouse.errors import BadSetting, CorruptArtifact, MissingData
from stillhouse.files import storage

if TYPE_CHECKING:
    from stillhouse.cli.target import Target

FILES = {"onnx": ("model.onnx",), "safetensors": (SPEC, WEIGHTS)}
# what goes along where a recipe has made it
EXTRAS = {"onnx": ("model-int8.onnx",), "safetensors": ()}
CARD = "README.md"


def student_of(target: "Target") -> Artifact:
    """The last model a recipe leaves: its exported student.

    Raises MissingData when that stage has not run, CorruptArtifact when its bytes have changed.
    """
    from stillhouse.runs import finished

    models = [s for s in target.recipe.stages if "model" in s.outputs]
    if not models:
        raise MissingData(
            f"{target.name} has no stage that leaves a model to export; add a Convert stage"
        )
    record = finished(models[-1], target.runs())
    if record is None:
        raise MissingData(
            f"{target.ref}: stage '{models[-1].name}' has not run. Run: stillhouse run {target.ref}"
        )
    artifact = record.outputs["model"]
    if not artifact.path.is_dir() or path_digest(artifact.path) != artifact.digest:
        raise CorruptArtifact(
            f"{artifact.path}: its bytes differ from the digest in stage.json; delete "
            f"{artifact.path.parent} and run stillhouse run {target.ref} again"
        )
    return artifact


def export_student(target: "Target", to: str, out: Path) -> list[Path]:
    """Copy the student's files of one format, and its model card, into the new folder `out`."""
    folder = student_of(target).path
    for name in FILES[to]:
        if not (folder / name).is_file():
            raise MissingData(
                f"{target.ref} was exported without {name}: there is {', '.join(_names(folder))}"
            )
    if out.exists() and any(out.iterdir()):
        raise BadSetting(f"{out} is not empty; give a new folder with --out")
    also = [name for name in (*EXTRAS[to], CARD) if (folder / name).is_file()]
    names = [*FILES[to], *also]
    with storage(out):
        out.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy2(folder / name, out / name)) for name in names]


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())
