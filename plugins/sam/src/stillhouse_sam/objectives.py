"""TinySAM's full-stage distillation (Shu et al. 2025, AAAI, arXiv 2312.13789) and SAM's own losses.

B: images. N: prompts, each with one true mask. T: tokens. C: channels. G: side of the embedding.
H, W: sides of the low-resolution masks. The authors released no training code: what the paper does
not give is marked as a reconstruction.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from stillhouse.errors import BadSetting

FOCAL_SHARE = 20.0  # focal to dice, Kirillov et al. 2023 (SAM, arXiv 2304.02643), sec. 3
ALPHA, GAMMA = 0.25, 2.0  # Lin et al. 2017 (focal loss, arXiv 1708.02002)


def hard_mask_weight(
    teacher_iou: Float[Tensor, "N"], student_iou: Float[Tensor, "N"], *, eps: float
) -> Float[Tensor, "N"]:
    """H_i = sigmoid(IoU(M_i^T, GT_i) / (IoU(M_i^S, GT_i) + eps) - 1), detached: 1/2 where student
    and teacher are as good (up to eps), near 1 where the student is much worse, below 1/2 where it
    is better.

    Differs: the sentence in the paper that names M^T and M^S has the two exchanged. Raises
    BadSetting unless eps > 0.
    """
    if not eps > 0:
        raise BadSetting(f"eps must be > 0 (got {eps})")
    return torch.sigmoid(teacher_iou.detach() / (student_iou.detach() + eps) - 1)


def mask_iou(found: Bool[Tensor, "*N H W"], truth: Bool[Tensor, "*N H W"]) -> Float[Tensor, "*N"]:
    """Intersection over union; 1 where both masks are empty."""
    both = (found & truth).flatten(-2).sum(-1).float()
    either = (found | truth).flatten(-2).sum(-1).float()
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


def focal_loss(
    logits: Float[Tensor, "*N H W"], truth: Bool[Tensor, "*N H W"]
) -> Float[Tensor, "*N"]:
    """Focal loss with alpha 0.25 and gamma 2, in nats, mean over the pixels of a mask."""
    y = truth.to(logits.dtype)
    loss = functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
    p = torch.sigmoid(logits)
    wrong = p + y - 2 * p * y  # 1 - p for a pixel of the mask, p for another
    share = ALPHA * y + (1 - ALPHA) * (1 - y)
    return (share * wrong**GAMMA * loss).flatten(-2).mean(-1)


def dice_loss(
    logits: Float[Tensor, "*N H W"], truth: Bool[Tensor, "*N H W"]
) -> Float[Tensor, "*N"]:
    """1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1), of each mask (Milletari et al. 2016, with the
    1 that keeps it finite).
    """
    p, y = torch.sigmoid(logits).flatten(-2), truth.flatten(-2).to(logits.dtype)
    return 1 - (2 * (p * y).sum(-1) + 1) / (p.sum(-1) + y.sum(-1) + 1)


def embedding_loss(
    student: Float[Tensor, "B C G G"],
    teacher: Float[Tensor, "B C G G"],
    inside: Bool[Tensor, "B G G"],
) -> Float[Tensor, ""]:
    """L_embedding: mean over images of mean |E_T(I) - E_S(I)| over the channels of the cells
    `inside` the real part of the frame; teacher detached. Padding carries nothing of the image
    and is left out (reconstruction).
    """
    gap = (student - teacher.detach()).abs().mean(1) * inside
    return (gap.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1)).mean()


def token_loss(
    student: Float[Tensor, "N T C"], teacher: Float[Tensor, "N T C"]
) -> Float[Tensor, ""]:
    """L_token: mean absolute difference of the tokens that leave the decoder's two-way transformer
    (of the IoU, the masks and the prompt); teacher detached.
    """
    return (student - teacher.detach()).abs().mean()


def output_loss(
    student: Float[Tensor, "N K H W"],
    teacher: Float[Tensor, "N K H W"],
    weight: Float[Tensor, "N"],
    inside: Bool[Tensor, "N H W"],
) -> Float[Tensor, ""]:
    """L_output: 1/N sum_i H_i mean |D_T - D_S| over the K low-resolution logits of prompt i, within
    the real part of the frame; teacher and `weight` detached. The 1/N is a reconstruction: it keeps
    the scale whatever the number of prompts.
    """
    gap = (student - teacher.detach()).abs().mean(1) * inside
    each = gap.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1)
    return (weight.detach() * each).mean()


def prediction_loss(
    logits: Float[Tensor, "N K H W"],
    iou: Float[Tensor, "N K"],
    truth: Bool[Tensor, "N H W"],
    *,
    focal: float = FOCAL_SHARE,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """L_mask and L_ious against the truth, both means over the prompts.

    L_mask: `focal` (20, as SAM) times focal + dice of the one of the K masks with the least such
    loss, as SAM trains an ambiguous prompt. L_ious: mean over the K masks of |predicted - computed
    IoU| (the paper's l1; SAM has the square). That all of them count is a reconstruction, as SAM 2
    has it (arXiv 2408.00714): the answer is the mask of the highest predicted IoU, and were only
    the best one's learned, a mask that is never the best could win. The IoU is computed of
    logits > 0, detached.
    """
    every = truth[:, None].expand(logits.shape)
    losses = focal * focal_loss(logits, every) + dice_loss(logits, every)
    best = losses.argmin(1, keepdim=True)
    computed = mask_iou(logits.detach() > 0, every)
    return losses.gather(1, best).mean(), (iou - computed).abs().mean()
