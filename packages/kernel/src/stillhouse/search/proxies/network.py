"""What the proxies need of a network: a copy to work on, its maps, the gradient of its head.

B: samples of the batch. N: classes. D: embedding width. A network here is a classifier that takes
{"images"} and names its outputs "logits" [B, N], "embedding" [B, D] (what its linear head reads)
and "hint1" to "hint<last>" (one map a stage, the last one before pooling).
"""

import copy
import math

import torch
from jaxtyping import Float, Integer
from torch import Generator, Tensor, nn

from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import full, named, product
from stillhouse.objectives.objective import Tensors

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm)


def working_copy(module: nn.Module, *, training: bool) -> nn.Module:
    """A deep copy whose parameters take gradients, so that scoring leaves the network as it was."""
    return copy.deepcopy(module).requires_grad_(True).train(training)


def draw_normal(module: nn.Module, rng: Generator) -> None:
    """Weights of convolutions and linear layers ~ N(0, 1), their biases 0; norms scale by 1, shift
    by 0. Drawn on the CPU: the same on every device. Other parameters stay as they are.
    """
    with torch.no_grad():
        for part in module.modules():
            if not isinstance(part, (*WEIGHTED, *NORMS)):
                continue
            for name, parameter in part.named_parameters(recurse=False):
                if name == "bias":
                    parameter.zero_()
                elif isinstance(part, WEIGHTED):
                    parameter.copy_(torch.randn(parameter.shape, generator=rng))
                else:
                    parameter.fill_(1.0)


def weights_of(module: nn.Module) -> list[Tensor]:
    """The weights of convolutions and linear layers, without biases and norms, in order; a shared
    one once.
    """
    weights = [part.weight for part in module.modules() if isinstance(part, WEIGHTED)]
    return list(dict.fromkeys(weights))


def maps_of(outputs: Tensors) -> tuple[Tensor, ...]:
    """The maps "hint1", "hint2", ... in order; raises UnknownName where there is none."""
    named(outputs, "hint1", what="output", where="scored network")
    count = sum(f"hint{i}" in outputs for i in range(1, len(outputs) + 1))
    return tuple(outputs[f"hint{i}"] for i in range(1, count + 1))


def output(outputs: Tensors, name: str) -> Tensor:
    """One output of a scored network; raises UnknownName."""
    return named(outputs, name, what="output", where="scored network")


def head_gradient(
    logits: Float[Tensor, "B N"], embedding: Float[Tensor, "B D"], labels: Integer[Tensor, " B"]
) -> Float[Tensor, "N D"]:
    """Gradient of the batch's mean cross-entropy to the weights of a linear head, without autograd:
    (softmax(logits) - one-hot)^T embedding / B, in at least float32; detached.
    """
    slope = full(logits.detach()).softmax(dim=1)
    slope = slope - nn.functional.one_hot(labels.long(), logits.shape[1])
    return product(slope.mT, embedding.detach()) / len(labels)


def check_batch(images: Tensor, labels: Tensor) -> None:
    """Raises BadSetting for fewer than two samples, BadData for counts that differ."""
    if len(images) != len(labels):
        raise BadData(f"{len(images)} images and {len(labels)} labels: one an image is needed")
    if len(images) < 2:  # batch statistics, and relations, are between samples
        raise BadSetting(f"a score needs a batch of at least 2 images (got {len(images)})")


def check_labels(logits: Tensor, labels: Tensor) -> None:
    """Raises BadData for a label that is no class of the network."""
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise BadData(
            f"labels go from {int(labels.min())} to {int(labels.max())}; "
            f"the network has classes 0 to {logits.shape[1] - 1}"
        )


def finite(name: str, value: float) -> float:
    """`value`; raises BadSetting where it is NaN or infinite."""
    if not math.isfinite(value):
        raise BadSetting(
            f"{name} of this network is {value}: its activations or gradients overflow; "
            "a network without normalisation layers needs smaller weights"
        )
    return value
