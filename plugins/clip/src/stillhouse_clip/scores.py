"""Scores of students of VLM-OOD, which are `ZeroShot` models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.batching import each_batch
from stillhouse.data.data import Data, RowData
from stillhouse.errors import BadData, BadSetting
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work
from stillhouse_clip.banks import ZeroShot
from stillhouse_clip.closed_set import ClosedSet
from stillhouse_clip.metrics import (
    class_mean_accuracy,
    neighbour_overlap,
    order_inversions,
    relation_match,
    retrieval_few_shot,
)
from stillhouse_clip.objectives.vlm_ood import unit

BATCH = 128
NEIGHBOURS, LABELS = (3, 5, 10), (2, 3, 5)


def embedded(
    model: torch.nn.Module, data: Data, *names: str, output: str = "embedding"
) -> tuple[Tensor, ...]:
    """The model's embeddings of all images, or another output, and those columns of the data."""
    device = next(model.parameters()).device

    def compute(batch: Tensors) -> tuple[Tensor, ...]:
        found = model({"images": batch["images"].to(device)})[output]
        return found.float().cpu(), *(batch[name] for name in names)

    rows = list(each_batch(data, compute, most=BATCH, device=device))
    if not rows:
        raise BadData("the evaluation data hold no image")
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def zero_shot_model(models: Models, role: str) -> ZeroShot:
    model = models[role]
    if not isinstance(model, ZeroShot):
        raise BadData(f"role '{role}' has no bank of class texts; join it with WithBank")
    return model


@dataclass(frozen=True, kw_only=True)
class Unseen(Metric):
    """Zero-shot accuracy on images of classes that were never trained on, among those classes
    (labels 0 ... U - 1), and, where `against` a teacher (a column of the data), how alike its space
    is: M_rel, M_neigh, M_vlalign, squared distance and angle.

    unseen_accuracy is the mean over classes, as the paper reports, unseen_image_accuracy that over
    images; unseen_among_all_accuracy the mean over classes where the known classes compete too.
    """

    role: str = "student"
    against: bool = True

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        model, columns = (
            zero_shot_model(models, self.role),
            ("labels", "teacher")[: 1 + self.against],
        )
        found, labels, *teacher = embedded(model, data, *columns)
        rows = unit(model.rows.cpu())
        logits = unit(found) @ rows.mT
        predicted = logits[:, model.known :].argmax(1)
        scores = {
            "unseen_accuracy": class_mean_accuracy(predicted, labels),
            "unseen_image_accuracy": float((predicted == labels).float().mean()),
            "unseen_among_all_accuracy": class_mean_accuracy(
                logits.argmax(1) - model.known, labels
            ),
        }
        return {**scores, **(self._spaces(found, teacher[0], rows) if teacher else {})}

    def _spaces(self, found: Tensor, teacher: Tensor, rows: Tensor) -> Mapping[str, float]:
        gap = imitation_gap(found, teacher)
        scores = {"m_rel": relation_match(found, teacher)}
        for k in NEIGHBOURS:
            if k < len(found):
                scores[f"m_neigh{k}"] = neighbour_overlap(found, teacher, k=k)
        for k in LABELS:
            if k <= len(rows):
                scores[f"m_vlalign{k}"] = order_inversions(found, teacher, rows, k=k)
        return {**scores, **gap}

    def scores(self) -> Sequence[Score]:
        spaces = (
            Score(name="m_rel", better="higher", unit="%", label="M_rel"),
            *(
                Score(name=f"m_neigh{k}", better="higher", unit="%", label=f"M_neigh, k = {k}")
                for k in NEIGHBOURS
            ),
            *(
                Score(name=f"m_vlalign{k}", better="lower", label=f"M_vlalign, k = {k}")
                for k in LABELS
            ),
            Score(name="teacher_distance", better="neither", label="Squared distance to teacher"),
            Score(name="teacher_angle", better="neither", unit="deg", label="Angle to teacher"),
        )
        return (
            Score(name="unseen_accuracy", better="higher", unit="%", label="Unseen classes"),
            Score(
                name="unseen_image_accuracy", better="higher", unit="%", label="Unseen, by image"
            ),
            Score(
                name="unseen_among_all_accuracy",
                better="higher",
                unit="%",
                label="Unseen among all classes",
            ),
            *(spaces if self.against else ()),
        )


def imitation_gap(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """The mean squared distance of unit vectors and the mean angle in degrees."""
    cosine = (unit(student) * unit(teacher)).sum(1).clamp(-1, 1)
    return {
        "teacher_distance": float((2 - 2 * cosine).mean()),
        "teacher_angle": float(cosine.acos().rad2deg().mean()),
    }


@dataclass(frozen=True, kw_only=True)
class Known(Metric):
    """Accuracy on other images of the classes that were trained on, at the data port `data`, among
    those classes: the mean over classes, and over images. A closed set predicts by its classifier.
    """

    role: str = "student"
    data: str = "validation"

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        model = models[self.role]
        if isinstance(model, ClosedSet):
            found, labels = embedded(model, work.data[self.data], "labels", output="logits")
            predicted = found.argmax(1)
        else:
            model = zero_shot_model(models, self.role)
            found, labels = embedded(model, work.data[self.data], "labels")
            predicted = (unit(found) @ unit(model.rows[: model.known].cpu()).mT).argmax(1)
        return {
            "known_accuracy": class_mean_accuracy(predicted, labels),
            "known_image_accuracy": float((predicted == labels).float().mean()),
        }

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="known_accuracy", better="higher", unit="%", label="Known classes"),
            Score(name="known_image_accuracy", better="higher", unit="%", label="Known, by image"),
        )


@dataclass(frozen=True, kw_only=True)
class FewShots(Metric):
    """Accuracy on unseen classes with few images of each: unseen_accuracy, the mean over classes;
    where `support` names a data port, by retrieval from the embeddings there. Those are the
    teacher's, or with `own` the model's: then no class text is read, and the model may be a closed
    set.
    """

    role: str = "student"
    support: str = ""
    own: bool = False

    def __post_init__(self) -> None:
        if self.own and not self.support:
            raise BadSetting("few shots: own embeddings need a data port `support`")

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        model = models[self.role] if self.own else zero_shot_model(models, self.role)
        assert isinstance(model, ZeroShot | ClosedSet)
        found, labels = embedded(model, data, "labels")
        if not self.support:
            assert isinstance(model, ZeroShot)
            logits = unit(found) @ unit(model.rows[model.known :].cpu()).mT
            return {"few_shot_accuracy": class_mean_accuracy(logits.argmax(1), labels)}
        cache = work.data[self.support]
        assert isinstance(cache, RowData)
        columns = cache.rows(torch.arange(len(cache)))
        shots = columns["labels"] - model.known
        if isinstance(model, ZeroShot) and not self.own:
            rows = model.rows[model.known :].cpu()
        else:  # rows of zeros: cosines of 0, so that the shots alone vote
            rows = found.new_zeros(int(shots.max()) + 1, found.shape[1])
        logits = retrieval_few_shot(found, rows, columns["embedding"], shots)
        return {"few_shot_accuracy": class_mean_accuracy(logits.argmax(1), labels)}

    def scores(self) -> Sequence[Score]:
        return (Score(name="few_shot_accuracy", better="higher", unit="%", label="Unseen classes"),)


@dataclass(frozen=True, kw_only=True)
class TextSpace(Metric):
    """How class texts lie, of the bank `role`: their mean pairwise cosine, and the part of the
    spectrum that the largest of ten eigenvalues takes (enriched texts: flatter).
    """

    role: str = "bank"

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        rows = unit(models[self.role].get_buffer("rows").cpu())
        cosines = rows @ rows.mT
        count = len(rows)
        pairs = (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
        values = torch.linalg.svdvals(rows).square()[:10]
        return {
            "text_cosine": float(pairs),
            "first_eigenvalue": float(values[0] / values.sum()),
        }

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="text_cosine", better="neither", label="Mean cosine of two classes"),
            Score(
                name="first_eigenvalue",
                better="neither",
                unit="%",
                label="First of ten eigenvalues",
            ),
        )
