"""Scores of the method: how soft soft landmarks are, how errors spread, how near a teacher is."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.data.data import Data
from stillhouse.errors import BadData
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_landmarks.metrics import Normalizer, as_points, face_errors, nme
from stillhouse_landmarks.shape import ShapeModel

BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Softness:
    """For shape models of the data's own shapes that explain each of `variances`: "<percent>
    %/modes", how many modes it has, and "<percent> %/soft_nme_error", the NME of the soft to the
    hard landmarks.
    """

    variances: tuple[float, ...] = (0.80, 0.90, 0.95, 0.97)
    normalizer: Normalizer = "corners"

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        rows = [batch["landmarks"].float() for batch in data.batches(BATCH, rng=None)]
        if not rows:
            raise BadData("the data hold no face")
        shapes = torch.cat(rows)
        scores: dict[str, float] = {}
        for variance in self.variances:
            model = ShapeModel.fit(shapes, variance)
            line = f"{100 * variance:g} %"
            scores[f"{line}/modes"] = float(len(model.modes))
            scores[f"{line}/soft_nme_error"] = self._distance(model.soften(shapes), shapes)
        return scores

    def _distance(self, soft: Tensor, hard: Tensor) -> float:
        errors = nme(as_points(soft), as_points(hard), normalizer=self.normalizer)
        return float(errors.mean())


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """median_nme_error and p90_nme_error: half and a tenth of the faces have a larger NME."""

    role: str = "student"
    normalizer: Normalizer = "corners"

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        errors = face_errors(models, data, role=self.role, normalizer=self.normalizer)
        return {
            "median_nme_error": float(errors.quantile(0.5)),
            "p90_nme_error": float(errors.quantile(0.9)),
        }


@dataclass(frozen=True, kw_only=True)
class TeacherGap:
    """teacher_nme_error: the distance of the student's points to the teacher's, divided as an NME
    by the truth's own distance.
    """

    student: str = "student"
    teacher: str = "teacher"
    normalizer: Normalizer = "corners"
    batch: int = 250

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        device = next(models[self.teacher].parameters()).device
        total, count = 0.0, 0
        for rows in data.batches(self.batch, rng=None):
            moved = {name: value.to(device) for name, value in rows.items()}
            ours, theirs = (
                as_points(models[role](moved)["landmarks"].float().cpu())
                for role in (self.student, self.teacher)
            )
            truth = as_points(rows["landmarks"])
            gap = nme(ours - theirs + truth, truth, normalizer=self.normalizer)
            total, count = total + float(gap.sum()), count + len(gap)
        if count == 0:
            raise BadData("the evaluation data hold no face")
        return {"teacher_nme_error": total / count}
