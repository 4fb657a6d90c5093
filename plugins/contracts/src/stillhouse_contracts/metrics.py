"""Scores of detectors of several types: a decision a type where its probability is above 1/2."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.batching import each_batch
from stillhouse.data.data import Data
from stillhouse.errors import BadData
from stillhouse.metrics import Metric, Score
from stillhouse.metrics.known import AGREEMENT
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work

MEAN = "mean"  # the row of all types
BINS = 15  # of the calibration error
OF_TYPE = ("f1", "precision", "recall", "auc", "average_precision", "calibration_error")
LABELS = {
    "f1": "F1",
    "auc": "AUC",
    "average_precision": "Average precision",
    "calibration_error": "Calibration error",
}
TypeScores = Mapping[str, Mapping[str, float]]  # by type, by name


def type_scores(logits: Tensor, labels: Tensor, types: Sequence[str]) -> TypeScores:
    """For each type that some rows have and some have not: F1, precision and recall of the decision
    logit > 0, area under the ROC curve, average precision, and calibration error (L1, 15 bins).
    logits and labels [N, C].
    """
    # torchmetrics takes seconds to import; recipes are built without it
    from torchmetrics.functional.classification import (
        binary_auroc,
        binary_average_precision,
        binary_calibration_error,
        binary_f1_score,
        binary_precision,
        binary_recall,
    )

    functions: dict[str, Any] = {  # Any: functions of several signatures
        "f1": binary_f1_score,
        "precision": binary_precision,
        "recall": binary_recall,
        "auc": binary_auroc,
        "average_precision": binary_average_precision,
    }
    found: dict[str, dict[str, float]] = {}
    for number, name in enumerate(types):
        share, truth = logits[:, number].float().sigmoid(), labels[:, number].long()
        if 0 < int(truth.sum()) < len(truth):
            found_by = {key: float(function(share, truth)) for key, function in functions.items()}
            # sums in single precision end a little above 1
            own = {key: min(1.0, value) for key, value in found_by.items()}
            own["calibration_error"] = float(binary_calibration_error(share, truth, n_bins=BINS))
            found[name] = own
    return found


def macro(scores: TypeScores) -> dict[str, float]:
    """The mean over the types of each score, as "macro_<name>". Raises BadData for none."""
    if not scores:
        raise BadData("no type has both functions with it and functions without; nothing to score")
    return {f"macro_{n}": float(np.mean([own[n] for own in scores.values()])) for n in OF_TYPE}


def logits_of(
    models: Models, data: Data, role: str, *, batch: int = 250
) -> tuple[Tensor, Tensor, Tensor]:
    """A role's "logits", the data's "labels" and "novel", all rows, on the CPU."""
    if not len(data):
        raise BadData("the evaluation data hold no function")
    device = next(models[role].parameters()).device

    def outputs(rows: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        moved = {name: value.to(device) for name, value in rows.items()}
        return models[role](moved)["logits"].float().cpu(), rows["labels"], rows["novel"]

    found = list(each_batch(data, outputs, most=batch, device=device))
    logits, labels, novel = (torch.cat(column) for column in zip(*found, strict=True))
    return logits, labels, novel


def declared_scores(names: Sequence[str] = OF_TYPE, prefix: str = "") -> list[Score]:
    """What `OF_TYPE` are, with a prefix to their names: "macro_"."""
    found: list[Score] = []
    for name in names:
        label = LABELS.get(name, name.capitalize())
        found.append(
            Score(
                name=f"{prefix}{name}",
                better="lower" if name.endswith("_error") else "higher",
                unit="%",
                label=f"{prefix.rstrip('_').capitalize()} {label}" if prefix else label,
            )
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Detection(Metric):
    """macro_f1 and the others of `OF_TYPE`, means over the types, and each of a type as a table;
    with a `teacher`, teacher_agreement: how often both decide alike, over functions and types.
    """

    types: tuple[str, ...]
    role: str = "student"
    teacher: str | None = None

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[str | tuple[str, str], float]:
        logits, labels, _ = logits_of(models, data, self.role)
        by_type = type_scores(logits, labels, self.types)
        found: dict[str | tuple[str, str], float] = {**macro(by_type)}
        if self.teacher is not None:
            taught, _, _ = logits_of(models, data, self.teacher)
            found["teacher_agreement"] = float(((logits > 0) == (taught > 0)).float().mean())
        for name, own in by_type.items():
            found |= {(name, key): value for key, value in own.items()}
        return found

    def scores(self) -> Sequence[Score]:
        taught = () if self.teacher is None else (AGREEMENT,)
        return (*declared_scores(prefix="macro_"), *taught, *declared_scores())

    def rows(self) -> Sequence[str]:
        return self.types

    def uncounted(self, models: Models, data: Data, *, work: Work) -> Mapping[str, Sequence[str]]:
        """Types that all rows of the data, or none, have."""
        _, labels, _ = logits_of(models, data, self.role)
        constant = _constant(labels.numpy())
        names = [name for name, same in zip(self.types, constant, strict=True) if same]
        return {"macro_f1": [f"type {name}" for name in names]} if names else {}


def _constant(labels: NDArray[np.float32]) -> list[bool]:
    return (labels.min(0) == labels.max(0)).tolist()


@dataclass(frozen=True, kw_only=True)
class AllPositive(Metric):
    """The scores of predicting every type for every function: what needs no detector. `rows` and
    `positives` by type are what the test data hold.
    """

    types: tuple[str, ...]

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        batches = list(data.batches(1024, rng=None))
        if not len(data):
            raise BadData("the evaluation data hold no function")
        labels = torch.cat([batch["labels"] for batch in batches])
        by_type = type_scores(torch.ones_like(labels), labels, self.types)
        found = {(MEAN, "macro_f1"): macro(by_type)["macro_f1"]}
        for number, name in enumerate(self.types):
            found[name, "positives"] = float(labels[:, number].sum())
            found[name, "functions"] = float(len(labels))
            if name in by_type:
                found[name, "f1"] = by_type[name]["f1"]
        return found

    def scores(self) -> Sequence[Score]:
        counts = (
            Score(name="positives", better="neither", unit="count"),
            Score(name="functions", better="neither", unit="count"),
        )
        return (*declared_scores(("f1",), "macro_"), *declared_scores(("f1",)), *counts)

    def rows(self) -> Sequence[str]:
        return (*self.types, MEAN)
