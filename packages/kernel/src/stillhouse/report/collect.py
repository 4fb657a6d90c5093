"""The records finished stages left, read into values and checked; nothing is computed here."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from stillhouse.errors import CorruptArtifact
from stillhouse.metrics.scores import Declared
from stillhouse.recipe import PLOTS, Recipe, Stage
from stillhouse.report.declared import declared_scores

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a port of a stage read."""

    ref: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Product:
    """What a stage left at a port; `path` is relative to the stage's folder."""

    kind: str
    path: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class StageFile:
    """stage.json: the reproducible part."""

    stage: str
    kind: str
    key: str
    inputs: Mapping[str, Source]
    outputs: Mapping[str, Product]
    builds: tuple[str, ...] = ()  # modules that build models from outside the recipe


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """<stage>.run.json: what it cost and on what it ran."""

    key: str
    seconds: float
    started: str
    device: str
    nproc: int = 1
    resumed_at: int | None = None
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: JSON values
    measured: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: JSON values
    declared: Declared = field(default_factory=Declared)


@dataclass(frozen=True, kw_only=True)
class SettingsFile:
    """settings.json of a variant."""

    scale: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: JSON values


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished stage. `run` is None where its record is lost or belongs to another run."""

    file: StageFile
    run: RunFile | None
    scores: Mapping[str, float]  # by their names in scores.json: a table's are "row/score"
    declared: Declared  # what each of them is
    reproducible: tuple[str, ...]  # names of the scores that are part of the artifact, in order
    curves: Mapping[str, tuple[float | None, ...]]  # by column; the first is "step"
    figures: tuple[str, ...]  # relative to the run's folder
    files: Mapping[str, Mapping[str, int]]  # port -> file -> bytes, of converted models
    uses: Mapping[str, str]  # port -> Python of the model card, of those that have one

    @property
    def values(self) -> Mapping[tuple[str, str], float]:
        """The scores by row of a study's table ("" for those of none) and name."""
        cells = self.declared.cells
        return {cells.get(name, ("", name)): value for name, value in self.scores.items()}


def read_settings(folder: Path) -> SettingsFile:
    """settings.json of a run's folder; without one, the scale its name begins with."""
    file = folder / "settings.json"
    if file.is_file():
        return _read(SettingsFile, file)
    return SettingsFile(scale=folder.name.partition("-")[0])


def collect(recipe: Recipe, folder: Path) -> Mapping[str, Finished]:
    """The finished stages of a recipe by name, in its order.

    Raises CorruptArtifact for a record that cannot be read.
    """
    found = (s for s in recipe.stages if (folder / s.name / "stage.json").is_file())
    return {stage.name: _finished(folder, stage) for stage in found}


def _finished(folder: Path, stage: Stage) -> Finished:
    name = stage.name
    file = _read(StageFile, folder / name / "stage.json")
    run = _optional(RunFile, folder / f"{name}.run.json")
    kept = {port: folder / name / out.path for port, out in file.outputs.items()}
    scores: dict[str, float] = {}
    figures: list[str] = []
    for port, out in file.outputs.items():
        if out.kind == "scores":
            scores |= _optional(dict[str, float], kept[port] / "scores.json") or {}
            found = [*sorted(kept[port].glob("*.png")), *sorted(kept[port].glob(f"{PLOTS}/*.png"))]
            figures += [file.relative_to(folder).as_posix() for file in found]
    beside = _optional(dict[str, float], folder / f"{name}.scores.json") or {}
    run = run if run is not None and run.key == file.key else None
    whole = scores | {key: beside[key] for key in beside if key not in scores}
    return Finished(
        file=file,
        run=run,
        scores=whole,
        declared=declared_scores(stage, run.declared if run else Declared(), whole),
        reproducible=tuple(scores),
        curves=_curves(folder / f"{name}.curves.tsv"),
        figures=tuple(figures),
        files={p: _sizes(kept[p]) for p in file.outputs} if file.kind == "Convert" else {},
        uses={p: _use(kept[p]) for p in file.outputs} if file.kind == "Convert" else {},
    )


def _use(folder: Path) -> str:
    """The Python of a model card that runs its ONNX file, without what needs Stillhouse; "" where
    the card has none, or there is no card.
    """
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return "\n".join(block for block in blocks if "stillhouse" not in block).strip()


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}


def _curves(file: Path) -> dict[str, tuple[float | None, ...]]:
    if not file.is_file():
        return {}
    try:
        with file.open(newline="") as stream:
            head, *rows = csv.reader(stream, delimiter="\t")
        columns = zip(*rows, strict=True)
        numbers = [tuple(float(text) if text else None for text in c) for c in columns]
        return dict(zip(head, numbers, strict=True)) if rows else {}
    except ValueError as error:
        raise _unreadable(file, error) from error


def _optional(kind: type[Record], file: Path) -> Record | None:
    return _read(kind, file) if file.is_file() else None


def _read(kind: type[Record], file: Path) -> Record:
    try:
        return pydantic.TypeAdapter(kind).validate_json(file.read_bytes())
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _unreadable(file, f"{where}: {first['msg']}" if where else first["msg"]) from error


def _unreadable(file: Path, reason: object) -> CorruptArtifact:
    return CorruptArtifact(f"{file}: cannot be read ({reason}); delete it and run the recipe again")
