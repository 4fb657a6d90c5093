"""The equations of KD3, by hand and against slow obvious versions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from stillhouse.errors import BadSetting
from stillhouse_vision.models.classifier import ImageSpec, Normalise
from stillhouse_vision.objectives import (
    beta_sample,
    mix_distribution,
    mixing_weight,
    nt_xent,
    select_instances,
    weighted_alignment_loss,
)
from stillhouse_vision.objectives.alignment import alignment_weights
from stillhouse_vision.objectives.selection import class_thresholds


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed))


# -- the teacher's weight in the selection


def test_mixing_weight_has_the_values_of_the_released_schedule() -> None:
    weights = {e: mixing_weight(e, milestones=(120, 160)) for e in (1, 60, 119, 120, 240)}
    assert weights == pytest.approx({1: 0.992, 60: 0.853, 119: 0.268, 120: 0, 240: 0}, abs=6e-4)


def test_mixing_weight_falls_and_scales_with_the_length() -> None:
    weights = [mixing_weight(e, milestones=(8, 32 / 3)) for e in range(1, 17)]
    assert weights == sorted(weights, reverse=True)
    assert [w == 0 for w in weights] == [e >= 8 for e in range(1, 17)]
    # (e + 1) / scale is what counts: 11 of 16 is 119 + 1 of 160
    assert mixing_weight(11, milestones=(12, 16)) == pytest.approx(
        mixing_weight(119, milestones=(120, 160))
    )


@pytest.mark.parametrize(("epoch", "milestones"), [(0, (120, 160)), (1, (0, 160)), (1, (120, -1))])
def test_mixing_weight_refuses_what_is_no_epoch(
    epoch: int, milestones: tuple[float, float]
) -> None:
    with pytest.raises(BadSetting, match="epoch must be >= 1 and both milestones > 0"):
        mixing_weight(epoch, milestones=milestones)


# -- selection


def test_thresholds_by_hand() -> None:
    # 4, 2 and 0 predictions: a = 1, 1/2, 0; a / (2 - a) = 1, 1/3, 0
    classes = torch.tensor([0, 0, 0, 0, 1, 1])
    found = class_thresholds(classes, count=3, cutoff=0.9)
    assert found.tolist() == pytest.approx([0.9, 0.3, 0.0])


def slowly_selected(teacher: Tensor, student: Tensor, alpha: float, cutoff: float) -> list[int]:
    rows = []
    for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
        mixed = [alpha * a + (1 - alpha) * b for a, b in zip(t, s, strict=True)]
        total = sum(math.exp(v) for v in mixed)
        q = [math.exp(v) / total for v in mixed]
        rows.append((max(q), q.index(max(q))))
    counts = [sum(c == k for _, c in rows) for k in range(teacher.shape[1])]
    kept = []
    for i, (p, c) in enumerate(rows):
        a = counts[c] / max(counts)
        if p > cutoff * a / (2 - a):
            kept.append(i)
    return kept


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_selection_is_that_of_a_slow_loop(alpha: float) -> None:
    teacher, student = 3 * rand(200, 5), 2 * rand(200, 5, seed=1) + torch.tensor([1.0, 0, 0, 0, 0])
    found = select_instances(teacher, student, alpha=alpha, cutoff=0.9)
    expected = slowly_selected(teacher, student, alpha, 0.9)
    assert found.tolist() == expected
    assert 0 < len(expected) < 200


def test_alpha_says_who_decides() -> None:
    teacher, student = 3 * rand(50, 4), 3 * rand(50, 4, seed=1)
    by_teacher = select_instances(teacher, student, alpha=1)
    assert torch.equal(by_teacher, select_instances(teacher, teacher, alpha=0.5))
    assert torch.equal(
        select_instances(teacher, student, alpha=0), select_instances(student, student, alpha=0.5)
    )
    assert not torch.equal(by_teacher, select_instances(teacher, student, alpha=0))


def test_too_few_that_pass_are_filled_up_by_the_nearest() -> None:
    # all of class 0, so the threshold is the cutoff; confidences 0.99, 0.6, 0.9, 0.7
    p = torch.tensor([0.99, 0.6, 0.9, 0.7])
    logits = torch.stack([p, 1 - p], dim=1).log()
    pick = lambda least: select_instances(logits, logits, alpha=0.5, least=least).tolist()  # noqa: E731
    assert [pick(n) for n in (1, 2, 3, 9)] == [[0], [0, 2], [0, 2, 3], [0, 1, 2, 3]]
    flat = torch.zeros(3, 2)  # nobody is confident at all
    assert len(select_instances(flat, flat, alpha=0.5)) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 1.1}, "alpha must be >= 0 and <= 1"),
        ({"alpha": 0.5, "cutoff": 0.0}, "cutoff must be > 0"),
        ({"alpha": 0.5, "least": 0}, "least must be >= 1"),
    ],
)
def test_selection_refuses(given: dict[str, float], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        select_instances(torch.zeros(2, 2), torch.zeros(2, 2), **given)  # type: ignore[arg-type]


# -- images of mixed statistics


def test_mix_by_hand() -> None:
    # two pixels: 0, 2 (mean 1, unbiased variance 2) and 4, 12 (mean 8, variance 32)
    images = torch.tensor([0.0, 2.0, 4.0, 12.0]).reshape(2, 1, 1, 2)
    lam = torch.tensor([0.25, 1.0])
    found = mix_distribution(images, lam, torch.tensor([1, 0])).flatten()
    # first: mean 0.25 * 1 + 0.75 * 8 = 6.25; deviation sqrt 2 (0.25 + 0.75 * 4) = 3.25 sqrt 2, and
    # its pixels lie 1 / sqrt 2 deviations off the mean; the second stays
    assert found.tolist() == pytest.approx([3.0, 9.5, 4.0, 12.0], abs=1e-4)


def test_mix_takes_the_other_statistics_at_lambda_zero() -> None:
    images, order = rand(6, 3, 5, 4).sigmoid(), torch.tensor([1, 2, 3, 4, 5, 0])
    mixed = mix_distribution(images, torch.zeros(6), order)
    for measure in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3))):
        torch.testing.assert_close(measure(mixed), measure(images)[order], atol=1e-5, rtol=1e-4)
    same = mix_distribution(images, torch.rand(6, generator=rng()), torch.arange(6))
    torch.testing.assert_close(same, images)


def test_mix_commutes_with_normalisation() -> None:
    """What lets [0, 1] pixels be mixed, for models that normalise by themselves."""
    spec = ImageSpec(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    normalise, images = Normalise(spec), rand(8, 3, 6, 6).sigmoid()
    lam, order = beta_sample(8, 0.1, rng=rng()), torch.randperm(8, generator=rng())
    before = normalise(mix_distribution(images, lam, order))
    after = mix_distribution(normalise(images), lam, order)
    # the floor of the variance is 1e-6 on either side: relative to variances of about 0.04 and 1
    torch.testing.assert_close(before, after, atol=1e-4, rtol=0)
    # and it is the floor: with 1e-6 std^2 in [0, 1] both are one formula, to the last bits
    exact = normalise(_mixed_with_floor(images.double(), lam.double(), order, spec)).float()
    assert float((exact - after).abs().max()) < 4e-6


def _mixed_with_floor(images: Tensor, lam: Tensor, order: Tensor, spec: ImageSpec) -> Tensor:
    floor = 1e-6 * torch.tensor(spec.std, dtype=torch.float64)[:, None, None] ** 2
    mean = images.mean((2, 3), keepdim=True)
    deviation = (images.var((2, 3), keepdim=True) + floor).sqrt()
    own = lam[:, None, None, None]
    return (images - mean) / deviation * (own * deviation + (1 - own) * deviation[order]) + (
        own * mean + (1 - own) * mean[order]
    )


def test_mix_refuses_single_pixels() -> None:
    with pytest.raises(BadSetting, match="needs images of 2 pixels"):
        mix_distribution(torch.zeros(2, 1, 1, 1), torch.ones(2), torch.arange(2))


@pytest.mark.parametrize("a", [0.1, 0.5, 1.0])
def test_beta_has_its_moments(a: float) -> None:
    drawn = beta_sample(20_000, a, rng=rng()).double()
    assert len(drawn) == 20_000
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.015)
    # variance of Beta(a, a): 1 / (4 (2 a + 1))
    assert float(drawn.var()) == pytest.approx(1 / (4 * (2 * a + 1)), abs=0.004)
    # a quarter of the mass of Beta(1/2, 1/2), the arcsine law, lies below sin^2(pi / 8)
    if a == 0.5:
        below = float((drawn < math.sin(math.pi / 8) ** 2).double().mean())
        assert below == pytest.approx(0.25, abs=0.015)


def test_beta_comes_from_the_generator() -> None:
    assert torch.equal(beta_sample(9, 0.1, rng=rng()), beta_sample(9, 0.1, rng=rng()))
    with pytest.raises(BadSetting, match="concentration must be <= 1"):
        beta_sample(9, 2.0, rng=rng())


# -- losses


def test_alignment_by_hand() -> None:
    student = torch.tensor([[[[1.0]], [[2.0]]], [[[0.0]], [[0.0]]]])
    teacher = torch.tensor([[[[0.0]], [[0.0]]], [[[2.0]], [[0.0]]]])
    logits = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    # distances 0 and 5: weights 1/2 and sigmoid(5) = .993307; squares 1 + 4 and 4, of 4 elements
    found = weighted_alignment_loss(student, teacher, logits, torch.zeros(2, 2))
    assert float(found) == pytest.approx((0.5 * 5 + 0.993307 * 4) / 4, abs=1e-5)


def test_alignment_is_zero_for_equal_maps_and_teaches_the_student_map_alone() -> None:
    a, b = rand(3, 4, 2, 2).requires_grad_(), rand(3, 4, 2, 2, seed=1).requires_grad_()
    z, t = rand(3, 5).requires_grad_(), rand(3, 5, seed=1).requires_grad_()
    assert float(weighted_alignment_loss(a, a, z, t).detach()) == 0
    weighted_alignment_loss(a, b, z, t).backward()
    assert a.grad is not None
    assert b.grad is None
    assert z.grad is None
    assert t.grad is None


def test_alignment_pools_the_larger_map() -> None:
    big, small, z = rand(2, 3, 4, 4), rand(2, 3, 2, 2, seed=1), torch.zeros(2, 2)
    expected = 0.5 * (F.avg_pool2d(big, 2) - small).square().mean()
    torch.testing.assert_close(weighted_alignment_loss(big, small, z, z), expected)


def test_weights_saturate_and_can_be_told_apart() -> None:
    student = 10 * rand(50, 10)
    teacher = 10 * rand(50, 10, seed=1)
    plain = alignment_weights(student, teacher)
    assert bool((plain > 0.999).all())
    for kwargs in ({"temperature": 40.0}, {"standardize": True}):
        spread = alignment_weights(student, teacher, **kwargs)  # type: ignore[arg-type]
        assert float(spread.std()) > 100 * float(plain.std())
        assert bool(((spread >= 0.5) & (spread < 1)).all())
    # a z-score does not know the logits' scale
    torch.testing.assert_close(
        alignment_weights(student, teacher, standardize=True),
        alignment_weights(3 * student, teacher + 7, standardize=True),
    )


def slow_nt_xent(a: Tensor, b: Tensor, t: float) -> float:
    rows = [row / row.norm() for row in torch.cat([a, b])]
    n, total = len(a), 0.0
    for i, row in enumerate(rows):
        others = [math.exp(float(row @ rows[j]) / t) for j in range(2 * n) if j != i]
        total += -math.log(math.exp(float(row @ rows[(i + n) % (2 * n)]) / t) / sum(others))
    return total / (2 * n)


def test_nt_xent_by_hand() -> None:
    # two samples, orthogonal, views equal: each row has its partner at cosine 1, two others at 0
    eye = torch.eye(2)
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert float(nt_xent(eye, 5 * eye, temperature=0.5)) == pytest.approx(expected)
    assert float(nt_xent(eye[:1], eye[1:], temperature=0.5)) == 0  # nobody else to be taken for


def test_nt_xent_is_that_of_a_slow_loop_and_teaches_both_views() -> None:
    a, b = rand(5, 3).requires_grad_(), rand(5, 3, seed=1).requires_grad_()
    loss = nt_xent(a, b, temperature=0.3)
    found = float(loss.detach())
    assert found == pytest.approx(slow_nt_xent(a.detach(), b.detach(), 0.3), abs=1e-5)
    assert float(nt_xent(b, a, temperature=0.3).detach()) == pytest.approx(found, abs=1e-6)
    loss.backward()
    for view in (a, b):
        assert view.grad is not None
        assert bool((view.grad.abs().sum(1) > 0).all())


def test_nt_xent_refuses() -> None:
    with pytest.raises(BadSetting, match="two views of one shape"):
        nt_xent(torch.ones(2, 3), torch.ones(3, 3), temperature=1.0)
    with pytest.raises(BadSetting, match="temperature must be > 0"):
        nt_xent(torch.ones(2, 3), torch.ones(2, 3), temperature=0.0)
