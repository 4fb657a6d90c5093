"""Feature distillation of one tower, stage 1 of DC-CLIP (arXiv 2404.11249), and zero-shot rows.

B: samples of the batch. N: tokens of a map. T: the teacher's width. D: width of the shared space.
C: classes. P: prompts (templates) a class. K: anchors.
No code of the paper was found, nor its full text: what is inferred is marked so.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from stillhouse.errors import BadData
from stillhouse.objectives.declared import Positive, SampleMean, check_declared
from stillhouse.objectives.inputs import full, product
from stillhouse.objectives.logits import kd_loss


def feature_distillation_loss(
    student: Float[Tensor, "B N T"],
    teacher: Float[Tensor, "B N T"],
    mask: Bool[Tensor, "B N"] | None = None,
    *,
    beta: Positive = 2.0,
    whiten: bool = True,
) -> SampleMean:
    """Feature distillation, Wei et al. 2022 (arXiv 2205.14141), eq. 2: smooth L1 of student tokens
    (behind their 1 x 1 projector) and the teacher's, which `whiten` puts through a LayerNorm
    without weights; mean over T, the tokens of each sample, and B; teacher detached.

    u^2 / (2 beta) where |u| < beta, else |u| - beta / 2. Tokens that `mask` has as False (padding)
    count in neither mean. That DC-CLIP whitens and takes beta 2 is inferred from that paper's code,
    which its summaries match. Raises BadData for a sample without a token.
    """
    check_declared(feature_distillation_loss, beta=beta)
    target = full(teacher.detach())
    if whiten:
        target = F.layer_norm(target, target.shape[-1:])
    each = F.smooth_l1_loss(full(student), target, beta=beta, reduction="none").mean(dim=-1)
    if mask is None:
        return each.mean()
    counts = mask.sum(dim=1)
    if not bool((counts > 0).all()):
        raise BadData("feature distillation: a sample has no token that counts")
    return ((each * mask).sum(dim=1) / counts).mean()


def embedding_distillation_loss(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B D"],
    *,
    beta: Positive = 2.0,
    whiten: bool = True,
) -> SampleMean:
    """`feature_distillation_loss` of the embedding, one token a sample: so that the student's last
    projection is trained as well, without which the alignment would begin with a random one
    (inferred: the abstract speaks of feature maps alone).
    """
    return feature_distillation_loss(student[:, None], teacher[:, None], beta=beta, whiten=whiten)


def anchor_distillation_loss(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B D"],
    anchors: Float[Tensor, "K D"],
    *,
    scale: Positive = 20.0,
    temperature: Positive = 1.0,
) -> SampleMean:
    """Logit distillation of one tower: `kd_loss` between the `scale`d cosines of student and
    teacher to the same anchors (unit embeddings of texts), the zero-shot logits of a bank; nats,
    mean over B, teacher detached. The form is a reconstruction: of the paper is known that logits
    were tried.
    """
    check_declared(anchor_distillation_loss, scale=scale, temperature=temperature)
    bank = unit(anchors.detach())
    logits = [scale * product(unit(each), bank.mT) for each in (student, teacher.detach())]
    return kd_loss(*logits, temperature=temperature)


def zero_shot_rows(text: Float[Tensor, "C P D"]) -> Float[Tensor, "C D"]:
    """The classifier's row of each class: the mean over P templates of unit text embeddings, made a
    unit vector again (arXiv 2103.00020, section 3.1.4; ELEVATER, arXiv 2204.08790).
    """
    return unit(unit(text).mean(dim=1))


def unit(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """Rows of length 1, in at least float32; a row of zeros stays one."""
    return F.normalize(full(x), dim=-1, eps=1e-12)
