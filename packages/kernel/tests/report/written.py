"""A run's folder written by hand in the schema stages leave: what a report is made from."""

import functools
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stillhouse.artifact import Artifact
from stillhouse.code import stage_code
from stillhouse.digest import digest, text_digest
from stillhouse.recipe import Bound, Context, Kind, Recipe, Row

ENVIRONMENT = {
    "python": "3.11.9",
    "torch": "2.13.0",
    "platform": "Linux-6.1",
    "cpu": "A processor @ 2.5GHz",
    "cores": 2,
    "threads": 2,
    "gpu": None,
    "memory_gib": 7.8,
    "packages": {"numpy": "2.4.6", "torch": "2.13.0"},
}
COSTS = {
    "teacher": {"parameters": 855770, "macs": 127_000_000, "size_mib": 3.31},
    "student": {"parameters": 272474, "macs": 41_000_000, "size_mib": 1.06},
}
SPEED = {
    "teacher": {"latency_b1_ms": 8.42, "latency_b32_ms": 151.0, "peak_memory_mib": 38.2},
    "student": {"latency_b1_ms": 3.11, "latency_b32_ms": 52.4, "peak_memory_mib": 17.5},
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage as far as a report sees it."""

    name: str
    kind: str
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    seed: int = 0

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Mapping[str, Artifact]:
        raise AssertionError("a report runs nothing")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A row of the run to write: its name, stages' prefix, accuracy by seed."""

    row: str
    prefix: str
    accuracy: tuple[float, ...]
    kind: Kind = "student"


@dataclass(frozen=True, kw_only=True)
class Story:
    """What the written run is about."""

    rows: tuple[Scored, ...]
    teacher: float = 0.9214
    reference: str = "Hinton et al. 2015, arXiv:1503.02531; https://example.org/paper?a=1&b=2."
    notes: tuple[str, ...] = ("A reconstruction: the authors published no code.",)
    settings: Mapping[str, Any] = field(default_factory=dict)
    export: bool = True
    method: str = "student + kd"
    control: Bound | None = None
    ceiling: Bound | None = None

    def recipe(self) -> Recipe:
        stages = [
            Step(
                name="data", kind="Make", inputs={"raw": "data:photos"}, outputs=("train", "test")
            ),
            Step(name="teacher", kind="Train", inputs={"data": "data.train"}, outputs=("teacher",)),
            *_evaluated("teacher", "teacher.teacher"),
        ]
        rows = {"teacher": Row(kind="teacher", stages=("teacher-scores",))}
        for scored in self.rows:
            names = [f"{scored.prefix}-{i}" for i in range(len(scored.accuracy))]
            for i, name in enumerate(names):
                taught = {} if scored.prefix == "plain" else {"teacher": "teacher.teacher"}
                inputs = {"data": "data.train", **taught}
                stages.append(
                    Step(name=name, kind="Train", inputs=inputs, outputs=("student",), seed=i)
                )
                stages += _evaluated(name, f"{name}.student")
            kind = "baseline" if scored is self.rows[0] else scored.kind
            rows[scored.row] = Row(kind=kind, stages=tuple(f"{name}-scores" for name in names))
        if self.export:
            source = f"{self.rows[-1].prefix}-0.student"
            stages.append(
                Step(name="export", kind="Convert", inputs={"student": source}, outputs=("model",))
            )
        return Recipe(
            name="distill",
            reference=self.reference,
            stages=stages,
            rows=rows,
            notes=self.notes,
            method=self.method,
            control=self.control,
            ceiling=self.ceiling,
        )


def _evaluated(name: str, ref: str) -> list[Step]:
    inputs = {"data": "data.test", "student": ref, "teacher": "teacher.teacher"}
    return [Step(name=f"{name}-scores", kind="Evaluate", inputs=inputs, outputs=("scores",))]


THREE = Story(
    rows=(
        Scored(row="student", prefix="plain", accuracy=(0.8712, 0.8694, 0.8745)),
        Scored(row="student + kd", prefix="kd", accuracy=(0.8871, 0.8866, 0.8889)),
        Scored(row="student + dkd", prefix="dkd", accuracy=(0.8802, 0.8719, 0.8790)),
    ),
    settings={"objective": ["kd", "dkd"], "seeds": 3},
)
ONE = Story(
    rows=(
        Scored(row="student", prefix="plain", accuracy=(0.87,)),
        Scored(row="student + kd", prefix="kd", accuracy=(0.88,)),
    )
)


def write_run(story: Story, folder: Path, *, without: tuple[str, ...] = ()) -> Recipe:
    """Write the finished stages of a story into `folder`, but those named in `without`."""
    recipe, made = story.recipe(), {}
    _json(
        folder / "settings.json",
        {
            "recipe": "vision/distill",
            "variant": folder.name,
            "scale": "small",
            "settings": story.settings,
        },
    )
    accuracy = {f"{s.prefix}-{i}-scores": a for s in story.rows for i, a in enumerate(s.accuracy)}
    for stage in recipe.stages:
        if stage.name not in without:
            _write_stage(folder, recipe, stage, made)
            score = accuracy.get(stage.name, story.teacher)
            _WRITERS.get(stage.kind, _nothing)(folder, stage, score)
    return recipe


def _write_stage(folder: Path, recipe: Recipe, stage: Step, made: dict[str, str]) -> None:
    inputs = {p: {"ref": r, "digest": made.get(r, text_digest(r))} for p, r in stage.inputs.items()}
    digests = {port: entry["digest"] for port, entry in inputs.items()}
    key = digest({"stage": stage, "inputs": digests, "code": stage_code(recipe, stage)})
    kind = {"Make": "data", "Evaluate": "scores"}.get(stage.kind, "model")
    outputs = {}
    for port in stage.outputs:
        made[f"{stage.name}.{port}"] = text_digest(f"{stage.name}.{port}")
        (folder / stage.name / port).mkdir(parents=True, exist_ok=True)
        outputs[port] = {
            "kind": kind,
            "path": port,
            "digest": made[f"{stage.name}.{port}"],
            "opener": "stillhouse.artifact:load_model",
        }
    record = {
        "stage": stage.name,
        "kind": stage.kind,
        "key": key,
        "inputs": inputs,
        "outputs": outputs,
    }
    _json(folder / stage.name / "stage.json", record)
    measured = _measured(stage) if stage.kind == "Train" else {}
    run = {
        "stage": stage.name, "key": key, "seconds": 212.4 if measured else 3.9,
        "started": "2025-11-21T08:00:00+00:00", "device": "cpu", "nproc": 1,
        "resumed_at": 400 if stage.name == "kd-0" else None,
        "environment": ENVIRONMENT, "measured": measured,
    }  # fmt: skip
    _json(folder / f"{stage.name}.run.json", run)


def _measured(stage: Step) -> dict[str, Any]:
    cache = {
        "teacher": {"key": "k", "views": 4, "rows": 20000, "computed_rows": 80000, "reused_rows": 0}
    }
    taught = {"teacher_cache": cache} if "teacher" in stage.inputs else {}
    common = {"steps": 1200, "batch": 64, "seconds_per_step": 0.1771, "samples_per_second": 361.3}
    return {**common, "peak_memory_mib": 611.0, **taught}


def _train(folder: Path, stage: Step, accuracy: float) -> None:
    taught = "teacher" in stage.inputs
    lines = ["\t".join(["step", "loss", "ce", *(["kd"] if taught else [])])]
    rng = np.random.default_rng(len(stage.name) + stage.seed)
    for step in range(0, 1200, 12):
        ce = 0.35 + 1.9 * math.exp(-step / 260) + 0.06 * rng.random()
        kd = 2.2 * math.exp(-step / 320) + 0.3 + 0.05 * rng.random()
        values = [step, ce + kd if taught else ce, ce, *([kd] if taught else [])]
        lines.append("\t".join(f"{v:.10g}" for v in values))
    (folder / f"{stage.name}.curves.tsv").write_text("\n".join(lines) + "\n")


def _evaluate(folder: Path, stage: Step, accuracy: float) -> None:
    who = "teacher" if stage.name == "teacher-scores" else "student"
    scores = {
        "accuracy": accuracy,
        "top5_accuracy": min(0.999, accuracy + 0.11),
        "nll_loss": 0.9 * (1 - accuracy) + 0.27,
        "calibration_error": 0.034,
        "teacher_agreement": 1.0 if who == "teacher" else accuracy + 0.012,
        **COSTS[who],
    }
    out = folder / stage.name / "scores"
    _json(out / "scores.json", scores)
    _json(folder / f"{stage.name}.scores.json", scores | SPEED[who])
    (out / "predictions.png").write_bytes(picture())


@functools.cache
def picture() -> bytes:
    """A PNG, the same at each call."""
    figure = Figure(figsize=(5, 1.6))
    rng = np.random.default_rng(0)
    for i, axes in enumerate(figure.subplots(1, 5)):
        axes.imshow(rng.random((8, 8)), cmap="gray")
        axes.set_title(f"said {i}", fontsize=8)
        axes.axis("off")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=90, metadata={"Software": None})
    return data.getvalue()


def _convert(folder: Path, stage: Step, accuracy: float) -> None:
    for name, amount in {
        "model.json": 120,
        "model.safetensors": 1_112_000,
        "model.onnx": 1_130_000,
    }.items():
        (folder / stage.name / "model" / name).write_bytes(bytes(amount))


def _nothing(folder: Path, stage: Step, accuracy: float) -> None:
    pass


_WRITERS = {"Train": _train, "Evaluate": _evaluate, "Convert": _convert}


def _json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=1) + "\n")
