"""Training a detector of mmdetection3d by its own losses and whatever is added."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Generator

from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import named, not_negative
from stillhouse.objectives.objective import Composed, Models, Phase, Tensors, Weighted
from stillhouse.objectives.supervised import role_loss
from stillhouse.objectives.term import Term
from stillhouse_pointcloud.mmdet.network import Detector

OWN = "detection"


@dataclass(frozen=True, kw_only=True)
class DetectorTraining:
    """mmdetection3d's losses of `student`, `weight` times, and the terms of `losses`; an objective
    that runs their roles as the kernel's `Composed` does.

    A step makes the batch's voxels once, as the student's configuration has them for training, and
    every detector reads the same: a teacher must have the grid of its student.
    """

    phases: Mapping[str, Phase]
    student: str = "student"
    losses: Mapping[str, Weighted] = field(default_factory=dict[str, Weighted])
    feeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    weight: float = 1.0

    def __post_init__(self) -> None:
        not_negative("weight", self.weight)
        if OWN in self.losses:
            raise BadSetting(f"detection: a loss is called '{OWN}', as the detector's own")

    @functools.cached_property  # read each step; no field, so no digest sees it
    def composed(self) -> Composed:
        """All terms, of a batch with voxels."""
        own = Weighted(term=Term(role_loss, f"{self.student}.loss"), weight=self.weight)
        return Composed(phases=self.phases, losses={OWN: own, **self.losses}, feeds=self.feeds)

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Tensors:
        student = named(models, self.student, what="role", where="detection")
        if not isinstance(student, Detector):
            raise BadSetting(
                f"detection: role '{self.student}' is a {type(student).__name__}, not a detector "
                "of mmdetection3d"
            )
        self._check(models, student)
        seen = student.voxelised(batch)
        return self.composed.terms(phase, models, seen, step=step, steps=steps, rng=rng)

    def _check(self, models: Models, student: Detector) -> None:
        for role in self.composed.roles:
            other = named(models, role, what="role", where="detection")
            if isinstance(other, Detector) and other.grid != student.grid:
                raise BadSetting(
                    f"role '{role}': its voxels are {other.grid}, the student's {student.grid}; "
                    "teacher and student need the same"
                )
