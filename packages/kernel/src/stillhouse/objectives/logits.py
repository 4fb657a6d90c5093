"""Distillation from logits: KD, DKD, DIST, and logit standardization in front of any of them.

B: samples of the batch. C: classes. Every loss is a mean over B; divergences are in nats.
The teacher is always detached, and half-precision logits are computed with in float32.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.objectives.declared import NotNegative, Positive, SampleMean, check_declared
from stillhouse.objectives.inputs import full

# A row whose spread is below this fraction of its norm is constant up to float32 rounding.
FLAT = 1e-6


def kd_loss(
    student_logits: Float[Tensor, "B C"],
    teacher_logits: Float[Tensor, "B C"],
    *,
    temperature: Positive,
    standardize: bool = False,
) -> SampleMean:
    """Hinton et al. 2015 (arXiv 1503.02531), section 2: T^2 KL(teacher || student) at T, in nats.

    Of softmax(logits / T); sum over C, mean over B ("batchmean"). The factor T^2 keeps gradients of
    one size at every temperature > 0. `standardize` puts `standardized` in front of both.
    """
    check_declared(kd_loss, temperature=temperature)
    if standardize:
        student_logits, teacher_logits = standardized(student_logits), standardized(teacher_logits)
    p = F.log_softmax(full(student_logits) / temperature, dim=1)
    q = F.log_softmax(full(teacher_logits.detach()) / temperature, dim=1)
    return temperature**2 * _kl(p, q)


def dkd_loss(
    student_logits: Float[Tensor, "B C"],
    teacher_logits: Float[Tensor, "B C"],
    labels: Integer[Tensor, " B"],
    *,
    alpha: NotNegative,
    beta: NotNegative,
    temperature: Positive,
    standardize: bool = False,
) -> SampleMean:
    """Decoupled KD, Zhao et al. 2022 (arXiv 2203.08679), eq. 7: T^2 (alpha TCKD + beta NCKD).

    TCKD = KL(teacher || student) of [p_target, 1 - p_target]; NCKD = the same of the softmax over
    the other classes; both mean over B. KD = TCKD + (1 - p_target of the teacher) NCKD (eq. 6).
    temperature > 0; alpha, beta >= 0; C >= 2 (for C = 2 NCKD is 0). Everything is in logarithms, so
    that a confident wrong row has a finite gradient. `standardize` as in `kd_loss`.
    """
    check_declared(dkd_loss, alpha=alpha, beta=beta, temperature=temperature)
    if standardize:
        student_logits, teacher_logits = standardized(student_logits), standardized(teacher_logits)
    p, p_rest = _decoupled(full(student_logits) / temperature, labels.long())
    q, q_rest = _decoupled(full(teacher_logits.detach()) / temperature, labels.long())
    return temperature**2 * (alpha * _kl(p, q) + beta * _kl(p_rest, q_rest))


def dist_loss(
    student_logits: Float[Tensor, "B C"],
    teacher_logits: Float[Tensor, "B C"],
    *,
    beta: NotNegative,
    gamma: NotNegative,
    temperature: Positive,
) -> Float[Tensor, ""]:
    """DIST, Huang et al. 2022 (arXiv 2205.10536), section 4: T^2 (beta inter + gamma intra).

    Over the [B, C] probabilities softmax(. / T): inter = mean over samples of 1 - Pearson's r of a
    row with the teacher's row; intra = mean over classes of the same of columns. A constant row or
    column (so every column for B = 1) has r = 0 and no gradient. temperature > 0; beta, gamma >= 0.
    Differs: the factor T^2 is the authors' released setting; the paper's appendix leaves it out.
    """
    check_declared(dist_loss, beta=beta, gamma=gamma, temperature=temperature)
    p = F.softmax(full(student_logits) / temperature, dim=1)
    q = F.softmax(full(teacher_logits.detach()) / temperature, dim=1)
    inter, intra = 1 - _pearson(p, q).mean(), 1 - _pearson(p.mT, q.mT).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def standardized(logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """Logit standardization, Sun et al. 2024 (arXiv 2403.01427), algorithm 1: z-score of each row.

    Mean 0 and standard deviation 1 (over C, not C - 1); to be used in place of logits on both sides
    of KD or DKD. A constant row gives zeros and no gradient (the paper divides by zero).
    """
    return logits.shape[1] ** 0.5 * _unit_rows(full(logits))


def kl_terms(log_p: Float[Tensor, "*N"], log_q: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """The terms q (ln q - ln p) of KL(q || p) in nats; 0 where q is 0, whatever p is there.

    torch's kl_div gives NaN for a class of which q says -inf, though its limit is 0.
    """
    terms = F.kl_div(log_p, log_q, reduction="none", log_target=True)
    return torch.where(log_q > -torch.inf, terms, 0.0)


def _kl(p: Float[Tensor, "B K"], q: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """KL(q || p) of log-probabilities, mean over B."""
    return kl_terms(p, q).sum() / len(p)


def _decoupled(
    x: Float[Tensor, "B C"], labels: Integer[Tensor, " B"]
) -> tuple[Float[Tensor, "B 2"], Float[Tensor, "B C-1"]]:
    """Log of [p_target, 1 - p_target], and the log-softmax over the other classes."""
    index = torch.arange(x.shape[1] - 1, device=x.device)
    others = x.gather(1, index + (index >= labels[:, None]))
    target = x.gather(1, labels[:, None])
    binary = torch.cat([target, others.logsumexp(1, keepdim=True)], dim=1)
    return F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)


def _pearson(a: Float[Tensor, "N K"], b: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    return (_unit_rows(a) * _unit_rows(b)).sum(dim=1)


def _unit_rows(x: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Rows centred and scaled to norm 1; zeros, without a gradient, for a constant row."""
    centred = x - x.mean(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    flat = norm <= FLAT * torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True)
    return torch.where(flat, 0.0, centred / torch.where(flat, 1.0, norm))
