"""What a new score has to beat: size, and the zero-cost proxies of untrained networks.

B: samples. Each takes a network, images [B, C, H, W] and labels [B], leaves the network as it was
and gives one number, higher is more promising. Weights are the caller's (fresh ones of the default
initialisation) but for `zen`. "Weights" below are those of convolutions and linear layers, without
biases and norms.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stillhouse import profile
from stillhouse.errors import BadSetting
from stillhouse.search.proxies.network import (
    BATCH_NORMS,
    check_batch,
    check_labels,
    draw_normal,
    finite,
    maps_of,
    output,
    weights_of,
    working_copy,
)
from stillhouse.training import mix

Proxy = Callable[[nn.Module, Tensor, Tensor], float]
RELUS = ("relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_")
JACOV_SMALL = 1e-5  # the authors' k, which keeps log and reciprocal of a zero eigenvalue finite


def parameters(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Number of parameters: the baseline that most zero-cost proxies do not beat."""
    return float(sum(p.numel() for p in module.parameters()))


def macs(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Multiply-accumulates of one image (convolutions and matrix products)."""
    network = working_copy(module, training=False)
    return float(profile.macs(network, {"images": images[:1]}))


def nwot(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """NASWOT, Mellor et al. 2021 (arXiv 2006.04647): log |det K_H|, in nats.

    K_H[i, j] counts the ReLU units, of the whole network, that are on for both samples or off for
    both. Train mode. -inf where two samples have the same code. Raises BadSetting for a network
    without ReLUs.
    """
    check_batch(images, labels)
    network = working_copy(module, training=True)
    with torch.no_grad(), _ReluCodes(len(images)) as codes:
        network({"images": images})
    if codes.agreements is None:
        raise BadSetting("nwot counts ReLU units; this network has none")
    return float(torch.linalg.slogdet(codes.agreements)[1])


class _ReluCodes(TorchDispatchMode):
    """Adds up, over the ReLUs that run, in how many units each two samples agree, [B, B]."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.agreements: Tensor | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # Any: torch's own protocol of operators
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in RELUS:
            # counts of ones are exact in float32 up to 2^24 units a layer
            on = (result > 0).reshape(self.batch, -1).float()
            both, count = (on @ on.mT).double(), on.sum(1).double()
            agree = on.shape[1] + 2 * both - count[:, None] - count  # units - on for one only
            self.agreements = agree if self.agreements is None else self.agreements + agree
        return result


def synflow(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """SynFlow, Tanaka et al. 2020 (arXiv 2006.05467): sum over weights of w dR / dw, R the sum of
    the logits for one image of ones and absolute parameters.

    In float64, eval mode, with the running statistics of BatchNorm at mean 0, variance 1: a norm is
    then (almost) the identity. Only the shape of `images` counts; a network that normalises its
    images sees ones that are normalised.
    """
    network = working_copy(module, training=False).double()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, BATCH_NORMS):
                part.reset_running_stats()
        for parameter in network.parameters():
            parameter.abs_()
    ones = torch.ones_like(images[:1], dtype=torch.float64)
    total = output(network({"images": ones}), "logits").sum()
    weights = weights_of(network)
    products = [w * g for w, g in zip(weights, _gradients(total, weights), strict=True)]
    return finite("synflow", _total([p.sum() for p in products]))


def snip(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """SNIP, Lee et al. 2019 (arXiv 1810.02340), summed: sum over weights of |w dL / dw|, L the
    batch's mean cross-entropy, train mode.
    """
    weights, gradients = _loss_gradients(module, images, labels)
    products = [w * g for w, g in zip(weights, gradients, strict=True)]
    return finite("snip", _total([p.abs().sum() for p in products]))


def grad_norm(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Abdelfattah et al. 2021 (arXiv 2101.08134): sum over layers of the 2-norm of dL / dw, L the
    batch's mean cross-entropy, train mode.
    """
    _, gradients = _loss_gradients(module, images, labels)
    return finite("grad_norm", _total([torch.linalg.vector_norm(g) for g in gradients]))


def jacov(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Jacobian covariance, Mellor et al., first version of arXiv 2006.04647:
    -sum over i of log(v_i + k) + 1 / (v_i + k), v the eigenvalues of the [B, B] correlations
    between the samples' gradients of the logits' sum to the image; k = 1e-5. Train mode. -inf for
    a network that is dead for a sample: its gradient is 0, or the same for each pixel.
    """
    check_batch(images, labels)
    network = working_copy(module, training=True)
    pixels = images.detach().clone().requires_grad_(True)
    total = output(network({"images": pixels}), "logits").sum()
    (slope,) = _gradients(total, [pixels])
    rows = slope.flatten(1).double()
    finite("jacov", float(rows.sum()))
    if float((rows.amax(dim=1) - rows.amin(dim=1)).min()) == 0:
        return -math.inf
    correlations = torch.corrcoef(rows)
    values = torch.linalg.eigvalsh(correlations) + JACOV_SMALL
    # rounding leaves a singular matrix with an eigenvalue a little below zero
    values = values.clamp_min(JACOV_SMALL / 2)
    return -float((values.log() + values.reciprocal()).sum())


def zen(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    inits: int = 4,
    alpha: float = 0.01,
    seed: int = 0,
) -> float:
    """Zen-score, Lin et al. 2021 (arXiv 2102.01063), algorithm 1: log of the mean 2-norm of
    f(x) - f(x + alpha e), plus log of sqrt(mean over channels of the batch variance) for each
    BatchNorm; x, e ~ N(0, 1), f the last map before pooling. Mean over `inits` draws of the weights
    ~ N(0, 1) and of x, e.

    Differs: residual links stay (the paper takes them out), and f(x + alpha e) is normalised with
    its own batch statistics. -inf for a network that gives the same for both, or for a BatchNorm
    without variance. Only the shape of `images` counts, B >= 2. `seed` draws everything.
    """
    check_batch(images, labels)
    if inits < 1:
        raise BadSetting(f"inits must be >= 1 (got {inits})")
    if not alpha > 0:
        raise BadSetting(f"alpha must be > 0 (got {alpha})")
    network = working_copy(module, training=True)
    seeds = [mix(seed, number) for number in range(inits)]
    scores = [_zen(network, images, alpha, Generator().manual_seed(s)) for s in seeds]
    return -math.inf if -math.inf in scores else finite("zen", sum(scores) / inits)


def _zen(network: nn.Module, images: Tensor, alpha: float, rng: Generator) -> float:
    draw_normal(network, rng)
    x, e = (torch.randn(images.shape, generator=rng).to(images.device) for _ in range(2))
    spreads: list[float] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        dims = [d for d in range(inputs[0].ndim) if d != 1]
        spreads.append(inputs[0].double().var(dim=dims, correction=0).mean().sqrt().item())

    norms = [part for part in network.modules() if isinstance(part, BATCH_NORMS)]
    handles = [norm.register_forward_pre_hook(record) for norm in norms]
    with torch.no_grad():
        one = maps_of(network({"images": x}))[-1]
        for handle in handles:
            handle.remove()
        other = maps_of(network({"images": x + alpha * e}))[-1]
    gap = torch.linalg.vector_norm((one - other).flatten(1).double(), dim=1).mean().item()
    return sum(_log(finite("zen", value)) for value in [gap, *spreads])


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _loss_gradients(
    module: nn.Module, images: Tensor, labels: Tensor
) -> tuple[list[Tensor], Sequence[Tensor]]:
    check_batch(images, labels)
    network = working_copy(module, training=True)
    logits = output(network({"images": images}), "logits")
    check_labels(logits, labels)
    weights = weights_of(network)
    return weights, _gradients(F.cross_entropy(logits, labels.long()), weights)


def _gradients(total: Float[Tensor, ""], weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradient to each weight; zeros for one that plays no part."""
    return torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)


def _total(values: Sequence[Tensor]) -> float:
    return torch.stack([value.detach().double() for value in values]).sum().item()


COMPARISON: Mapping[str, Proxy] = {
    "parameters": parameters,
    "macs": macs,
    "nwot": nwot,
    "synflow": synflow,
    "snip": snip,
    "grad_norm": grad_norm,
    "jacov": jacov,
    "zen": zen,
}
