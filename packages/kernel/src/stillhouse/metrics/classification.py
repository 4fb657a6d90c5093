"""Classification: accuracy, likelihood, calibration, agreement with the teacher, in one pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.batching import each_batch
from stillhouse.data.data import Data
from stillhouse.errors import BadData, BadRecipe
from stillhouse.metrics.known import (
    ACCURACY,
    AGREEMENT,
    CALIBRATION,
    CLASS_RECALL,
    NLL,
    TOP5,
)
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work

TOP5_FROM = 10  # with fewer classes nearly every top-5 guess is right


@dataclass(frozen=True, kw_only=True)
class Classification(Metric):
    """Scores of `role`'s "logits" [B, C] against the batch's "labels" [B]; fractions, but the loss.

    accuracy; top5_accuracy (from 10 classes on); nll_loss (nats, mean); calibration_error (15 bins,
    L1); with a `teacher`, teacher_agreement: how often both predict the same class; with `names`,
    one a class in the order of the logits, class_recall by name, of the classes that the labels
    have. `batch` is only the most rows that are computed at a time.

    Raises BadRecipe for more or fewer names than classes.
    """

    role: str = "student"
    teacher: str | None = None
    names: tuple[str, ...] = ()
    batch: int = 250

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[str | tuple[str, str], float]:
        # torchmetrics takes seconds to import; recipes are built without it
        from torchmetrics.functional.classification import (
            multiclass_accuracy,
            multiclass_calibration_error,
        )

        logits, labels, taught = self._outputs(models, data)
        classes = logits.shape[1]
        scores = {"accuracy": multiclass_accuracy(logits, labels, classes, average="micro")}
        if classes >= TOP5_FROM:
            top5 = multiclass_accuracy(logits, labels, classes, top_k=5, average="micro")
            scores["top5_accuracy"] = top5
        scores["nll_loss"] = torch.nn.functional.cross_entropy(logits, labels)
        scores["calibration_error"] = multiclass_calibration_error(logits, labels, classes)
        if self.teacher is not None:
            scores["teacher_agreement"] = (taught == logits.argmax(1)).float().mean()
        found: dict[str | tuple[str, str], float] = {k: float(v) for k, v in scores.items()}
        return found | self._recalls(logits, labels) if self.names else found

    def _recalls(self, logits: Tensor, labels: Tensor) -> dict[tuple[str, str], float]:
        if len(self.names) != logits.shape[1]:
            raise BadRecipe(
                f"Classification: {len(self.names)} names for {logits.shape[1]} classes"
            )
        rows = torch.bincount(labels, minlength=len(self.names)).tolist()
        right = torch.bincount(labels[logits.argmax(1) == labels], minlength=len(rows)).tolist()
        return {
            (name, CLASS_RECALL.name): right[i] / rows[i]
            for i, name in enumerate(self.names)
            if rows[i]
        }

    def scores(self) -> Sequence[Score]:
        taught = () if self.teacher is None else (AGREEMENT,)
        return (ACCURACY, TOP5, NLL, CALIBRATION, *taught, *((CLASS_RECALL,) if self.names else ()))

    def rows(self) -> Sequence[str]:
        return self.names

    def _outputs(self, models: Models, data: Data) -> tuple[Tensor, Tensor, Tensor]:
        device = next(models[self.role].parameters()).device

        def outputs(batch: Tensors) -> tuple[Tensor, Tensor, Tensor]:
            moved = {name: value.to(device) for name, value in batch.items()}
            logits = models[self.role](moved)["logits"].float()
            taught = models[self.teacher](moved)["logits"] if self.teacher else logits
            return logits.cpu(), batch["labels"], taught.argmax(1).cpu()

        rows = list(each_batch(data, outputs, most=self.batch, device=device))
        if not rows:
            raise BadData("the evaluation data hold no sample")
        logits, labels, taught = (torch.cat(column) for column in zip(*rows, strict=True))
        return logits, labels, taught
