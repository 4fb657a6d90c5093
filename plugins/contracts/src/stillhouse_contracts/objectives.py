"""Losses of AF-STip's data-free distillation, for one sigmoid a type of vulnerability.

B: batch. C: types. V: vocabulary. L: tokens. The paper names distillation and classification losses
on inputs that Gaussian noise distorts; the generator and its terms are those of data-free
distillation's own line (Chen et al. 2019, DAFL, arXiv 1904.01186; Fang et al. 2021, CMI, arXiv
2105.08584), put in here as the true data-free mode.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stillhouse.objectives import Positive, SampleMean, check_declared

Logits = Float[Tensor, "B C"]


def label_loss(
    student: Logits, labels: Float[Tensor, "B C"], *, positive: Positive = 1.0
) -> SampleMean:
    """Binary cross-entropy of each type, that of functions with the type `positive` times; mean
    over B and C. A weight above 1 is for rare types: the minimum predicts yes from a
    probability of 1 / (1 + positive) on, and its probabilities are too high by as much.
    """
    check_declared(label_loss, positive=positive)
    weight = torch.tensor(positive, dtype=student.dtype, device=student.device)
    return F.binary_cross_entropy_with_logits(student, labels, pos_weight=weight)


def binary_kd_loss(student: Logits, teacher: Logits, *, temperature: Positive = 4.0) -> SampleMean:
    """T² KL of Bernoulli distributions with the shares sigmoid(t/T) and sigmoid(s/T): Hinton et al.
    2015 (arXiv 1503.02531) for independent types; mean over B and C, teacher detached. Zero where
    both agree.
    """
    check_declared(binary_kd_loss, temperature=temperature)
    t, s = teacher.detach() / temperature, student / temperature
    share = t.sigmoid()
    yes = share * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (1 - share) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * (yes + no).mean()


def pseudo_label_loss(student: Logits, teacher: Logits) -> SampleMean:
    """Binary cross-entropy to what the teacher decides, t > 0; mean over B and C."""
    return F.binary_cross_entropy_with_logits(student, (teacher.detach() > 0).to(student.dtype))


def one_hot_loss(teacher: Logits) -> SampleMean:
    """DAFL's one-hot term for sigmoids: binary cross-entropy of the teacher's answer to its own
    decision, low where it is sure; mean over B and C.
    """
    return F.binary_cross_entropy_with_logits(teacher, (teacher.detach() > 0).to(teacher.dtype))


def balance_loss(teacher: Logits, *, target: float = 0.5) -> Float[Tensor, ""]:
    """KL from a share `target` of positives to the teacher's mean over the batch, averaged over C:
    DAFL's information entropy, which rewards as many samples of each class, for sigmoids. Zero
    where the mean is the target.
    """
    share = teacher.sigmoid().mean(0)
    low = torch.finfo(share.dtype).tiny
    yes = target * (target / share.clamp_min(low)).log()
    no = (1 - target) * ((1 - target) / (1 - share).clamp_min(low)).log()
    return (yes + no).mean()


def adversarial_loss(
    student: Logits, teacher: Logits, *, temperature: Positive = 1.0
) -> SampleMean:
    """Minus the distillation loss: what a generator lowers by samples on which the student differs
    (CMI). Unlike `binary_kd_loss` both answers have a gradient, for both depend on the sample.
    """
    check_declared(adversarial_loss, temperature=temperature)
    t, s = teacher / temperature, student / temperature
    share = t.sigmoid()
    yes = share * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (1 - share) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return -(temperature**2) * (yes + no).mean()


@dataclass(kw_only=True)
class BatchStatistics:
    """While entered, how far the inputs of a network's BatchNorm layers are from their running
    statistics (Yin et al. 2020, DeepInversion, arXiv 1912.08795). `loss` is the sum over layers of
    ||mean - running mean||² + ||variance - running variance||², each over channels; 0 for a network
    without such layers.
    """

    network: nn.Module
    found: list[Tensor] = field(default_factory=list[Tensor])
    hooks: list[torch.utils.hooks.RemovableHandle] = field(
        default_factory=list[torch.utils.hooks.RemovableHandle]
    )

    def __enter__(self) -> "BatchStatistics":
        for layer in _batch_norms(self.network):
            self.hooks.append(layer.register_forward_pre_hook(self._record))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm1d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        (x,) = inputs
        channels = x.transpose(0, 1).reshape(x.shape[1], -1)
        mean, variance = channels.mean(1), channels.var(1, unbiased=False)
        gap = (mean - layer.running_mean).square().sum()
        self.found.append(gap + (variance - layer.running_var).square().sum())

    @property
    def loss(self) -> Tensor:
        if self.found:
            return torch.stack(self.found).sum()
        return torch.zeros((), device=next(self.network.parameters()).device)


def _batch_norms(network: nn.Module) -> Iterator[nn.BatchNorm1d]:
    return (layer for layer in network.modules() if isinstance(layer, nn.BatchNorm1d))


def student_terms(
    student: Logits, teacher: Logits, *, alpha: float, temperature: float
) -> Mapping[str, Tensor]:
    """The student's loss on samples without labels: alpha T² KL, and (1 - alpha) cross-entropy to
    what the teacher decides.
    """
    return {
        "kd": alpha * binary_kd_loss(student, teacher, temperature=temperature),
        "label": (1 - alpha) * pseudo_label_loss(student, teacher),
    }
