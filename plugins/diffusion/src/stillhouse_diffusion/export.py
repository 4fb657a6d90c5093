"""Export of one-step students: stillhouse's own folder, ONNX a student, a pipeline of diffusers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, recorded, save_model
from stillhouse.card import CARD, Card, model_card, port_record, scores_record
from stillhouse.data.data import RowData
from stillhouse.errors import BadRecipe
from stillhouse.export import check_onnx, sample, write_onnx
from stillhouse.profile import macs, parameters
from stillhouse.quantize.onnx_network import RECORD
from stillhouse.work import Work
from stillhouse_diffusion.denoisers import Edm, UNet
from stillhouse_diffusion.sampling import OneStepStudent, RoutedStudents
from stillhouse_diffusion.usage import students_usage, use_section

PIPELINE, PIPELINE_CODE = "diffusers", "one_step_pipeline"
INPUTS, OUTPUTS = ("noise", "labels"), ("images",)
OPSET = 18


@dataclass(frozen=True, kw_only=True)
class ExportStudents:
    """A `convert` that writes model.json and model.safetensors (all students and their router),
    student<k>.onnx of each student, export.json, README.md, and, where the students are UNets of
    diffusers, the folder diffusers/: a DiffusionPipeline that needs no stillhouse.

    Ports: "student" (RoutedStudents), "data" (noise and labels, the first `samples` rows of which
    check the files), and maybe "scores". Raises ContractError where ONNX and torch differ by more
    than `tolerance`.
    """

    card: Card
    samples: int = 16
    tolerance: float = 1e-3

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        built, data = inputs["student"], inputs["data"]
        assert isinstance(built, Built)
        assert isinstance(data, RowData)
        students = built.module
        if not isinstance(students, RoutedStudents):
            raise BadRecipe("export: the port 'student' holds no students of this plugin")
        save_model(out, built)
        batch = sample(data, self.samples, INPUTS)
        for number, student in enumerate(students.students):
            file, own = out / f"student{number}.onnx", _own(students, number, batch)
            write_onnx(student, own, OUTPUTS, file, opset=OPSET)
            check_onnx(file, student, own, OUTPUTS, tolerance=self.tolerance)
            work.progress(number + 1, len(students.students), file.name)
        if all(_unet(student) for student in students.students):
            write_pipeline(out / PIPELINE, students)
        self._describe(built, batch, inputs.get("scores", {}), out)

    def _describe(
        self, built: Built, batch: Mapping[str, Tensor], scores: Mapping[str, float], out: Path
    ) -> None:
        students = built.module
        assert isinstance(students, RoutedStudents)
        usage = students_usage(built.spec)
        with torch.no_grad():
            found = students(dict(batch))
        record = {
            "model": recorded(built.spec),
            "task": self.card.task,
            "inputs": port_record(batch, usage),
            "outputs": port_record({name: found[name] for name in OUTPUTS}, usage),
            "classes": [],
            "preprocessing": {},
            **scores_record(scores),
            "students": len(students.students),
            "owner": students.owner.tolist(),
            "evaluations": students.evaluations,
            "parameters": parameters(students),
            "macs": macs(students, {name: value[:1] for name, value in batch.items()}),
            "opset": OPSET,
            "checked_samples": len(batch["labels"]),
            "agrees_within": self.tolerance,
        }
        (out / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        section = use_section(built.spec, pipeline=(out / PIPELINE).is_dir())
        (out / CARD).write_text(model_card(self.card, usage, built, record) + section)


def _own(students: RoutedStudents, number: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with labels that the student owns, in turn."""
    labels = (students.owner.cpu() == number).nonzero()[:, 0]
    turns = torch.arange(len(batch["labels"])) % len(labels)
    return {"noise": batch["noise"], "labels": labels[turns]}


def _unet(student: nn.Module) -> Any:  # Any: a UNet2DModel, or None
    assert isinstance(student, OneStepStudent)
    denoiser = student.denoiser
    if isinstance(denoiser, Edm) and isinstance(denoiser.network, UNet):
        return denoiser.network.unet
    return None


def write_pipeline(folder: Path, students: RoutedStudents) -> None:
    """Write the students as a folder that DiffusionPipeline.from_pretrained(..., trust_remote_code=
    True) opens: a UNet2DModel in student_<k>/ each, the pipeline's code and its router.
    """
    folder.mkdir()
    names = [f"student_{number}" for number in range(len(students.students))]
    first = students.students[0]
    assert isinstance(first, OneStepStudent)
    denoiser = first.denoiser
    assert isinstance(denoiser, Edm)
    for name, student in zip(names, students.students, strict=True):
        _unet(student).save_pretrained(folder / name)
    index: dict[str, Any] = {  # Any: JSON values
        "_class_name": [PIPELINE_CODE, "OneStepPipeline"],
        "_diffusers_version": diffusers.__version__,
        "owner": students.owner.tolist(),
        "sigma": first.sigma,
        "sigma_data": denoiser.sigma_data,
        **{name: ["diffusers", "UNet2DModel"] for name in names},
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
    template = files("stillhouse_diffusion").joinpath(f"{PIPELINE_CODE}.txt").read_text()
    code = template.format(
        arguments=", ".join(f"{name}: UNet2DModel" for name in names),
        modules=", ".join(f"{name}={name}" for name in names),
        names=json.dumps(names),
    )
    (folder / f"{PIPELINE_CODE}.py").write_text(code)
