"""Scores of the method: how soft soft landmarks are, how errors spread, how near a teacher is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.batching import each_batch
from stillhouse.data.data import Data
from stillhouse.errors import BadData
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work
from stillhouse_landmarks.metrics import Normalizer, as_points, face_errors, nme, nme_score
from stillhouse_landmarks.shape import ShapeModel

BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Softness(Metric):
    """For shape models of the data's own shapes that explain each of `variances`, a row each:
    modes, how many it has, and soft_nme_error, the NME of the soft to the hard landmarks.
    """

    variances: tuple[float, ...] = (0.80, 0.90, 0.95, 0.97)
    normalizer: Normalizer = "corners"

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        rows = [batch["landmarks"].float() for batch in data.batches(BATCH, rng=None)]
        if not rows:
            raise BadData("the data hold no face")
        shapes = torch.cat(rows)
        scores: dict[tuple[str, str], float] = {}
        for variance in self.variances:
            model = ShapeModel.fit(shapes, variance)
            line = f"{100 * variance:g} %"
            scores[line, "modes"] = float(len(model.modes))
            scores[line, "soft_nme_error"] = self._distance(model.soften(shapes), shapes)
        return scores

    def scores(self) -> Sequence[Score]:
        soft = nme_score("soft_nme_error", "NME of soft to hard")
        return (Score(name="modes", better="neither"), soft)

    def _distance(self, soft: Tensor, hard: Tensor) -> float:
        errors = nme(as_points(soft), as_points(hard), normalizer=self.normalizer)
        return float(errors.mean())


@dataclass(frozen=True, kw_only=True)
class Quantiles(Metric):
    """median_nme_error and p90_nme_error: half and a tenth of the faces have a larger NME."""

    role: str = "student"
    normalizer: Normalizer = "corners"

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        errors = face_errors(models, data, role=self.role, normalizer=self.normalizer)
        return {
            "median_nme_error": float(errors.quantile(0.5)),
            "p90_nme_error": float(errors.quantile(0.9)),
        }

    def scores(self) -> Sequence[Score]:
        return (
            nme_score("median_nme_error", "Median NME"),
            nme_score("p90_nme_error", "90th percentile NME"),
        )


@dataclass(frozen=True, kw_only=True)
class TeacherGap(Metric):
    """teacher_nme_error: the distance of the student's points to the teacher's, divided as an NME
    by the truth's own distance.
    """

    student: str = "student"
    teacher: str = "teacher"
    normalizer: Normalizer = "corners"
    batch: int = 250

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        device = next(models[self.teacher].parameters()).device

        def gap(rows: Tensors) -> Tensor:
            moved = {name: value.to(device) for name, value in rows.items()}
            ours, theirs = (
                as_points(models[role](moved)["landmarks"].float().cpu())
                for role in (self.student, self.teacher)
            )
            truth = as_points(rows["landmarks"])
            return nme(ours - theirs + truth, truth, normalizer=self.normalizer)

        total, count = 0.0, 0
        for found in each_batch(data, gap, most=self.batch, device=device):
            total, count = total + float(found.sum()), count + len(found)
        if count == 0:
            raise BadData("the evaluation data hold no face")
        return {"teacher_nme_error": total / count}

    def scores(self) -> Sequence[Score]:
        return (nme_score("teacher_nme_error", "NME to the teacher"),)
