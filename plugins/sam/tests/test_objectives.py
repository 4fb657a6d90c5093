"""TinySAM's terms and SAM's losses: numbers by hand, what is left out, where gradients go."""

import math

import pytest
import torch
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse_sam.objectives import (
    dice_loss,
    embedding_loss,
    focal_loss,
    hard_mask_weight,
    mask_iou,
    output_loss,
    prediction_loss,
    token_loss,
)


def mask(*rows: str) -> Tensor:
    return torch.tensor([[letter == "#" for letter in row] for row in rows])


def test_hard_mask_weight_by_hand():
    weight = hard_mask_weight(
        torch.tensor([0.8, 0.8, 0.4]), torch.tensor([0.8, 0.4, 0.8]), eps=1e-9
    )
    by_hand = [1 / (1 + math.exp(-x)) for x in (0.0, 1.0, -0.5)]
    assert weight.tolist() == pytest.approx(by_hand, abs=1e-6)


def test_hard_mask_weight_is_near_one_for_a_lost_mask_and_carries_no_gradient():
    iou = torch.tensor([0.0, 0.5], requires_grad=True)
    weight = hard_mask_weight(torch.tensor([0.9, 0.5]), iou, eps=1e-3)
    assert weight[0] > 0.999
    assert not weight.requires_grad
    with pytest.raises(BadSetting, match="eps must be > 0"):
        hard_mask_weight(iou, iou, eps=0.0)


def test_iou_by_hand():
    one, other = mask("##..", "##.."), mask(".##.", ".##.")
    assert mask_iou(one, other) == pytest.approx(2 / 6)
    assert mask_iou(one, one) == 1.0
    assert mask_iou(one & ~one, other & ~other) == 1.0


def test_focal_loss_by_hand():
    # p = 1/2 everywhere: share * 1/4 * log 2
    loss = focal_loss(torch.zeros(1, 1, 4), mask("#...")[None])
    assert float(loss) == pytest.approx((0.25 + 3 * 0.75) / 4 * 0.25 * math.log(2))


def test_dice_loss_by_hand():
    assert float(dice_loss(torch.zeros(1, 1, 4), mask("##..")[None])) == pytest.approx(
        1 - (2 * 1 + 1) / (2 + 2 + 1)
    )
    sure = torch.tensor([[[40.0, 40.0, -40.0, -40.0]]])
    assert float(dice_loss(sure, mask("##..")[None])) == pytest.approx(0.0, abs=1e-6)


def test_padding_does_not_count_in_the_embedding():
    teacher, student = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    inside = torch.zeros(1, 4, 4, dtype=torch.bool)
    inside[:, :2] = True
    student[:, :, 2:] = 1000.0
    assert float(embedding_loss(student, teacher, inside)) == 1.0
    moved = student.clone().requires_grad_()
    embedding_loss(moved, teacher, inside).backward()
    assert moved.grad is not None
    assert bool((moved.grad[:, :, 2:] == 0).all())
    assert bool((moved.grad[:, :, :2] != 0).all())


def test_output_loss_weighs_each_prompt():
    teacher = torch.zeros(2, 3, 2, 2)
    student = teacher + torch.tensor([1.0, 3.0])[:, None, None, None]
    whole = torch.ones(2, 2, 2, dtype=torch.bool)
    weight = torch.tensor([0.5, 0.25])
    assert float(output_loss(student, teacher, weight, whole)) == pytest.approx(
        (0.5 * 1 + 0.25 * 3) / 2
    )


def test_no_term_reaches_the_teacher():
    teacher, student = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    whole = torch.ones(2, 4, 4, dtype=torch.bool)
    total = embedding_loss(student, teacher, whole)
    total = total + output_loss(student, teacher, torch.ones(2), whole)
    total = total + token_loss(student.flatten(2), teacher.flatten(2))
    total.backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_only_the_best_of_the_masks_learns_and_the_predicted_iou_of_all():
    truth = mask("##..", "##..")[None]
    right = torch.where(truth, 3.0, -3.0)
    logits = torch.stack([-right, right, torch.zeros_like(right)], dim=1).requires_grad_()
    iou = torch.tensor([[0.3, 0.7, 0.5]], requires_grad=True)
    loss, ious = prediction_loss(logits, iou, truth)
    # computed: 0 of the opposite, 1 of the right one, 0 of the one without a pixel
    assert ious.item() == pytest.approx((0.3 + 0.3 + 0.5) / 3)
    expected = 20 * focal_loss(right, truth) + dice_loss(right, truth)
    assert loss.item() == pytest.approx(expected.item())
    (loss + ious).backward()
    assert logits.grad is not None
    assert iou.grad is not None
    assert logits.grad[0].flatten(1).any(1).tolist() == [False, True, False]
    assert iou.grad[0].tolist() == pytest.approx([1 / 3, -1 / 3, 1 / 3])
