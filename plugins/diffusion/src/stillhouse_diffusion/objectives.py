"""Losses of one-step distillation: distribution matching, fake score, adversarial, score matching.

B: batch. C H W: channels, height, width of the image; points of a plane are images of 2 x 1 x 1.
Denoisers predict the clean image at a noise level sigma, in EDM's form: x_t = x + sigma * noise.

MSD (arXiv 2410.23274) has no published code. Distribution matching and its adversarial part are
those of DMD (arXiv 2311.18828) and DMD2 (arXiv 2405.14867), noise levels and weights those of EDM
(Karras et al. 2022, arXiv 2206.00364).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives import Positive, SampleMean, check_declared
from stillhouse.objectives.inputs import full


def karras_sigmas(n: int, *, low: Positive, high: Positive, rho: Positive) -> Float[Tensor, " n"]:
    """EDM, equation 5: n noise levels from `low` up to `high`, evenly spaced in sigma ** (1 / rho).

    Ascending; a sampler walks them backwards. float64 inside, float32 out. Raises BadSetting unless
    n >= 2 and 0 < low < high.
    """
    check_declared(karras_sigmas, low=low, high=high, rho=rho)
    if n < 2 or low >= high:
        raise BadSetting(f"karras_sigmas needs n >= 2 and low < high (got {n}, {low}, {high})")
    steps = torch.linspace(0, 1, n, dtype=torch.float64)
    sigmas = (low ** (1 / rho) + steps * (high ** (1 / rho) - low ** (1 / rho))) ** rho
    return sigmas.float()


def distribution_matching_gradient(
    image: Float[Tensor, "B C H W"],
    real: Float[Tensor, "B C H W"],
    fake: Float[Tensor, "B C H W"],
) -> Float[Tensor, "B C H W"]:
    """DMD, equations 7 and 8, of denoised images: (fake - real) / mean over C, H, W of
    |image - real|, a sample at a time.

    `image` is the generator's clean one, `real` and `fake` what the teacher and the fake-score
    model predict of the same noised image. No gradient reaches any of them. What is no finite
    number (the teacher returns the image itself) is 0. Differs: DMD's code turns infinity into the
    largest float, which ends a training.
    """
    with torch.no_grad():
        image, real, fake = full(image), full(real), full(fake)
        scale = (image - real).abs().mean(dim=(1, 2, 3), keepdim=True)
        return torch.nan_to_num((fake - real) / scale, nan=0.0, posinf=0.0, neginf=0.0)


def distribution_matching_loss(
    image: Float[Tensor, "B C H W"], gradient: Float[Tensor, "B C H W"]
) -> SampleMean:
    """Half the mean square of image - stopgrad(image - gradient), mean over B, C, H and W: its
    gradient by the image is `gradient` over the number of elements.
    """
    target = (image - gradient).detach()
    return 0.5 * F.mse_loss(full(image), full(target))


def fake_score_loss(
    prediction: Float[Tensor, "B C H W"],
    image: Float[Tensor, "B C H W"],
    sigma: Float[Tensor, " B"],
    *,
    sigma_data: Positive,
) -> SampleMean:
    """EDM, equation 8: the squared error of the denoised image, weighted by 1 / sigma^2 +
    1 / sigma_data^2, mean over B, C, H and W. `image` is detached: a generator learns nothing here.

    The same loss trains a teacher on real images.
    """
    check_declared(fake_score_loss, sigma_data=sigma_data)
    gap = full(prediction) - full(image).detach()
    return (_weight(sigma, sigma_data) * gap.square()).mean()


def adversarial_losses(
    fake_logit: Float[Tensor, " B"], real_logit: Float[Tensor, " B"]
) -> dict[str, Tensor]:
    """DMD2, equation 4, in its non-saturating form, means over B, unweighted:
    "generator" softplus(-fake), "discriminator" softplus(fake) + softplus(-real).

    Nothing is detached: who trains the discriminator detaches the generated images.
    """
    fake, real = full(fake_logit), full(real_logit)
    return {
        "generator": F.softplus(-fake).mean(),
        "discriminator": F.softplus(fake).mean() + F.softplus(-real).mean(),
    }


def tsm_loss(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B C H W"],
    sigma: Float[Tensor, " B"],
    *,
    sigma_data: Positive,
) -> SampleMean:
    """Teacher score matching of MSD, stage 0: the squared distance of two denoised images of the
    same noised real one, weighted as EDM's training, (sigma^2 + sigma_data^2) / (sigma *
    sigma_data)^2; teacher detached.

    Zero only where both agree. Differs: a mean over C, H and W where the paper sums, which is a
    constant factor.
    """
    check_declared(tsm_loss, sigma_data=sigma_data)
    gap = full(student) - full(teacher).detach()
    return (_weight(sigma, sigma_data) * gap.square()).mean()


def _weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """EDM's weight of a squared error, [B, 1, 1, 1]."""
    return (1 / full(sigma).square() + 1 / sigma_data**2)[:, None, None, None]
