"""What is trained of a denoiser, as objectives with phases: the teacher, TSM, DM and ADM.

B: batch. C H W: channels, height, width. Batches hold "images" as they are stored (uint8 pixels, or
floats that are taken as they are) and "labels". All random numbers are drawn on the CPU from the
step's generator, so that they are the same on any device.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import not_negative, positive
from stillhouse.objectives.objective import Models, Phase, Tensors
from stillhouse_diffusion.objectives import (
    adversarial_losses,
    distribution_matching_gradient,
    distribution_matching_loss,
    fake_score_loss,
    karras_sigmas,
    tsm_loss,
)
from stillhouse_diffusion.sampling import one_step

# of the grid of noise levels, what distribution matching leaves out at either end (DMD2's code)
FIRST, LAST = 0.02, 0.98
Features = Literal["fake", "teacher"]


def pixels(images: Tensor) -> Tensor:
    """Stored images as denoisers see them: uint8 0 ... 255 as -1 ... 1, floats as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def normal(shape: torch.Size | tuple[int, ...], like: Tensor, rng: Generator) -> Tensor:
    """Standard normal numbers on the device of `like`."""
    return torch.randn(shape, generator=rng).to(like.device)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise levels of EDM: those a denoiser is trained at, ln(sigma) ~ N(mean, std^2), and the grid
    of `levels` Karras levels from `low` to `high` that distribution matching draws from. A one-step
    student starts from `high`.

    EDM's own mean -1.2 and std 1.2 hardly ever reach its 80: with a student that starts where its
    teacher was never trained nothing is learned, so smaller `high` or wider noise is advised.
    """

    mean: float = -1.2
    std: float = 1.2
    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0
    levels: int = 1000
    data: float = 0.5

    def __post_init__(self) -> None:
        for name in ("std", "low", "high", "rho", "data"):
            positive(name, getattr(self, name))
        if self.low >= self.high or self.levels < 100:
            raise BadSetting(
                f"noise needs low < high and 100 levels or more (got {self.low}, {self.high}, "
                f"{self.levels})"
            )

    def training(self, images: Tensor, rng: Generator) -> Tensor:
        """Levels to train a denoiser at [B], between `low` and `high`."""
        drawn = torch.randn(len(images), generator=rng) * self.std + self.mean
        return drawn.exp().clamp(self.low, self.high).to(images.device)

    def grid(
        self, images: Tensor, rng: Generator, *, first: float = 0.0, last: float = 1.0
    ) -> Tensor:
        """Levels of the grid, evenly drawn by index from `first` to `last` of it [B]."""
        sigmas = karras_sigmas(self.levels, low=self.low, high=self.high, rho=self.rho)
        low, high = round(first * self.levels), min(round(last * self.levels), self.levels - 1)
        drawn = torch.randint(low, high + 1, (len(images),), generator=rng)
        return sigmas[drawn].to(images.device)


def noised(images: Tensor, sigma: Tensor, labels: Tensor, rng: Generator) -> dict[str, Tensor]:
    """What a denoiser is given: images plus sigma times noise, the level and the labels."""
    noise = normal(images.shape, images, rng)
    return {"images": images + sigma[:, None, None, None] * noise, "sigma": sigma, "labels": labels}


@dataclass(frozen=True, kw_only=True)
class DenoiseImages:
    """EDM's training of `role` on real images: `fake_score_loss` at its own noise levels."""

    phases: Mapping[str, Phase]
    noise: Noise
    role: str = "teacher"

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Tensors:
        images = pixels(batch["images"])
        sigma = self.noise.training(images, rng)
        found = models[self.role](noised(images, sigma, batch["labels"], rng))["denoised"]
        return {"denoising": fake_score_loss(found, images, sigma, sigma_data=self.noise.data)}


@dataclass(frozen=True, kw_only=True)
class MatchScores:
    """Stage 0 of MSD, teacher score matching (TSM): the narrower "student" learns the denoiser
    "teacher" on noised real images.
    """

    phases: Mapping[str, Phase]
    noise: Noise

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Tensors:
        images = pixels(batch["images"])
        sigma = self.noise.training(images, rng)
        given = noised(images, sigma, batch["labels"], rng)
        with torch.no_grad():
            target = models["teacher"](given)["denoised"]
        found = models["student"](given)["denoised"]
        return {"tsm": tsm_loss(found, target, sigma, sigma_data=self.noise.data)}


@dataclass(frozen=True, kw_only=True)
class MatchDistribution:
    """Stages 1 and 2 of MSD: a one-step "student" whose images have the teacher's distribution.

    Two phases. "student" trains the generator by the distribution-matching gradient of the frozen
    "teacher" and the frozen "fake" score; with `regression` > 0 also by its distance to the
    teacher's image of the same noise, for the pairs "pairs.noise", "pairs.images", "pairs.labels"
    of all labels (the paper filters conditions, not pairs); with `adversarial` > 0 also by a frozen
    "discriminator". "fake" trains the fake score on the student's present images, and with
    `adversarial` the discriminator on its features (`features` "teacher": on the teacher's) of
    noised generated and real images. Two time scales: let the phase "student" run every R steps.

    Conditions are the batch's labels: the part of the data that the student owns. With pairs they
    are "part.labels", as a `Beside` of the ports "part" and "pairs" gives them.

    Differs: the regression is a mean squared error; DMD has LPIPS, whose network is not to be had
    everywhere. DMD's weight of LPIPS, 0.25, is from memory.
    """

    phases: Mapping[str, Phase]
    noise: Noise
    regression: float = 0.0
    adversarial: float = 0.0
    guidance: float = 1e-2
    features: Features = "fake"

    def __post_init__(self) -> None:
        for name in ("regression", "adversarial", "guidance"):
            not_negative(name, getattr(self, name))
        for name in ("student", "fake"):
            if name not in self.phases:
                raise BadSetting(f"distribution matching has the phases student and fake ({name}?)")

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Tensors:
        batch = _part(batch)
        if phase == "student":
            return self._student(models, batch, rng)
        return self._fake(models, batch, rng)

    def _generated(self, models: Models, batch: Tensors, rng: Generator) -> Tensor:
        noise = normal(pixels(batch["images"]).shape, batch["images"], rng)
        return one_step(models["student"], noise, batch["labels"], sigma=self.noise.high)

    def _student(self, models: Models, batch: Tensors, rng: Generator) -> Tensors:
        labels = batch["labels"]
        images = self._generated(models, batch, rng)
        with torch.no_grad():
            sigma = self.noise.grid(images, rng, first=FIRST, last=LAST)
            given = noised(images, sigma, labels, rng)
            real, fake = (models[role](given)["denoised"] for role in ("teacher", "fake"))
        gradient = distribution_matching_gradient(images, real, fake)
        terms = {"matching": distribution_matching_loss(images, gradient)}
        if self.regression:
            noise, target = batch["pairs.noise"], batch["pairs.images"]
            found = one_step(models["student"], noise, batch["pairs.labels"], sigma=self.noise.high)
            terms["regression"] = self.regression * F.mse_loss(found, target)
        if self.adversarial:
            logit = self._logit(models, images, labels, rng)
            losses = adversarial_losses(logit, logit)
            terms["adversarial"] = self.adversarial * losses["generator"]
        return terms

    def _fake(self, models: Models, batch: Tensors, rng: Generator) -> Tensors:
        labels = batch["labels"]
        with torch.no_grad():
            images = self._generated(models, batch, rng)
        sigma = self.noise.grid(images, rng)
        found = models["fake"](noised(images, sigma, labels, rng))["denoised"]
        data = self.noise.data
        terms = {"denoising": fake_score_loss(found, images, sigma, sigma_data=data)}
        if self.adversarial:
            fake = self._logit(models, images, labels, rng)
            real = self._logit(models, pixels(batch["images"]), labels, rng)
            losses = adversarial_losses(fake, real)
            terms["discriminating"] = self.guidance * losses["discriminator"]
        return terms

    def _logit(self, models: Models, images: Tensor, labels: Tensor, rng: Generator) -> Tensor:
        """How real noised images look to the discriminator [B]."""
        given = noised(images, self.noise.grid(images, rng), labels, rng)
        inner = models[self.features](given, bottleneck=True)
        return models["discriminator"](inner)["logit"]


def _part(batch: Tensors) -> dict[str, Tensor]:
    """The columns of the student's part under their own names."""
    return {name.removeprefix("part."): value for name, value in batch.items()}
