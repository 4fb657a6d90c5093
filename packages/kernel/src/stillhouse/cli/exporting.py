"""Which folder holds a finished run's student, and how its files are handed over."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.artifact import SPEC, WEIGHTS, Artifact
from stillhouse.digest import path_digest
from stillhouse.errors import BadSetting, CorruptArtifact, MissingData
from stillhouse.files import writing
from stillhouse.quantize.onnx_network import ONNX

if TYPE_CHECKING:
    from stillhouse.cli.target import Target

FILES = {"onnx": (ONNX,), "openvino": (ONNX,), "safetensors": (SPEC, WEIGHTS)}


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
    """Copy the student's files of one format, and what belongs to both (model card, export.json,
    assets and what a plugin adds, folders among it), into the new folder `out`; whole, or not at
    all. A student of several networks may have an ONNX file each instead of one. Of "openvino" the
    files are made of the ONNX files, see `write_openvino` for what it raises.
    """
    folder = student_of(target).path
    there = _names(folder)
    several = to != "safetensors" and any(name.endswith(".onnx") for name in there)
    for name in () if several else FILES[to]:
        if name not in there:
            raise MissingData(
                f"{target.ref} was exported without {name}: there is {', '.join(there)}"
            )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise BadSetting(f"{out} is not a new or empty folder; give one with --out")
    names = [name for name in there if _format(name) in (to, "")]
    made: list[str] = []
    with writing(out) as aside:
        if to == "openvino":
            from stillhouse.openvino_files import write_openvino

            for name in (name for name in there if name.endswith(".onnx")):
                made += write_openvino(folder / name, aside)
        for name in names:
            # not their permissions: the files of a stage may be DVC's, which are read-only
            shutil.copyfile(folder / name, aside / name)
        for below in sorted(path for path in folder.iterdir() if path.is_dir()):
            shutil.copytree(below, aside / below.name, copy_function=shutil.copyfile)
            names.append(below.name)
    return [out / name for name in sorted([*names, *made])]


def _format(name: str) -> str:
    """The format whose file this is; empty for one that goes along with any."""
    if name.endswith(".onnx"):
        return "onnx"
    return next((to for to, names in FILES.items() if name in names), "")


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_file())
