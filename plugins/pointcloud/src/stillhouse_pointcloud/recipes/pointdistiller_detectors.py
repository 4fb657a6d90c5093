"""The detectors that pointcloud/pointdistiller takes: ours, and mmdetection3d's.

The names decide: "pillars-<width>" is ours, every other one mmdetection3d's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting, UnknownName
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Objective, Phase, Weighted
from stillhouse.stages.convert import Converter
from stillhouse_pointcloud import converts, detectors, mmdet
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.detectors import PillarGrid
from stillhouse_pointcloud.detectors.found import Area, Limits
from stillhouse_pointcloud.detectors.network import NAME
from stillhouse_pointcloud.distilled import LAYERS, PILLARS
from stillhouse_pointcloud.mmdet import outputs
from stillhouse_pointcloud.mmdet.configs import base, is_stock
from stillhouse_pointcloud.mmdet.export import ExportDetector
from stillhouse_pointcloud.mmdet.operators import ADVICE, cuda_only
from stillhouse_pointcloud.recipes.pointdistiller_notes import ONNX, PAPER, STOCK
from stillhouse_pointcloud.recipes.pointdistiller_settings import (
    OWN,
    PointDistillerSettings,
    width,
)


@dataclass(frozen=True, kw_only=True)
class Help:
    """What a student learns from beside the labels: losses, and roles that are trained with it."""

    losses: Mapping[str, Weighted] = field(default_factory=dict[str, Weighted])
    helpers: Mapping[str, Model] = field(default_factory=dict[str, Model])
    feeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


@runtime_checkable
class Detectors(Protocol):
    """What the recipe needs of a family of detectors."""

    @property
    def area(self) -> Area | None:
        """Where they look; None: everywhere."""
        ...

    @property
    def limits(self) -> Limits | None:
        """The same with heights: all that they see of a cloud."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The teacher's classes, in the order of its outputs."""
        ...

    @property
    def distilled(self) -> tuple[str, ...]:
        """The outputs whose local graphs are distilled, each by separate encoders."""
        ...

    @property
    def hint(self) -> str:
        """The map that FitNets and AT compare."""
        ...

    @property
    def notes(self) -> tuple[str, ...]: ...
    def model(self, name: str) -> Model: ...
    def channels(self, name: str, output: str) -> int:
        """Of an output of the detector of that name; BadSetting where it has no such output."""
        ...

    def load(self) -> Converter:
        """The teacher from a checkpoint."""
        ...

    def objective(self, phase: Phase, student: str, given: Help) -> Objective:
        """The labels' losses of the role `student`, and those it is given."""
        ...

    def export(self, title: str) -> Converter: ...


@dataclass(frozen=True, kw_only=True)
class Plain:
    """`pillars-<width>`, on the grid of the settings."""

    settings: PointDistillerSettings

    @property
    def area(self) -> PillarGrid:
        return self.settings.grid()

    @property
    def limits(self) -> Limits:
        (x0, x1), (y0, y1), (z0, z1) = self.area.x, self.area.y, self.area.z
        return x0, y0, z0, x1, y1, z1

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASSES

    @property
    def distilled(self) -> tuple[str, ...]:
        return (PILLARS if self.settings.layer == OWN else self.settings.layer,)

    @property
    def hint(self) -> str:
        return outputs.CANVAS if self.settings.hint == OWN else self.settings.hint

    @property
    def notes(self) -> tuple[str, ...]:
        return (ONNX,)

    def model(self, name: str) -> Model:
        s = self.settings
        return detectors.model(name, grid=s.grid(), layers=s.layers, momentum=s.momentum)

    def channels(self, name: str, output: str) -> int:
        return named(LAYERS, output, what="output", where=name) * width(name)

    def load(self) -> Converter:
        return converts.LoadDetector(model=self.model(self.settings.teacher_model))

    def objective(self, phase: Phase, student: str, given: Help) -> Objective:
        return detectors.Detection(
            phases={student: phase},
            grid=self.settings.grid(),
            student=student,
            losses=given.losses,
            feeds=given.feeds,
        )

    def export(self, title: str) -> Converter:
        return converts.ExportDetector(title=title, paper=PAPER)


@dataclass(frozen=True, kw_only=True)
class Stock:
    """mmdetection3d's, each on the grid of its configuration. `of` raises MissingExtra where it is
    not installed, and BadSetting for what would stop a training.
    """

    settings: PointDistillerSettings
    specs: Mapping[str, Model]  # by name

    @classmethod
    def of(cls, settings: PointDistillerSettings) -> "Stock":
        names = used(settings)
        specs = {name: _spec(name, settings.momentum) for name in names.values()}
        made = cls(settings=settings, specs=specs)
        for setting, name in names.items():
            made._check(setting, name)
        return made

    def _check(self, setting: str, name: str) -> None:
        config = outputs.config_of(self.specs[name])
        operator = cuda_only(config)
        if operator and not torch.cuda.is_available():
            raise BadSetting(
                f"{setting}: {name} needs CUDA, of which there is none here: mmcv's operator "
                f"'{operator}' has no implementation for the CPU; {ADVICE}"
            )
        teacher = outputs.sees(self.specs[self.settings.teacher_model])
        found = outputs.sees(self.specs[name])
        if found != teacher:
            raise BadSetting(
                f"{setting}: {name} has {found}, the teacher {teacher}; teacher and students need "
                "the same voxels"
            )

    @property
    def area(self) -> Area | None:
        return outputs.area(self.specs[self.settings.teacher_model])

    @property
    def limits(self) -> Limits | None:
        return outputs.limits(self.specs[self.settings.teacher_model])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.specs[self.settings.teacher_model].kwargs["classes"])

    @property
    def distilled(self) -> tuple[str, ...]:
        if self.settings.layer != OWN:
            return (self.settings.layer,)
        name = self.settings.teacher_model
        return tuple(mmdet.default_layers(outputs.config_of(self.specs[name]), name))

    @property
    def hint(self) -> str:
        if self.settings.hint != OWN:
            return self.settings.hint
        name = self.settings.teacher_model
        if outputs.CANVAS not in outputs.outputs(outputs.config_of(self.specs[name])):
            raise BadSetting(
                f"students: fitnets and at compare maps, of which {name} has none; leave them out, "
                "as in students=alone,both"
            )
        return outputs.CANVAS

    @property
    def notes(self) -> tuple[str, ...]:
        config = outputs.config_of(self.specs[self.settings.student])
        reason, operator = outputs.without_onnx(config), cuda_only(config)
        onnx = f"The student is exported as safetensors only: {reason}." if reason else ONNX
        cuda = f"This run needs CUDA: mmcv's operator '{operator}' has no implementation for a CPU."
        return (STOCK, onnx, *([cuda] if operator else []))

    def model(self, name: str) -> Model:
        return self.specs[name]

    def channels(self, name: str, output: str) -> int:
        known = outputs.outputs(outputs.config_of(self.specs[name]))
        if output not in known:
            raise BadSetting(
                f"{name} has no output '{output}' to distil; it has {', '.join(known)}"
            )
        return known[output].channels

    def load(self) -> Converter:
        return mmdet.LoadDetector(model=self.model(self.settings.teacher_model))

    def objective(self, phase: Phase, student: str, given: Help) -> Objective:
        return mmdet.DetectorTraining(
            phases={student: phase},
            student=student,
            losses=given.losses,
            feeds=given.feeds,
        )

    def export(self, title: str) -> Converter:
        return ExportDetector(title=title, paper=PAPER)


def _spec(name: str, momentum: float) -> Model:
    """With every output that can be distilled, so that the settings of a loss leave it as it is."""
    spec = mmdet.model(name, layers={}, momentum=momentum)
    found = outputs.outputs(outputs.config_of(spec))
    layers = {output: one.path for output, one in found.items()}
    return Model(build=spec.build, kwargs={**spec.kwargs, "layers": layers})


def used(settings: PointDistillerSettings) -> dict[str, str]:
    """Setting -> name of the detectors that the recipe builds."""
    names = {"teacher_model": settings.teacher_model, "student": settings.student}
    return names | ({"student16": settings.student16} if "alone16" in settings.students else {})


def detectors_of(settings: PointDistillerSettings) -> Detectors:
    """The family that the names are of; BadSetting where they are of both."""
    names = used(settings)
    for setting, name in names.items():
        if not is_stock(name) and not NAME.fullmatch(name):
            valid = ["pillars-<width>", "pillars-64", "pillars-32", *mmdet.NAMED, "<file>.py"]
            raise UnknownName("detector", base(name), valid, where=setting)
    stock = {setting: name for setting, name in names.items() if is_stock(name)}
    if not stock:
        return Plain(settings=settings)
    if ours := [setting for setting in names if setting not in stock]:
        setting, name = next(iter(stock.items()))
        alternative = "; or leave alone16 out of students" if ours == ["student16"] else ""
        raise BadSetting(
            f"{ours[0]}: '{names[ours[0]]}' is ours and {setting} '{name}' mmdetection3d's; set "
            f"{', '.join(names)} alike, as in {ours[0]}=pointpillars-kitti/4{alternative}"
        )
    return Stock.of(settings)
