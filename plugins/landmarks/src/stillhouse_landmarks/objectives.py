"""Losses on landmark coordinates: L2, L1, and the two-teacher loss of Fard & Mahoor.

Fard & Mahoor 2022, CVIU 215 (arXiv 2111.07047). B: faces of the batch. C: coordinates, twice
the points; a row is x0, y0, x1, y1, ... in fractions of the crop's side, which is the paper's scale
(it flips the sign and shifts, to which every loss here is blind). Each coordinate is handled on its
own. Truth and teachers are always detached. Every loss is a mean over B and C.

In the formulas, of a coordinate: d = |prediction - truth|, t = |teacher - truth|.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.declared import (
    NotNegative,
    NotPositive,
    SampleMean,
    Share,
    check_declared,
)
from stillhouse.objectives.inputs import full, not_negative, positive
from stillhouse.objectives.objective import Weighted
from stillhouse.objectives.term import Term

Variant = Literal["paper", "released"]
VARIANTS = ("paper", "released")
KNEE = 0.5  # of the paper's main loss, in fractions of the crop
SLOPES: Mapping[str, float] = {"paper": 1.0, "released": 3.0}  # of the main loss at the truth
COLUMN = "landmarks"  # of the batch, and the output of every model


def known_variant(variant: str) -> Variant:
    """The variant; raises BadSetting with those there are."""
    if variant == "paper" or variant == "released":
        return variant
    raise BadSetting(f"variant must be one of {', '.join(VARIANTS)} (got '{variant}')")


def l2_loss(prediction: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> SampleMean:
    """Squared error, what the paper trains both teachers with; target detached."""
    return F.mse_loss(full(prediction), full(target).detach())


def l1_loss(prediction: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> SampleMean:
    """Absolute error; target detached."""
    return F.l1_loss(full(prediction), full(target).detach())


def assistive_loss(
    prediction: Float[Tensor, "B C"],
    truth: Float[Tensor, "B C"],
    teacher: Float[Tensor, "B C"],
    *,
    positive: NotNegative,
    negative: NotPositive,
    beta: Share,
    ramp: bool,
) -> SampleMean:
    """Assistive loss of one teacher, arXiv 2111.07047: mean of w |t - d|.

    The teacher is first mirrored to the prediction's side of the truth, so that its distance to the
    prediction is |t - d|. Positive assistant, d > t: w = `positive` >= 0, towards the teacher.
    Negative assistant, beta t <= d <= t: w = `negative` <= 0, away from it and so to the truth. Low
    influence, d < beta t with 0 < `beta` < 1: w = 0 or, with `ramp`, w = negative d / (beta t),
    differentiated through (reconstruction, from the paper's curves). Often below 0; never below
    negative * mean t. Jumps at d = beta t without the ramp, continuous with it.
    """
    check_declared(assistive_loss, positive=positive, negative=negative, beta=beta)
    d = (full(prediction) - full(truth).detach()).abs()
    t = (full(teacher) - full(truth)).detach().abs()
    low = torch.zeros_like(d)
    if ramp:
        # clamped: with t = 0 the branch is not taken, but its gradient must be finite
        low = negative * d / (beta * t).clamp_min(torch.finfo(t.dtype).tiny)
    near = torch.where(d < beta * t, low, negative)
    return (torch.where(d > t, positive, near) * (t - d).abs()).mean()


def paper_main_loss(prediction: Float[Tensor, "B C"], truth: Float[Tensor, "B C"]) -> SampleMean:
    """d up to 1/2 and d^2 + 1/4 beyond (arXiv 2111.07047, read off its figure).

    In fractions of the crop nearly every d is below 1/2: in training this is L1.
    """
    d = (full(prediction) - full(truth).detach()).abs()
    return torch.where(d <= KNEE, d, d.square() + KNEE - KNEE**2).mean()


def released_main_loss(
    prediction: Float[Tensor, "B C"],
    truth: Float[Tensor, "B C"],
    tolerant: Float[Tensor, "B C"],
) -> SampleMean:
    """3 d up to m = |tolerant - truth| and d^2 + 3 m - m^2 beyond, as the authors' code has it.

    Continuous. Where the tolerant teacher is exact, m = 0, this is d^2 and has no slope at the
    truth.
    """
    d = (full(prediction) - full(truth).detach()).abs()
    m = (full(tolerant) - full(truth)).detach().abs()
    slope = SLOPES["released"]
    return torch.where(d <= m, slope * d, d.square() + slope * m - m.square()).mean()


@dataclass(frozen=True, kw_only=True)
class Assistance:
    """One teacher's part: the weights of its two regions (positive >= 0 >= negative), and of the
    whole.
    """

    positive: float
    negative: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        not_negative("positive", self.positive)
        not_negative("weight", self.weight)
        if not self.negative <= 0:
            raise BadSetting(f"negative must be <= 0 (got {self.negative})")


NOBODY = Assistance(positive=0.0, negative=0.0, weight=0.0)


@dataclass(frozen=True, kw_only=True)
class TwoTeacher:
    """The numbers of the two-teacher loss: main_weight * main + sum of each teacher's weight *
    assistive loss.

    With the ramp, a teacher pulls a prediction off the truth with slope weight |negative| / beta;
    unless the main loss is at least as steep there, the truth is no minimum. So both variants
    demand main_weight * slope >= sum of weight |negative| / beta; raises BadSetting with the two
    numbers. A teacher of weight 0 is left out, and its role is not needed.
    """

    variant: Variant
    main_weight: float
    beta: float
    ramp: bool
    tough: Assistance
    tolerant: Assistance

    def __post_init__(self) -> None:
        positive("main_weight", self.main_weight)
        if not 0 < self.beta < 1:
            raise BadSetting(f"beta must be > 0 and < 1 (got {self.beta})")
        slope = self.main_weight * SLOPES[known_variant(self.variant)]
        teachers = (self.tough, self.tolerant)
        pull = sum(t.weight * abs(t.negative) for t in teachers) / self.beta
        if slope < pull:
            raise BadSetting(
                f"two-teacher loss: the main loss rises with {slope:.4g} at the truth, the "
                f"teachers fall with {pull:.4g} (sum of weight * |negative| / beta), so the truth "
                "is no minimum; raise main_weight or beta, or bring negative nearer to 0"
            )

    def losses(
        self,
        *,
        student: str = "student",
        tough: str = "tough",
        tolerant: str = "tolerant",
        truth: str = COLUMN,
    ) -> Mapping[str, Weighted]:
        """The terms main, tough and tolerant of a composed objective, on these roles and this
        column of the batch. The `released` main loss reads the tolerant role whatever its weight.
        """
        found, aim = f"{student}.{COLUMN}", f"batch.{truth}"
        main = (
            Term(paper_main_loss, found, aim)
            if self.variant == "paper"
            else Term(released_main_loss, found, aim, f"{tolerant}.{COLUMN}")
        )
        losses = {"main": Weighted(term=main, weight=self.main_weight)}
        for name, role, part in (
            ("tough", tough, self.tough),
            ("tolerant", tolerant, self.tolerant),
        ):
            if part.weight > 0:
                term = Term(
                    assistive_loss,
                    found,
                    aim,
                    f"{role}.{COLUMN}",
                    positive=part.positive,
                    negative=part.negative,
                    beta=self.beta,
                    ramp=self.ramp,
                )
                losses[name] = Weighted(term=term, weight=part.weight)
        return losses


PAPER = TwoTeacher(
    variant="paper",
    main_weight=2.5,
    beta=0.4,
    ramp=True,
    tough=Assistance(positive=0.9, negative=-0.45),
    tolerant=Assistance(positive=0.9, negative=-0.45),
)
RELEASED = TwoTeacher(
    variant="released",
    main_weight=2.0,
    beta=0.15,
    ramp=False,
    tough=Assistance(positive=1.9, negative=-0.45),
    tolerant=Assistance(positive=1.8, negative=-0.40),
)
