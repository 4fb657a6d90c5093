"""Samplers: noise and labels to images, by many steps of a teacher or by one of its students.

B: batch. C H W: channels, height, width. batch["noise"] [B, C, H, W] is standard normal,
batch["labels"] int64 [B]; the output "images" [B, C, H, W] is in the range of the training data,
-1 to 1 for pixels.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.artifact import spec_of
from stillhouse_diffusion.objectives import karras_sigmas


class HeunSampler(nn.Module):
    """EDM, algorithm 1: the deterministic second-order sampler of the probability-flow equation,
    from sigma `high` to 0 in `steps` steps of Karras' spacing. `evaluations` of the denoiser an
    image: two a step, one in the last.
    """

    sigmas: Tensor

    def __init__(
        self, denoiser: nn.Module, *, steps: int, low: float, high: float, rho: float
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.evaluations = 2 * steps - 1
        levels = karras_sigmas(steps, low=low, high=high, rho=rho).flip(0)
        self.register_buffer("sigmas", torch.cat([levels, torch.zeros(1)]), persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        labels, sigmas = batch["labels"], self.sigmas.tolist()
        x = batch["noise"] * sigmas[0]
        for now, after in itertools.pairwise(sigmas):
            slope = self._slope(x, now, labels)
            moved = x + (after - now) * slope
            if after:
                slope = (slope + self._slope(moved, after, labels)) / 2
                moved = x + (after - now) * slope
            x = moved
        return {"images": x}

    def _slope(self, x: Tensor, sigma: float, labels: Tensor) -> Tensor:
        given = {"images": x, "sigma": x.new_full((len(x),), sigma), "labels": labels}
        return (x - self.denoiser(given)["denoised"]) / sigma


def one_step(denoiser: nn.Module, noise: Tensor, labels: Tensor, *, sigma: float) -> Tensor:
    """DMD's generator: what a denoiser predicts of pure noise at the level it starts from,
    [B, C, H, W].
    """
    # not of len(noise), which an exporter may take for a constant
    level = torch.full_like(noise[:, 0, 0, 0], sigma)
    found: Tensor = denoiser({"images": sigma * noise, "sigma": level, "labels": labels})[
        "denoised"
    ]
    return found


class OneStepStudent(nn.Module):
    """One student: a denoiser, called once at `sigma`."""

    evaluations = 1

    def __init__(self, denoiser: nn.Module, *, sigma: float) -> None:
        super().__init__()
        self.denoiser, self.sigma = denoiser, sigma

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        noise, labels = batch["noise"], batch["labels"]
        return {"images": one_step(self.denoiser, noise, labels, sigma=self.sigma)}


class RoutedStudents(nn.Module):
    """K students behind a router: each image is made by the student that owns its label.

    `owner` [classes] is the student of each label. `training_steps` is the sum over the students of
    the optimizer steps of all stages behind them.
    """

    evaluations = 1
    owner: Tensor

    def __init__(
        self, students: Sequence[nn.Module], *, owner: Sequence[int], training_steps: int
    ) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        self.training_steps = training_steps
        self.register_buffer("owner", torch.tensor(owner), persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        noise, labels = batch["noise"], batch["labels"]
        if len(self.students) == 1:
            return self.students[0]({"noise": noise, "labels": labels})
        found, owner = torch.empty_like(noise), self.owner[labels]
        for number, student in enumerate(self.students):
            rows = (owner == number).nonzero()[:, 0]
            if len(rows):
                part = {"noise": noise[rows], "labels": labels[rows]}
                found[rows] = student(part)["images"]
        return {"images": found}


Record = Mapping[str, Any]  # Any: JSON values; what stillhouse.artifact.recorded gives


def heun_sampler(
    *, denoiser: Record, steps: int, low: float, high: float, rho: float, shape: Sequence[int]
) -> nn.Module:
    """The teacher as a sampler of images of `shape` [C, H, W]."""
    _checked(shape)
    return HeunSampler(spec_of(denoiser).new(), steps=steps, low=low, high=high, rho=rho)


def routed_students(
    *,
    students: Sequence[Record],
    sigma: float,
    owner: Sequence[int],
    training_steps: int,
    shape: Sequence[int],
) -> nn.Module:
    """Students of the denoisers given, images of `shape` [C, H, W]; as `RoutedStudents`."""
    _checked(shape)
    made = [OneStepStudent(spec_of(each).new(), sigma=sigma) for each in students]
    return RoutedStudents(made, owner=owner, training_steps=training_steps)


def _checked(shape: Sequence[int]) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape: expected channels, height and width (got {list(shape)})")
