"""Distillation over a long vocabulary: from k classes, as a cache keeps them (stillhouse.sparse),
or from all.

N: rows (samples, or tokens of samples). V: classes. k: kept classes of a row, each once. Every loss
is a mean over N, in nats; the teacher is a constant, and kept numbers belong to one temperature,
which has to be the loss's. The gradient is computed with the value, in memory that both need; there
is no second derivative.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.objectives.declared import Positive, SampleMean, check_declared
from stillhouse.objectives.inputs import full

BLOCK = 1 << 22  # numbers that are worked on at a time on a CPU


def fused_kd_loss(
    student_logits: Float[Tensor, "*N V"],
    teacher_logits: Float[Tensor, "*N V"],
    *,
    temperature: Positive,
) -> SampleMean:
    """`kd_loss`, its gradient computed with its value: less memory and time, and no other result
    but for rounding.
    """
    check_declared(fused_kd_loss, temperature=temperature)
    student, teacher = full(_flat(student_logits)), full(_flat(teacher_logits.detach()))
    wide = torch.promote_types(student.dtype, teacher.dtype)
    value: Tensor = _Whole.apply(student.to(wide), teacher.to(wide), temperature)
    return temperature**2 * value


def sparse_kd_loss(
    student_logits: Float[Tensor, "*N V"],
    index: Integer[Tensor, "*N k"],
    log_p: Float[Tensor, "*N k"],
    rest: Float[Tensor, "*N"],
    *,
    temperature: Positive,
) -> SampleMean:
    """Hinton et al. 2015 (arXiv 1503.02531), section 2, of k classes and one bucket for the rest:
    T^2 [sum over kept i of t_i (ln t_i - ln s_i) + t_R (ln t_R - ln s_R)], mean over N.

    t = softmax(teacher / T) in logarithms, `log_p` of the classes in `index` and `rest` = ln t_R of
    all others together (-inf for none); s_R = sum of softmax(student / T) over the others. With
    k = V it is `kd_loss`. Below that it is a lower bound of it (the chain rule of KL: what is
    missing is t_R KL(teacher || student, both given the rest) >= 0), and within the rest the
    student keeps its own proportions: the gradient of class j there is softmax_j (1 - t_R / s_R).
    """
    check_declared(sparse_kd_loss, temperature=temperature)
    rows = _flat(student_logits)
    k = index.shape[-1]
    value: Tensor = _Bucketed.apply(
        full(rows),
        index.reshape(-1, k).long(),
        log_p.reshape(-1, k).to(rows.device),
        rest.reshape(-1).to(rows.device),
        temperature,
    )
    return temperature**2 * value


def sampled_kd_loss(
    student_logits: Float[Tensor, "*N V"],
    index: Integer[Tensor, "*N k"],
    weight: Float[Tensor, "*N k"],
    entropy: Float[Tensor, "*N"],
    *,
    temperature: Positive,
) -> SampleMean:
    """Random sampling KD, Anshumann et al. 2025 (ACL, arXiv 2503.16870): T^2 of an estimate of
    KL(teacher || student), -H(t) - sum over drawn i of w_i ln softmax_i(student / T), mean over N.

    E[w_i if i is drawn, else 0] = t_i = softmax_i(teacher / T), so that value and gradient are
    unbiased; H(t) = `entropy` in nats. With k = V it is `kd_loss`. The estimate of a row may be
    negative. Differs: the paper draws with replacement and leaves the entropy, a constant, out.
    """
    check_declared(sampled_kd_loss, temperature=temperature)
    rows = _flat(student_logits)
    k = index.shape[-1]
    crossed: Tensor = _Crossed.apply(
        full(rows), index.reshape(-1, k).long(), weight.reshape(-1, k), temperature
    )
    return temperature**2 * (crossed - full(entropy).mean())


def _blocks(x: Tensor) -> Iterator[slice]:
    """Rows to work on at a time: on a CPU as many as its caches may hold; else all."""
    size = max(1, BLOCK // x.shape[1]) if x.device.type == "cpu" else max(1, len(x))
    for start in range(0, len(x), size):
        yield slice(start, min(start + size, len(x)))


def _flat(logits: Tensor) -> Tensor:
    return logits.reshape(-1, logits.shape[-1])


class _WithGradient(torch.autograd.Function):
    """A mean over rows whose forward keeps the gradient by its first argument, the logits."""

    @staticmethod
    def keep(ctx: Any, gradient: Tensor, temperature: float) -> None:  # Any: torch's context
        """Keep the gradient of each row's value by its logits over the temperature."""
        ctx.save_for_backward(gradient)
        ctx.scale = 1 / (temperature * max(1, len(gradient)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        others = len(ctx.needs_input_grad) - 1
        return gradient * (grads[0] * ctx.scale), *(None,) * others


class _Whole(_WithGradient):
    """KL of all classes, mean over rows, with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,  # Any: torch's context, here and below
        logits: Tensor,
        teacher: Tensor,
        temperature: float,
    ) -> Tensor:
        gradient, values = torch.empty_like(logits), logits.new_empty(len(logits))
        for rows in _blocks(logits):
            log_s = (logits[rows] / temperature).log_softmax(1)
            log_t = (teacher[rows] / temperature).log_softmax(1)
            t = log_t.exp()
            gap = log_t.sub_(log_s)
            value = torch.linalg.vecdot(t, gap)
            if not bool(value.isfinite().all()):
                # a class that the teacher excludes: 0 (-inf - ...) is 0 here, not NaN
                value = torch.linalg.vecdot(t, gap.masked_fill_(t == 0, 0.0))
            values[rows] = value
            torch.sub(log_s.exp_(), t, out=gradient[rows])
        _WithGradient.keep(ctx, gradient, temperature)
        return values.mean()


class _Bucketed(_WithGradient):
    """KL of k classes and a bucket, mean over rows, with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        index: Tensor,
        log_p: Tensor,
        rest: Tensor,
        temperature: float,
    ) -> Tensor:
        x = logits / temperature
        t, t_rest = log_p.to(x.dtype), rest.to(x.dtype)
        kept = x.gather(1, index)
        given, s_rest = _given_rest(x.scatter_(1, index, float("-inf")))
        s = torch.logaddexp(kept.logsumexp(1), s_rest)
        s_kept, s_rest = kept - s[:, None], s_rest - s
        value = _summand(t, s_kept).sum(1) + _summand(t_rest, s_rest)
        # within the rest: softmax_j (1 - t_R / s_R) = softmax_j given the rest * (s_R - t_R)
        gradient = given.mul_((s_rest.exp() - t_rest.exp())[:, None])
        gradient.scatter_(1, index, s_kept.exp() - t.exp())
        _WithGradient.keep(ctx, gradient, temperature)
        return value.mean()


class _Crossed(_WithGradient):
    """-sum of w ln softmax, mean over rows, with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, index: Tensor, weight: Tensor, temperature: float
    ) -> Tensor:
        x = logits / temperature
        w = weight.to(x)
        kept = x.gather(1, index)
        softmax, s = _given_rest(x)
        mass = w.sum(1)
        value = mass * s - (w * kept).sum(1)
        gradient = softmax.mul_(mass[:, None])
        gradient.scatter_add_(1, index, -w)
        _WithGradient.keep(ctx, gradient, temperature)
        return value.mean()


def _given_rest(x: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of each row, in the memory of `x`, and its log-sum-exp; 0 and -inf for a row of
    -inf alone.
    """
    peak = x.amax(1).clamp_min(torch.finfo(x.dtype).min)
    mass = x.sub_(peak[:, None]).exp_().sum(1)
    x.div_(mass.clamp_min(torch.finfo(x.dtype).tiny)[:, None])
    return x, peak + mass.log()


def _summand(t: Tensor, s: Tensor) -> Tensor:
    """t (ln t - ln s) of logarithms; 0 where t is 0."""
    share = t.exp()
    return torch.where(share > 0, share * (t - s), 0.0)
