"""KD3's MixDistribution (arXiv 2307.11469): images with the colour statistics of others.

B: images. C H W: channels, height, width.
"""

import torch
from jaxtyping import Float, Integer
from torch import Generator, Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import positive

FLOOR = 1e-6  # added to a variance, so that a flat channel has a deviation


def mix_distribution(
    images: Float[Tensor, "B C H W"],
    lam: Float[Tensor, " B"],
    permutation: Integer[Tensor, " B"],
) -> Float[Tensor, "B C H W"]:
    """Each image with its mean and deviation a channel mixed with those of another image j:

        (x_i - mu_i) / sigma_i (lam_i sigma_i + (1 - lam_i) sigma_j) + lam_i mu_i + (1 - lam_i) mu_j

    over the H W pixels of a channel; sigma = sqrt(unbiased variance + 1e-6), j = permutation[i].
    MixStyle (arXiv 2104.02008) in input space. lam 1 leaves an image as it is, 0 gives it the
    other's statistics. Results are not clipped. Images need two pixels.

    The same before and after a normalisation (x - m) / s a channel, up to the 1e-6: mu, sigma and
    the result all transform as x does, with 1e-6 s^2 in the place of 1e-6. So pixels in [0, 1] may
    be mixed where a model normalises by itself.
    """
    if images.shape[2] * images.shape[3] < 2:
        raise BadSetting(f"mix_distribution needs images of 2 pixels (got {list(images.shape)})")
    mean = images.mean(dim=(2, 3), keepdim=True)
    deviation = (images.var(dim=(2, 3), keepdim=True) + FLOOR).sqrt()
    own = lam[:, None, None, None]
    new_mean = own * mean + (1 - own) * mean[permutation]
    new_deviation = own * deviation + (1 - own) * deviation[permutation]
    return (images - mean) / deviation * new_deviation + new_mean


def beta_sample(count: int, concentration: float, *, rng: Generator) -> Float[Tensor, " count"]:
    """`count` draws of Beta(concentration, concentration), 0 < concentration <= 1, from `rng`.

    Johnk's method: x = u^(1/a), y = v^(1/a) of uniform u, v, kept where x + y <= 1; then x over
    x + y. In logarithms, because u^10 of a = 0.1 leaves float32. (torch's Beta takes no generator.)
    """
    positive("concentration", concentration)
    if concentration > 1:
        raise BadSetting(f"concentration must be <= 1 (got {concentration})")
    kept = torch.empty(0, dtype=torch.float64)
    while len(kept) < count:
        # 1 - rand is in (0, 1], whose logarithm is finite
        x, y = (1 - torch.rand(2, count, dtype=torch.float64, generator=rng)).log() / concentration
        kept = torch.cat([kept, torch.sigmoid(x - y)[torch.logaddexp(x, y) <= 0]])
    return kept[:count].float()
