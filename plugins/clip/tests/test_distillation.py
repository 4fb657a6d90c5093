import math

import pytest
import torch

from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.declared import is_sample_mean
from stillhouse_clip.objectives.distillation import (
    anchor_distillation_loss,
    embedding_distillation_loss,
    feature_distillation_loss,
    zero_shot_rows,
)


def test_feature_distillation_by_hand() -> None:
    # u = 1, -3: 1 / (2 * 2) inside, 3 - 2 / 2 outside
    student, teacher = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[1.0, 3.0]]])
    found = feature_distillation_loss(student, teacher, beta=2.0, whiten=False)
    assert found.item() == pytest.approx((0.25 + 2.0) / 2)
    # beta 1: 1 - 1 / 2 and 3 - 1 / 2
    found = feature_distillation_loss(student, teacher, beta=1.0, whiten=False)
    assert found.item() == pytest.approx((0.5 + 2.5) / 2)


def test_whitening_is_a_layer_norm_without_weights_over_the_width() -> None:
    # mean 2, variance 1 (biased): (-1, 1), up to the epsilon of 1e-5
    student, teacher = torch.zeros(1, 1, 2), torch.tensor([[[1.0, 3.0]]])
    found = feature_distillation_loss(student, teacher, beta=2.0)
    assert found.item() == pytest.approx(0.25, rel=1e-4)
    moved = feature_distillation_loss(student, 10 * teacher + 3, beta=2.0)
    assert moved.item() == pytest.approx(0.25, rel=1e-4)


def test_tokens_of_padding_count_in_no_mean() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    parts = [
        feature_distillation_loss(student[i : i + 1, :n], teacher[i : i + 1, :n])
        for i, n in ((0, 2), (1, 1))
    ]
    found = feature_distillation_loss(student, teacher, mask)
    torch.testing.assert_close(found, torch.stack(parts).mean())
    changed = student.clone()
    changed[0, 2] = 100
    torch.testing.assert_close(feature_distillation_loss(changed, teacher, mask), found)
    with pytest.raises(BadData, match="a sample has no token that counts"):
        feature_distillation_loss(student, teacher, torch.zeros(2, 3, dtype=torch.bool))


def test_it_is_a_mean_over_samples_and_the_teacher_gets_no_gradient() -> None:
    student = torch.randn(4, 3, 5, requires_grad=True)
    teacher = torch.randn(4, 3, 5, requires_grad=True)
    whole = feature_distillation_loss(student, teacher)
    halves = [feature_distillation_loss(student[i : i + 2], teacher[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(whole, torch.stack(halves).mean())
    whole.backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert is_sample_mean(feature_distillation_loss)
    assert is_sample_mean(anchor_distillation_loss)


def test_the_embedding_is_a_map_of_one_token() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 6), torch.randn(3, 6)
    found = embedding_distillation_loss(student, teacher, beta=1.0)
    expected = feature_distillation_loss(student[:, None], teacher[:, None], beta=1.0)
    assert torch.equal(found, expected)


def test_anchor_distillation_by_hand() -> None:
    # two anchors at right angles; teacher at the first, student at the second
    anchors = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    student, teacher = torch.tensor([[0.0, 3.0]]), torch.tensor([[7.0, 0.0]])
    scale = math.log(3)  # softmax of (log 3, 0): 3/4 and 1/4
    found = anchor_distillation_loss(student, teacher, anchors, scale=scale)
    assert found.item() == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(1 / 3), rel=1e-5)
    same = anchor_distillation_loss(2 * teacher, teacher, anchors, scale=scale)
    assert same.item() == pytest.approx(0, abs=1e-6)


def test_zero_shot_rows_by_hand() -> None:
    text = torch.tensor([[[3.0, 0.0], [0.0, 0.5]], [[0.0, 2.0], [0.0, 8.0]]])
    rows = zero_shot_rows(text)
    half = math.sqrt(0.5)
    torch.testing.assert_close(rows, torch.tensor([[half, half], [0.0, 1.0]]))


def test_hyperparameters_are_checked() -> None:
    x = torch.zeros(1, 1, 2)
    with pytest.raises(BadSetting, match="beta must be > 0"):
        feature_distillation_loss(x, x, beta=0)
    with pytest.raises(BadSetting, match="scale must be > 0"):
        anchor_distillation_loss(x[0], x[0], x[0], scale=0)
