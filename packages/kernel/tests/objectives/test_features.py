"""Hint, AT, OFD, MGD and HCL: numbers by hand, invariances, sizes that differ, gradients."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.errors import BadRecipe, BadSetting, StillhouseError
from stillhouse.objectives.features import (
    at_loss,
    at_stages_loss,
    attention_map,
    hcl_loss,
    hint_loss,
    mgd_loss,
    negative_mean,
    ofd_loss,
    ofd_stages_loss,
    reviewkd_loss,
)
from stillhouse.objectives.term import Term


def maps(seed: int, channels: int = 3, size: int = 4) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, size, size, generator=rng, dtype=torch.float64)


def ofd(s: Tensor, t: Tensor) -> Tensor:
    return ofd_loss(s, t, torch.full((3,), -0.5, dtype=torch.float64))


LOSSES = pytest.mark.parametrize("loss", [hint_loss, at_loss, ofd, mgd_loss, hcl_loss])


def test_hint_by_hand():
    # squares 1, 4, 9, 16 of four elements: mean 7.5
    student = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert hint_loss(student, torch.zeros(1, 1, 2, 2)).item() == 7.5


def test_at_by_hand():
    # one channel, two positions: [3, 4] -> [9, 16] / sqrt(337); [5, 0] -> [1, 0]
    # distance (9 / r - 1)^2 + (16 / r)^2 = 2 - 18 / r with r = sqrt(337); mean over 2 positions
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[5.0, 0.0]]]])
    assert at_loss(student, teacher).item() == pytest.approx(1 - 9 / math.sqrt(337))


def test_attention_map_sums_squares_over_channels():
    # channels [1, 2] and [2, 2] at two positions: [1 + 4, 4 + 4] = [5, 8] / sqrt(89)
    found = attention_map(torch.tensor([[[[1.0, 2.0]], [[2.0, 2.0]]]]))
    assert found[0].tolist() == pytest.approx([5 / math.sqrt(89), 8 / math.sqrt(89)])


def test_ofd_by_hand():
    # margin -1: targets max(t, -1) = [-1, -0.5, 2]; student [-2, -0.2, 1]
    # -2 <= -1 <= 0: skipped; (-0.5 + 0.2)^2 = 0.09; (2 - 1)^2 = 1
    student = torch.tensor([-2.0, -0.2, 1.0]).view(1, 1, 1, 3)
    teacher = torch.tensor([-3.0, -0.5, 2.0]).view(1, 1, 1, 3)
    assert ofd_loss(student, teacher, torch.tensor([-1.0])).item() == pytest.approx(1.09)


def test_ofd_against_a_loop():
    s, t, margin = maps(1), maps(2), [-0.3, -0.6, -0.9]
    expected = 0.0
    for b in range(2):
        for c in range(3):
            for x, y in zip(s[b, c].flatten().tolist(), t[b, c].flatten().tolist(), strict=True):
                target = max(y, margin[c])
                expected += 0.0 if x <= target <= 0 else (target - x) ** 2
    found = ofd_loss(s, t, torch.tensor(margin, dtype=torch.float64))
    assert found.item() == pytest.approx(expected / 2)


def test_mgd_by_hand():
    # squares 1 + 4 + 9 + 16 = 30 of one sample, 0 of the other; sum, mean over the two
    generated = torch.stack([torch.arange(1.0, 5.0).view(1, 2, 2), torch.zeros(1, 2, 2)])
    assert mgd_loss(generated, torch.zeros(2, 1, 2, 2)).item() == 15.0


def test_hcl_by_hand():
    # 2 x 2 map [1, 2, 3, 4] against 0: mean square 7.5; of levels 4, 2, 1 only 1 is below 2:
    # (mean 2.5)^2 = 6.25 at weight 1/2; (7.5 + 3.125) / (1 + 1/2)
    student = torch.arange(1.0, 5.0).view(1, 1, 2, 2)
    assert hcl_loss(student, torch.zeros(1, 1, 2, 2)).item() == pytest.approx(10.625 / 1.5)


def test_hcl_weights_of_a_large_map():
    # a constant difference of 1 has mean square 1 at every level, so any weighted mean is 1; a
    # checkerboard of +-1 has 1 at the full size and 0 pooled: 1 / (1 + 1/2 + 1/4 + 1/8)
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4).view(1, 1, 8, 8)
    assert hcl_loss(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)).item() == pytest.approx(1)
    assert hcl_loss(board, torch.zeros(1, 1, 8, 8)).item() == pytest.approx(8 / 15)


def test_negative_mean_by_hand():
    # N(0, 1): -2 phi(0) = -sqrt(2 / pi); N(0, 3^2): three times that; N(-30, 1) is all negative
    found = negative_mean(torch.tensor([0.0, 0.0, -30.0]), torch.tensor([1.0, 3.0, 1.0]))
    root = math.sqrt(2 / math.pi)
    assert found.tolist() == pytest.approx([-root, -3 * root, -30.0])


@pytest.mark.parametrize("mean", [-2.0, -0.3, 0.4, 1.5, 6.0])
def test_negative_mean_against_the_integral(mean: float):
    x = torch.linspace(-30, 0, 600_001, dtype=torch.float64)
    density = torch.exp(-0.5 * ((x - mean) / 1.7) ** 2)
    expected = (torch.trapezoid(x * density, x) / torch.trapezoid(density, x)).item()
    found = negative_mean(torch.tensor([mean]).double(), torch.tensor([1.7]).double())
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_negative_mean_far_in_the_tail_is_small_and_negative():
    # E[x | x < 0] -> -std^2 / mean (1 - 2 std^2 / mean^2) for mean much larger than std
    found = negative_mean(torch.tensor([20.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert found[0].item() == pytest.approx(-0.05 * (1 - 2 / 400), rel=1e-4)
    assert found[1].item() == pytest.approx(0, abs=1e-6)
    sweep = torch.logspace(0, 8, 2000)
    assert (negative_mean(sweep, torch.ones(2000)) <= 0).all()


@LOSSES
def test_zero_for_equal_maps(loss: Callable[..., Tensor]):
    positive = maps(1).abs()  # above every margin
    assert loss(positive, positive).item() == 0
    assert loss(positive, maps(2)).item() > 0.001


@LOSSES
def test_gradient_reaches_the_student_only(loss: Callable[..., Tensor]):
    student, teacher = maps(1).requires_grad_(), maps(2).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().flatten(1).sum(dim=1).min() > 0


@LOSSES
def test_maps_of_different_size_are_pooled_to_the_smaller(loss: Callable[..., Tensor]):
    small, large = maps(1, size=2), maps(2, size=4)
    pooled = F.avg_pool2d(large, 2)
    assert loss(small, large).item() == pytest.approx(loss(small, pooled).item())
    assert loss(large, small).item() == pytest.approx(loss(pooled, small).item())


@LOSSES
def test_mean_over_the_batch(loss: Callable[..., Tensor]):
    doubled = loss(maps(1).repeat(2, 1, 1, 1), maps(2).repeat(2, 1, 1, 1))
    assert doubled.item() == pytest.approx(loss(maps(1), maps(2)).item())


def test_at_ignores_the_scale_and_the_number_of_channels():
    s, t = maps(1, channels=5), maps(2)
    assert at_loss(7 * s, 0.1 * t).item() == pytest.approx(at_loss(s, t).item())
    assert at_loss(torch.cat([s, s], dim=1), t).item() == pytest.approx(at_loss(s, t).item())


def test_at_of_a_dead_map_has_a_finite_gradient():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    at_loss(student, maps(2).float()).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_half_precision_maps_do_not_overflow():
    student = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)
    assert mgd_loss(student, torch.zeros_like(student)).item() == 4 * 64 * 300.0**2
    assert torch.isfinite(at_loss(student, student + 1))


def test_terms_sum_their_pairs():
    students = {"a": maps(1), "b": maps(2, size=2), "embedding": maps(3)[:, :, 0, 0]}
    teachers = {"c": maps(4), "d": maps(5, size=2), "embedding": maps(6)[:, :, 0, 0]}
    roles = {"projector": students, "student": students, "teacher": teachers}
    pairs = ("student.a", "student.b"), ("teacher.c", "teacher.d")
    for each, loss in ((at_stages_loss, at_loss), (reviewkd_loss, hcl_loss)):
        expected = loss(students["a"], teachers["c"]) + loss(students["b"], teachers["d"])
        assert Term(each, *pairs)(roles, {}).item() == pytest.approx(expected.item())
    for loss in (hint_loss, mgd_loss):
        one = Term(loss, "projector.a", "teacher.c")
        assert one(roles, {}) == loss(students["a"], teachers["c"])
    review = Term(reviewkd_loss, ("student.embedding",), ("teacher.embedding",))
    expected = F.mse_loss(students["embedding"], teachers["embedding"])
    assert review(roles, {}).item() == pytest.approx(expected.item())


def test_overhaul_halves_the_weight_towards_the_input():
    margin = torch.full((3,), -0.5, dtype=torch.float64)
    students = {f"x{i}": maps(i) for i in range(3)} | {f"m{i}": margin for i in range(3)}
    teachers = {f"x{i}": maps(10 + i) for i in range(3)}
    names = ("x0", "x1", "x2")
    term = Term(
        ofd_stages_loss,
        tuple(f"projector.{name}" for name in names),
        tuple(f"teacher.{name}" for name in names),
        ("projector.m0", "projector.m1", "projector.m2"),
    )
    found = term({"projector": students, "teacher": teachers}, {})
    parts = [ofd(students[n], teachers[n]).item() for n in names]
    assert found.item() == pytest.approx(parts[0] / 4 + parts[1] / 2 + parts[2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Term(at_stages_loss, ("student.a", "student.b"), ("teacher.c",)),
            r"term at_stages_loss: .* must pair up one to one \(got 2 and 1\)",
        ),
        (
            lambda: Term(reviewkd_loss, (), ()),
            r"term reviewkd_loss: .* must pair up one to one \(got 0 and 0\)",
        ),
        (
            lambda: Term(ofd_stages_loss, ("projector.a",), ("teacher.b",), ()),
            r"must pair up one to one \(got 1 and 1 and 0\)",
        ),
        (
            lambda: hcl_loss(maps(1), maps(2), levels=(0,)),
            r"levels must be one or more numbers >= 1 \(got \(0",
        ),
        (
            lambda: Term(hcl_loss, "student.a", "teacher.b", levels=()),
            r"levels must be one or more numbers >= 1 \(got \(\)",
        ),
    ],
)
def test_values_out_of_range(make: Callable[[], object], message: str):
    with pytest.raises(StillhouseError, match=message) as caught:
        make()
    assert isinstance(caught.value, BadSetting | BadRecipe)
