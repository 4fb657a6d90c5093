"""KD3 (arXiv 2307.11469): distillation with web-collected images, as one objective.

B: samples of the batch. M: instances of the pool. The equations are those of the released code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from stillhouse.batching import each_batch
from stillhouse.data.data import Data, RowData, Rows
from stillhouse.errors import BadData, BadSetting
from stillhouse.metrics import Score
from stillhouse.objectives.features import hint_loss
from stillhouse.objectives.inputs import not_negative, positive
from stillhouse.objectives.objective import Models, Phase, Tensors
from stillhouse.training import Augment
from stillhouse.work import Work
from stillhouse_vision.objectives.alignment import nt_xent, weighted_alignment_loss
from stillhouse_vision.objectives.mixing import beta_sample, mix_distribution
from stillhouse_vision.objectives.selection import mixing_weight, select_instances

Selection = Literal["dynamic", "teacher", "none"]
VOCABULARY = "vocabulary"  # column: whether the image's own class is one of the target's
IN_VOCABULARY = Score(name="in_vocabulary_rate", better="higher", unit="%", label="In vocabulary")


@dataclass(frozen=True, kw_only=True)
class KD3:
    """Weighted feature alignment on dynamically selected instances, and contrast with images of
    mixed statistics. No label is read; there is no term on the logits.

    Roles: "teacher" and "head" (its linear layer), both frozen; "student" and "projector"; with
    `mix_weight` > 0 "embedding" (a linear map of the student's), and with `teacher_contrast` also
    "teacher_embedding". z_t are the teacher's logits, z_s the head's on the projected student.

    An epoch, for the weight alpha of the selection, is one interval of `refresh_every` steps,
    counted from 1. Differs: the released code's is a pass over the selected, so that its number of
    steps depends on the selection; here it is fixed, and the same for every row of a comparison.
    """

    phases: Mapping[str, Phase]
    refresh_every: int
    milestones: tuple[float, float]  # of `mixing_weight`, in epochs
    student_map: str
    teacher_map: str
    # dynamic: by both; teacher: by the teacher alone (alpha = 1 throughout); none: the whole pool
    selection: Selection = "dynamic"
    cutoff: float = 0.95
    least: int = 1  # rows chosen at the least
    # augmentation of the pool when selecting; the views are those of training. None: as it is
    select_augment: Augment | None = None
    views: int = 1
    weighted: bool = True  # False: every sample weighs 1
    weight_temperature: float = 1.0  # see `alignment_weights`
    weight_standardize: bool = False
    mix_weight: float = 0.001  # 0: no images of mixed statistics
    contrast_temperature: float = 0.3
    concentration: float = 0.1  # of the Beta distribution of lambda
    # the same contrast of the teacher, as the released code adds up: it trains "teacher_embedding"
    # alone, which nothing else reads
    teacher_contrast: bool = False
    pool_batch: int = 250  # only the selection's batch size

    def __post_init__(self) -> None:
        for name in ("refresh_every", "least", "views", "pool_batch"):
            if getattr(self, name) < 1:
                raise BadSetting(f"{name} must be >= 1 (got {getattr(self, name)})")
        not_negative("mix_weight", self.mix_weight)
        for name in ("weight_temperature", "contrast_temperature", "concentration"):
            positive(name, getattr(self, name))
        mixing_weight(1, milestones=self.milestones)

    def terms(
        self,
        phase: str,
        models: Models,
        batch: Tensors,
        *,
        step: int,
        steps: int,
        rng: Generator,
    ) -> Tensors:
        with torch.no_grad():
            teacher: Tensors = models["teacher"](batch)
        student: Tensors = models["student"](batch)
        terms = {"alignment": self._alignment(models, student, teacher)}
        if self.mix_weight > 0:
            terms |= self._contrast(models, batch, student, teacher, rng)
        return terms

    def _alignment(self, models: Models, student: Tensors, teacher: Tensors) -> Tensor:
        projected = models["projector"]({self.student_map: student[self.student_map]})
        if not self.weighted:
            return hint_loss(projected["map"], teacher[self.teacher_map])
        with torch.no_grad():
            logits = models["head"](projected)["logits"]
        return weighted_alignment_loss(
            projected["map"],
            teacher[self.teacher_map],
            logits,
            teacher["logits"],
            temperature=self.weight_temperature,
            standardize=self.weight_standardize,
        )

    def _contrast(
        self, models: Models, batch: Tensors, student: Tensors, teacher: Tensors, rng: Generator
    ) -> dict[str, Tensor]:
        count, images = len(batch["images"]), unit_pixels(batch["images"])
        lam = beta_sample(count, self.concentration, rng=rng).to(images.device)
        permutation = torch.randperm(count, generator=rng).to(images.device)
        mixed = {"images": mix_distribution(images, lam, permutation)}
        # a forward pass of its own: BatchNorm sees the two kinds of images apart
        again: Tensors = models["student"](mixed)
        terms = {"contrast": self._views(models, "embedding", "student", student, again)}
        if self.teacher_contrast:
            with torch.no_grad():
                other: Tensors = models["teacher"](mixed)
            embedding = "teacher_embedding"
            terms[embedding] = self._views(models, embedding, "teacher", teacher, other)
        return terms

    def _views(
        self, models: Models, embedding: str, role: str, first: Tensors, second: Tensors
    ) -> Tensor:
        a, b = (
            models[embedding]({f"{role}.embedding": outputs["embedding"]})["embedding"]
            for outputs in (first, second)
        )
        return self.mix_weight * nt_xent(a, b, temperature=self.contrast_temperature)

    def epoch(self, step: int) -> int:
        """The epoch of a step, from 1."""
        return step // self.refresh_every + 1

    def alpha(self, step: int) -> float:
        """The teacher's weight in the selection at a step."""
        if self.selection == "teacher":
            return 1.0
        return mixing_weight(self.epoch(step), milestones=self.milestones)

    def refresh(
        self,
        models: Models,
        data: Data,
        *,
        step: int,
        work: Work,
    ) -> Data:
        if not isinstance(data, RowData):
            raise BadData(
                f"a pool to select from must be a stage's data (got {type(data).__name__})"
            )
        if self.selection == "none":
            return Rows(data, torch.arange(len(data)))
        alpha = self.alpha(step)
        teacher, student = self.pool_logits(models, data, view=(self.epoch(step) - 1) % self.views)
        index = select_instances(
            teacher, student, alpha=alpha, cutoff=self.cutoff, least=self.least
        )
        return Rows(data, index)

    @torch.no_grad()
    def pool_logits(self, models: Models, data: Data, *, view: int) -> tuple[Tensor, Tensor]:
        """Both networks' logits [M, K] on the whole pool, in its order, on the CPU."""
        device = next(models["student"].parameters()).device

        def logits(given: Tensors) -> tuple[Tensor, Tensor]:
            batch: Tensors = {**given, "view": torch.full_like(given["id"], view)}
            if self.select_augment is not None:
                batch = self.select_augment(batch)
            batch = {name: value.to(device) for name, value in batch.items()}
            teacher = models["teacher"](batch)["logits"]
            features: Tensors = models["student"](batch)
            projected = models["projector"]({self.student_map: features[self.student_map]})
            return teacher.cpu(), models["head"](projected)["logits"].cpu()

        rows = each_batch(data, logits, most=self.pool_batch, device=device)
        teacher_logits, student_logits = zip(*rows, strict=True)
        return torch.cat(teacher_logits), torch.cat(student_logits)

    def describe(self, chosen: Data, data: Data, *, step: int) -> Mapping[str, float]:
        """The share of the chosen whose own class is one of the target's, where the data say so;
        and the teacher's weight in the choice.
        """
        assert isinstance(chosen, Rows)
        assert isinstance(data, RowData)
        known = data.columns.get(VOCABULARY)
        recorded: dict[str, float] = {}
        if isinstance(known, Tensor):
            recorded[IN_VOCABULARY.name] = float(known[chosen.index].float().mean())
        if self.selection != "none":
            recorded["teacher_weight"] = self.alpha(step)
        return recorded

    def quantities(self) -> Sequence[Score]:
        return (IN_VOCABULARY, Score(name="teacher_weight", better="neither"))


def unit_pixels(images: Tensor) -> Tensor:
    """Images as floats in [0, 1], as the models of this plugin take them beside uint8."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
