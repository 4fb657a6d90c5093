"""KD, DKD, DIST, logit standardization: numbers by hand, identities, finite gradients."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.logits import dist_loss, dkd_loss, kd_loss, standardized
from stillhouse.objectives.term import Term

LABELS = torch.tensor([0, 2, 4, 1, 1, 3])
READS = ("student.logits", "teacher.logits")


def logits(seed: int, scale: float = 3.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(6, 5, generator=rng, dtype=torch.float64)


def kd(s: Tensor, t: Tensor, temperature: float = 4.0) -> Tensor:
    return kd_loss(s, t, temperature=temperature)


def dkd(s: Tensor, t: Tensor, temperature: float = 4.0) -> Tensor:
    return dkd_loss(s, t, LABELS, alpha=1.0, beta=8.0, temperature=temperature)


def dist(s: Tensor, t: Tensor, temperature: float = 4.0) -> Tensor:
    return dist_loss(s, t, beta=2.0, gamma=2.0, temperature=temperature)


def decoupled(**changes: float) -> Term:
    numbers = {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, **changes}
    return Term(dkd_loss, *READS, "batch.labels", **numbers)


def std_kd(s: Tensor, t: Tensor, temperature: float = 2.0) -> Tensor:
    return kd_loss(standardized(s), standardized(t), temperature=temperature)


LOSSES = pytest.mark.parametrize("loss", [kd, dkd, dist, std_kd])


def test_kd_by_hand():
    # T = 2: teacher softmax([ln 3, 0]) = [3/4, 1/4], student [1/2, 1/2]
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812; times T^2 = 4: 0.523249
    loss = kd_loss(torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]]), temperature=2.0)
    assert loss.item() == pytest.approx(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))
    assert loss.item() == pytest.approx(0.523249, abs=1e-6)


@pytest.mark.parametrize("excluded", [-1e4, -torch.inf])
def test_a_class_that_the_teacher_excludes_adds_nothing(excluded: float):
    # the case by hand above, and a third class of probability 0, which the student may exclude too
    teacher = torch.tensor([[2 * math.log(3), 0.0, -torch.inf]])
    student = torch.tensor([[0.0, 0.0, excluded]], requires_grad=True)
    loss = kd_loss(student, teacher, temperature=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.523249, abs=1e-6)
    # T (p - q) = 2 (1/2 - 3/4)
    assert student.grad is not None
    assert student.grad.tolist() == [pytest.approx([-0.5, 0.5, 0.0])]


def test_dkd_by_hand():
    # label 0, T = 1: teacher [4, 1, 3] / 8, student [1, 1, 1] / 3
    # TCKD: [1/2, 1/2] against [1/3, 2/3] = 1/2 ln(3/2) + 1/2 ln(3/4) = 0.058892
    # NCKD: [1/4, 3/4] against [1/2, 1/2] = 1/4 ln(1/2) + 3/4 ln(3/2) = 0.130812
    teacher = torch.tensor([[math.log(4), 0.0, math.log(3)]])
    parts = [
        dkd_loss(
            torch.zeros(1, 3), teacher, torch.tensor([0]), alpha=a, beta=b, temperature=1.0
        ).item()
        for a, b in ((1.0, 0.0), (0.0, 1.0), (1.0, 8.0))
    ]
    assert parts == pytest.approx([0.058892, 0.130812, 0.058892 + 8 * 0.130812], abs=1e-5)


def test_dist_by_hand():
    # T = 1, probabilities: student both rows a = [.5, .3, .2]; teacher a, then a reversed.
    # r(a, a) = 1; a centred is [5, -1, -4] / 30, so r(a, reversed) = (-20 + 1 - 20) / 42 = -13/14
    # inter = 1 - (1 - 13/14) / 2 = 27/28; the student's columns are constant: intra = 1
    a = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    student, teacher = torch.stack([a, a]).log(), torch.stack([a, a.flip(0)]).log()
    loss = dist_loss(student, teacher, beta=2.0, gamma=3.0, temperature=1.0)
    assert loss.item() == pytest.approx(2 * 27 / 28 + 3)


def test_standardized_by_hand():
    # [1, 2, 3]: mean 2, deviation sqrt(2/3)
    expected = [-math.sqrt(1.5), 0.0, math.sqrt(1.5)]
    assert standardized(torch.tensor([[1.0, 2.0, 3.0]]))[0].tolist() == pytest.approx(expected)


@LOSSES
def test_zero_for_equal_logits(loss: Callable[..., Tensor]):
    assert loss(logits(1), logits(1)).item() == pytest.approx(0.0, abs=1e-12)
    assert loss(logits(1), logits(2)).item() > 0.01


@LOSSES
def test_gradient_reaches_the_student_only(loss: Callable[..., Tensor]):
    student, teacher = logits(1).requires_grad_(), logits(2).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum(dim=1).min() > 0


@LOSSES
def test_gradient_matches_finite_differences(loss: Callable[..., Tensor]):
    assert torch.autograd.gradcheck(lambda s: loss(s, logits(2)), (logits(1).requires_grad_(),))


@pytest.mark.parametrize("loss", [kd, dkd, std_kd])
def test_mean_over_the_batch(loss: Callable[..., Tensor]):
    doubled = dkd_loss(
        logits(1).repeat(2, 1),
        logits(2).repeat(2, 1),
        LABELS.repeat(2),
        alpha=1.0,
        beta=8.0,
        temperature=4.0,
    )
    if loss is not dkd:
        doubled = loss(logits(1).repeat(2, 1), logits(2).repeat(2, 1))
    assert doubled.item() == pytest.approx(loss(logits(1), logits(2)).item())


@LOSSES
def test_adding_a_constant_to_a_row_changes_nothing(loss: Callable[..., Tensor]):
    shift = torch.arange(6, dtype=torch.float64)[:, None]
    assert loss(logits(1) + shift, logits(2) - shift).item() == pytest.approx(
        loss(logits(1), logits(2)).item()
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_is_cross_entropy_minus_entropy(temperature: float):
    expected = 0.0
    for s, t in zip(logits(1).tolist(), logits(2).tolist(), strict=True):
        p, q = np.exp(np.array(s) / temperature), np.exp(np.array(t) / temperature)
        p, q = p / p.sum(), q / q.sum()
        expected += temperature**2 * (-(q * np.log(p)).sum() + (q * np.log(q)).sum()) / 6
    assert kd(logits(1), logits(2), temperature).item() == pytest.approx(expected)


def test_kd_at_high_temperature_matches_logits():
    # Hinton et al., eq. 4: for T much larger than the logits, T^2 KL -> |z - v|^2 / (2 C), centred
    z, v = (x - x.mean(dim=1, keepdim=True) for x in (logits(1), logits(2)))
    expected = (z - v).square().sum(dim=1).mean() / (2 * 5)
    assert kd(z, v, 1e4).item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_recombines_to_kd(temperature: float):
    # KD = TCKD + (1 - teacher's p_target) NCKD, sample by sample
    s, t = logits(1), logits(2)
    for i in range(6):
        row, label = slice(i, i + 1), LABELS[i : i + 1]
        rest = 1 - F.softmax(t[i] / temperature, dim=0)[LABELS[i]].item()
        both = dkd_loss(s[row], t[row], label, alpha=1.0, beta=rest, temperature=temperature)
        assert both.item() == pytest.approx(kd(s[row], t[row], temperature).item())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_dkd_is_finite_for_a_confident_wrong_row(temperature: float, scale: float):
    student = torch.tensor([[scale, -scale, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-scale, scale, 0.0]])
    loss = dkd_loss(
        student, teacher, torch.tensor([1]), alpha=1.0, beta=8.0, temperature=temperature
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    # pushed the right way: the wrong class down, the teacher's up
    assert student.grad[0, 0] > 0 > student.grad[0, 1]


def test_dkd_is_finite_for_a_confident_right_row():
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    dkd_loss(
        student, -student.detach(), torch.tensor([0]), alpha=1.0, beta=8.0, temperature=4.0
    ).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_dist_is_one_minus_numpy_corrcoef():
    p, q = (F.softmax(x / 4, dim=1).numpy() for x in (logits(1), logits(2)))
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    assert dist(logits(1), logits(2)).item() == pytest.approx(16 * (2 * inter + 2 * intra))


@pytest.mark.parametrize("loss", [dist, std_kd])
def test_equal_logits_of_an_untrained_head_have_a_finite_gradient(loss: Callable[..., Tensor]):
    student = torch.full((6, 5), 0.1, requires_grad=True)
    value = loss(student, logits(2).float())
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert student.grad.abs().max() < 10


def test_a_row_constant_up_to_rounding_is_not_blown_up():
    # the float32 mean of 1000 times 0.1 is not 0.1: its rounding error must not become the signal
    row = torch.full((1, 1000), 0.1, requires_grad=True)
    assert (row - row.mean()).abs().max() > 0
    z = standardized(row)
    z[0, 0].backward()
    assert row.grad is not None
    assert not z.any()
    assert not row.grad.any()


def test_standardized_ignores_scale_and_shift_of_a_row():
    scale = torch.tensor([[0.1], [1.0], [3.0], [10.0], [0.5], [2.0]], dtype=torch.float64)
    z = standardized(logits(1) * scale - 7)
    torch.testing.assert_close(z, standardized(logits(1)))
    torch.testing.assert_close(z.mean(dim=1), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(z.std(dim=1, correction=0), torch.ones(6, dtype=torch.float64))


@LOSSES
def test_half_precision_logits_are_computed_in_float32(loss: Callable[..., Tensor]):
    s, t = logits(1).bfloat16(), logits(2).bfloat16()
    assert loss(s, t).item() == loss(s.float(), t.float()).item()


def test_terms_call_their_functions():
    s, t = logits(1), logits(2)
    outputs = {"student": {"logits": s}, "teacher": {"logits": t}}
    batch = {"labels": LABELS.to(torch.uint8)}
    terms = [
        (Term(kd_loss, *READS, temperature=4.0), kd(s, t)),
        (Term(kd_loss, *READS, temperature=2.0, standardize=True), std_kd(s, t)),
        (decoupled(), dkd(s, t)),
        (decoupled(standardize=True), dkd(standardized(s), standardized(t))),
        (Term(dist_loss, *READS, beta=2.0, gamma=2.0, temperature=4.0), dist(s, t)),
    ]
    for term, expected in terms:
        assert term(outputs, batch) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Term(kd_loss, *READS, temperature=0.0), r"temperature must be > 0 \(got 0.0\)"),
        (lambda: kd(logits(1), logits(2), -1.0), r"temperature must be > 0 \(got -1.0\)"),
        (
            lambda: dkd(logits(1), logits(2), math.nan),
            r"temperature must be a finite number > 0 \(got nan\)",
        ),
        (lambda: decoupled(alpha=-1.0), r"alpha must be >= 0 \(got -1.0\)"),
        (lambda: decoupled(beta=-8.0), r"beta must be >= 0 \(got -8.0\)"),
        (
            lambda: Term(dist_loss, *READS, beta=1.0, gamma=-2.0, temperature=4.0),
            r"gamma must be >= 0 \(got -2.0\)",
        ),
        (lambda: dist(logits(1), logits(2), 0.0), r"temperature must be > 0 \(got 0.0\)"),
    ],
)
def test_values_out_of_range(make: Callable[[], object], message: str):
    with pytest.raises(BadSetting, match=message):
        make()
