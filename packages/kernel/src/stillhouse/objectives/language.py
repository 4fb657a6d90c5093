"""Terms of language models: cross-entropy and distillation of tokens, from hidden states and head.

The student gives "hidden", what goes into its head, and "head", the head's weight; logits of all
tokens are never in memory at once (`chunked`). N: tokens, over any number of axes. D: width. V:
classes. k: classes that are kept of the teacher. Every loss is a mean over the tokens of `mask`
(over all without one), in nats. `chunk` counts tokens; `scale` and `softcap` are the student's (see
`Head`; None: none).
"""

from functools import partial

from jaxtyping import Bool, Float, Integer
from torch import Tensor

from stillhouse.objectives.chunked import CHUNK, Head, chunked
from stillhouse.objectives.declared import Count, Positive, check_declared
from stillhouse.objectives.sparse import fused_kd_loss, sampled_kd_loss, sparse_kd_loss
from stillhouse.objectives.supervised import cross_entropy_loss

IGNORED = -100  # the label of a token that does not count


def lm_cross_entropy_loss(
    hidden: Float[Tensor, "*N D"],
    head: Float[Tensor, "V D"],
    labels: Integer[Tensor, "*N"],
    *,
    chunk: Count = CHUNK,
    scale: float = 1.0,
    softcap: Positive | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the next token with the label, mean over labels that are not -100."""
    check_declared(lm_cross_entropy_loss, chunk=chunk, softcap=softcap)
    student = Head(hidden=hidden, weight=head, scale=scale, softcap=softcap)
    return chunked(cross_entropy_loss, student, labels, mask=labels != IGNORED, chunk=chunk)


def lm_kd_loss(
    hidden: Float[Tensor, "*N D"],
    head: Float[Tensor, "V D"],
    teacher_hidden: Float[Tensor, "*N E"],
    teacher_head: Float[Tensor, "V E"],
    mask: Bool[Tensor, "*N"] | None = None,
    *,
    temperature: Positive,
    chunk: Count = CHUNK,
    scale: float = 1.0,
    softcap: Positive | None = None,
    teacher_scale: float = 1.0,
    teacher_softcap: Positive | None = None,
) -> Float[Tensor, ""]:
    """`kd_loss` (Hinton et al. 2015, arXiv 1503.02531) of tokens, from both's hidden states."""
    check_declared(
        lm_kd_loss,
        temperature=temperature,
        chunk=chunk,
        softcap=softcap,
        teacher_softcap=teacher_softcap,
    )
    student = Head(hidden=hidden, weight=head, scale=scale, softcap=softcap)
    teacher = Head(
        hidden=teacher_hidden, weight=teacher_head, scale=teacher_scale, softcap=teacher_softcap
    )
    loss = partial(fused_kd_loss, temperature=temperature)
    return chunked(loss, student, teacher, mask=mask, chunk=chunk)


def lm_sparse_kd_loss(
    hidden: Float[Tensor, "*N D"],
    head: Float[Tensor, "V D"],
    index: Integer[Tensor, "*N k"],
    log_p: Float[Tensor, "*N k"],
    rest: Float[Tensor, "*N"],
    mask: Bool[Tensor, "*N"] | None = None,
    *,
    temperature: Positive,
    chunk: Count = CHUNK,
    scale: float = 1.0,
    softcap: Positive | None = None,
) -> Float[Tensor, ""]:
    """`sparse_kd_loss` of tokens: the k likeliest classes of the teacher, and their rest."""
    check_declared(lm_sparse_kd_loss, temperature=temperature, chunk=chunk, softcap=softcap)
    student = Head(hidden=hidden, weight=head, scale=scale, softcap=softcap)
    loss = partial(sparse_kd_loss, temperature=temperature)
    return chunked(loss, student, index, log_p, rest, mask=mask, chunk=chunk)


def lm_sampled_kd_loss(
    hidden: Float[Tensor, "*N D"],
    head: Float[Tensor, "V D"],
    index: Integer[Tensor, "*N k"],
    weight: Float[Tensor, "*N k"],
    entropy: Float[Tensor, "*N"],
    mask: Bool[Tensor, "*N"] | None = None,
    *,
    temperature: Positive,
    chunk: Count = CHUNK,
    scale: float = 1.0,
    softcap: Positive | None = None,
) -> Float[Tensor, ""]:
    """`sampled_kd_loss` of tokens (arXiv 2503.16870): k drawn classes of the teacher, unbiased."""
    check_declared(lm_sampled_kd_loss, temperature=temperature, chunk=chunk, softcap=softcap)
    student = Head(hidden=hidden, weight=head, scale=scale, softcap=softcap)
    loss = partial(sampled_kd_loss, temperature=temperature)
    return chunked(loss, student, index, weight, entropy, mask=mask, chunk=chunk)
