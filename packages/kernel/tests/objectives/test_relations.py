"""SP, RKD, CC, PKT and ICKD: numbers by hand, invariances, slow loops, dead embeddings."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.relations import (
    cc_loss,
    ickd_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    sp_loss,
)
from stillhouse.objectives.term import Term

READS = ("student.embedding", "teacher.embedding")


def embeddings(seed: int, width: int = 4, count: int = 5) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=rng, dtype=torch.float64)


def maps(seed: int, size: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, size, size, generator=rng, dtype=torch.float64)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(embeddings(9, width, width))[0]


def gaussian(s: Tensor, t: Tensor) -> Tensor:
    return cc_loss(s, t, kernel="gaussian")


def bilinear(s: Tensor, t: Tensor) -> Tensor:
    return cc_loss(s, t, kernel="bilinear")


EMBEDDED = [sp_loss, rkd_distance_loss, rkd_angle_loss, gaussian, bilinear, pkt_loss]
LOSSES = pytest.mark.parametrize("loss", EMBEDDED)


def test_sp_by_hand():
    # student [1, 0], [1, 1]: A A^T = [1, 1], [1, 2]; unit rows [1, 1] / sqrt 2 and [1, 2] / sqrt 5
    # teacher: the identity. Row 0: (1 - 1/sqrt 2)^2 + 1/2 = 2 - sqrt 2
    # row 1: 1/5 + (1 - 2/sqrt 5)^2 = 2 - 4/sqrt 5; mean over 4 entries
    loss = sp_loss(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.eye(2))
    assert loss.item() == pytest.approx((4 - math.sqrt(2) - 4 / math.sqrt(5)) / 4)


def test_ickd_by_hand():
    # the same two rows as the channels of one sample: sum over C^2, divided by C = 2
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(1, 2, 1, 2)
    loss = ickd_loss(student, torch.eye(2).view(1, 2, 1, 2))
    assert loss.item() == pytest.approx((4 - math.sqrt(2) - 4 / math.sqrt(5)) / 2)


# three points on a line, 1 apart, against a 3-4-5 triangle
LINE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
TRIANGLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])


def test_rkd_distance_by_hand():
    # line: 1, 2, 1 over mean 4/3 = 0.75, 1.5, 0.75; triangle: 3, 4, 5 over 4 = 0.75, 1, 1.25
    # Huber: 0, 0.5^2 / 2, 0.5^2 / 2; mean over pairs
    assert rkd_distance_loss(LINE, TRIANGLE).item() == pytest.approx(0.25 / 3)


def test_rkd_angle_by_hand():
    # line: cos 1, -1, 1 at its points; triangle: 0, 3/5, 4/5
    # differences 1, -1.6, 0.2; Huber 0.5, 1.6 - 0.5 = 1.1, 0.02; mean over the three angles
    assert rkd_angle_loss(LINE, TRIANGLE).item() == pytest.approx(1.62 / 3)


def test_cc_by_hand():
    # dots off the diagonal: student 1, teacher 0; kernel e^-0.8 (1 + 0.8 d + 0.32 d^2)
    # differs by 1.12 e^-0.8 at two of four entries
    student = torch.tensor([[2.0, 0.0], [5.0, 0.0]])
    assert gaussian(student, torch.eye(2)).item() == pytest.approx(
        0.5 * (1.12 * math.exp(-0.8)) ** 2
    )
    # bilinear: [4, 10], [10, 25] against the identity: 9 + 100 + 100 + 576
    assert bilinear(student, torch.eye(2)).item() == pytest.approx(785 / 4)


def test_pkt_by_hand():
    # kernel of the pairs 01, 02, 12: teacher (e1, e2, e1) 1/2, 1, 1/2; student (e1, e1, e2) 1, 1/2,
    # 1/2
    # row 0: teacher [1/3, 2/3], student [2/3, 1/3]: KL = 1/3 ln 2
    # row 1: [1/2, 1/2] against [2/3, 1/3]: 1/2 ln 9/8; row 2: [2/3, 1/3] against [1/2, 1/2]:
    # 2/3 ln 4/3 + 1/3 ln 2/3; mean over the 6 ordered pairs
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    rows = (
        math.log(2) / 3,
        math.log(9 / 8) / 2,
        2 / 3 * math.log(4 / 3) + math.log(2 / 3) / 3,
    )
    assert pkt_loss(student, teacher).item() == pytest.approx(sum(rows) / 6, rel=1e-5)


def test_rkd_distance_against_a_loop():
    s, t = embeddings(1), embeddings(2, width=7)
    pairs = list(itertools.permutations(range(5), 2))
    far = [[torch.dist(x[i], x[j]).item() for i, j in pairs] for x in (s, t)]
    a, b = (np.array(d) / np.mean(d) for d in far)
    expected = np.mean([huber(x - y) for x, y in zip(a, b, strict=True)])
    assert rkd_distance_loss(s, t).item() == pytest.approx(expected)


def test_rkd_angle_against_a_loop():
    s, t = embeddings(1), embeddings(2, width=7)
    expected = np.mean(
        [
            huber(cosine(s[i] - s[j], s[k] - s[j]) - cosine(t[i] - t[j], t[k] - t[j]))
            for i, j, k in itertools.permutations(range(5), 3)
        ]
    )
    assert rkd_angle_loss(s, t).item() == pytest.approx(expected)


def test_pkt_against_a_loop():
    s, t = embeddings(1), embeddings(2, width=7)
    expected = 0.0
    for i in range(5):
        p, q = (
            np.array([(cosine(x[i], x[j]) + 1) / 2 for j in range(5) if j != i]) for x in (s, t)
        )
        p, q = p / p.sum(), q / q.sum()
        expected += (q * np.log(q / p)).sum() / 20
    assert pkt_loss(s, t).item() == pytest.approx(expected, rel=1e-5)


def test_cc_of_high_order_is_the_gaussian_kernel():
    s, t = (torch.nn.functional.normalize(embeddings(i), dim=1) for i in (1, 2))
    exact = [torch.exp(-0.4 * torch.cdist(x, x) ** 2) for x in (s, t)]
    found = cc_loss(3 * s, t, kernel="gaussian", gamma=0.4, order=20)
    assert found.item() == pytest.approx(torch.nn.functional.mse_loss(*exact).item())


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def cosine(a: Tensor, b: Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


@LOSSES
def test_zero_for_equal_embeddings_and_for_a_rotation(loss: Callable[..., Tensor]):
    x = embeddings(1)
    assert loss(x, x).item() == pytest.approx(0, abs=1e-12)
    assert loss(x @ rotation(4), x).item() == pytest.approx(0, abs=1e-12)
    assert loss(x, embeddings(2)).item() > 1e-4


@pytest.mark.parametrize("loss", [sp_loss, rkd_distance_loss, rkd_angle_loss, gaussian, pkt_loss])
def test_a_common_scale_changes_nothing(loss: Callable[..., Tensor]):
    s, t = embeddings(1), embeddings(2)
    assert loss(100 * s, t / 10).item() == pytest.approx(loss(s, t).item(), rel=1e-6)


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
def test_rkd_ignores_a_translation(loss: Callable[..., Tensor]):
    s, t = embeddings(1), embeddings(2)
    assert loss(s + 5, t - 3).item() == pytest.approx(loss(s, t).item())


@pytest.mark.parametrize("loss", [gaussian, pkt_loss])
def test_cosine_kernels_ignore_the_scale_of_a_sample(loss: Callable[..., Tensor]):
    s, t = embeddings(1), embeddings(2)
    scale = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None]
    assert loss(scale * s, t).item() == pytest.approx(loss(s, t).item(), rel=1e-6)


def test_ickd_ignores_the_order_and_number_of_positions():
    s, t = maps(1), maps(2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    moved = s.flatten(2)[:, :, order].view_as(s)
    assert ickd_loss(moved, t).item() == pytest.approx(ickd_loss(s, t).item())
    assert ickd_loss(torch.cat([s, s], dim=3), t).item() == pytest.approx(ickd_loss(s, t).item())
    assert ickd_loss(s, maps(3, size=6)).item() > 0


@LOSSES
def test_gradient_reaches_the_student_only(loss: Callable[..., Tensor]):
    student, teacher = embeddings(1).requires_grad_(), embeddings(2, width=7).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum(dim=1).min() > 0


@LOSSES
def test_gradient_matches_finite_differences(loss: Callable[..., Tensor]):
    assert torch.autograd.gradcheck(
        lambda s: loss(s, embeddings(2)), (embeddings(1).requires_grad_(),)
    )


@LOSSES
def test_dead_and_coincident_embeddings_have_a_finite_gradient(loss: Callable[..., Tensor]):
    student = embeddings(1).float()
    student[0] = 0
    student[2] = student[1]
    for start in (student, torch.zeros(5, 4)):
        x = start.clone().requires_grad_()
        value = loss(x, embeddings(2).float())
        value.backward()
        assert torch.isfinite(value)
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(
    ("loss", "count"), [(rkd_distance_loss, 1), (rkd_angle_loss, 2), (pkt_loss, 1), (pkt_loss, 2)]
)
def test_a_last_batch_too_small_for_a_relation_costs_nothing(
    loss: Callable[..., Tensor], count: int
):
    student = embeddings(1, count=count).requires_grad_()
    value = loss(student, embeddings(2, count=count))
    value.backward()
    assert value.item() == 0


@LOSSES
def test_autocast_does_not_lose_precision(loss: Callable[..., Tensor]):
    s, t = embeddings(1, width=300).float(), embeddings(2, width=300).float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(s, t)
    assert mixed.item() == pytest.approx(loss(s, t).item(), rel=1e-5)


def test_sp_flattens_maps():
    s, t = maps(1), maps(2, size=5)
    assert sp_loss(s, t) == sp_loss(s.flatten(1), t.flatten(1))


def test_terms_call_their_functions():
    outputs = {
        "student": {"embedding": embeddings(1), "hint2": maps(1)},
        "projector": {"hint2": maps(3)},
        "teacher": {"embedding": embeddings(2), "hint3": maps(2)},
    }
    s, t = embeddings(1), embeddings(2)
    terms = [
        (Term(sp_loss, "student.hint2", "teacher.hint3"), sp_loss(maps(1), maps(2))),
        (Term(rkd_distance_loss, *READS), rkd_distance_loss(s, t)),
        (Term(rkd_angle_loss, *READS), rkd_angle_loss(s, t)),
        (Term(cc_loss, *READS), gaussian(s, t)),
        (Term(cc_loss, *READS, kernel="bilinear"), bilinear(s, t)),
        (
            Term(cc_loss, *READS, gamma=0.2, order=3),
            cc_loss(s, t, kernel="gaussian", gamma=0.2, order=3),
        ),
        (Term(pkt_loss, *READS), pkt_loss(s, t)),
        (Term(ickd_loss, "projector.hint2", "teacher.hint3"), ickd_loss(maps(3), maps(2))),
    ]
    for term, expected in terms:
        assert term(outputs, {}) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Term(cc_loss, *READS, gamma=0.0), r"gamma must be > 0 \(got 0.0\)"),
        (lambda: Term(cc_loss, *READS, order=0), r"order must be >= 1 \(got 0\)"),
        (
            lambda: Term(cc_loss, *READS, kernel="linear"),
            r"kernel must be one of gaussian, bilinear \(got 'linear'\)",
        ),
    ],
)
def test_values_out_of_range(make: Callable[[], object], message: str):
    with pytest.raises(BadSetting, match=message):
        make()
