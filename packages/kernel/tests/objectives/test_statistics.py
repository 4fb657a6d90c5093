"""NST and KDSVD: numbers by hand, slow loops, invariances, messages."""

import math

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.statistics import kdsvd_loss, nst_loss


def maps(seed: int, channels: int = 4, size: int = 3) -> Tensor:
    rng = Generator().manual_seed(seed)
    return torch.randn(2, channels, size, size, generator=rng, dtype=torch.float64)


def test_nst_by_hand():
    # one channel a side, patterns (1, 0) and (0.6, 0.8): 1 + 1 - 2 * 0.6^2
    student = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    teacher = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    assert nst_loss(student, teacher).item() == pytest.approx(2 - 2 * 0.36)


def test_nst_is_the_slow_one():
    student, teacher = maps(0, channels=3), maps(1, channels=5)

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        unit = [[c.ravel() / np.linalg.norm(c) for c in x] for x in (a, b)]
        return float(np.mean([[(p @ q) ** 2 for q in unit[1]] for p in unit[0]]))

    expected = np.mean(
        [
            mean_kernel(s, s) + mean_kernel(t, t) - 2 * mean_kernel(s, t)
            for s, t in zip(student.numpy(), teacher.numpy(), strict=True)
        ]
    )
    assert nst_loss(student, teacher).item() == pytest.approx(expected)


def test_nst_does_not_see_the_order_of_channels():
    student = maps(0)
    assert nst_loss(student[:, [2, 0, 3, 1]], 3 * student).item() == pytest.approx(0, abs=1e-12)
    assert nst_loss(maps(0, size=6), maps(1)) > 0.01  # pooled to one size


def one_position(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def test_kdsvd_by_hand():
    # maps of one position: the one direction is the channels' vector, of length 1
    # teacher (1, 0) then (0.6, 0.8): differences 0.4, 0.2, 0.6, 0.8; student's second (0.8, 0.6)
    def bump(x: float) -> float:
        return math.exp(-(x**2) / 8)

    expected = 2 * (bump(0.4) - bump(0.2)) ** 2 + 2 * (bump(0.6) - bump(0.8)) ** 2
    front, teacher = one_position(2, 0), one_position(3, 4)
    for student in (one_position(4, 3), -one_position(4, 3)):
        found = kdsvd_loss([front, student], [front, teacher])
        assert found.item() == pytest.approx(expected)


def test_kdsvd_is_the_slow_one():
    rank = 2
    students = [maps(0), maps(1, size=5), maps(2)]
    teachers = [maps(3), maps(4, size=4), maps(5)]

    def parts(s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        offered = np.linalg.svd(s.reshape(len(s), -1).T)[2]
        _, values, wanted = np.linalg.svd(t.reshape(len(t), -1).T)
        weights = values[:rank] / np.linalg.norm(values[:rank])
        chosen_s, chosen_t = [], []
        for vector, weight in zip(wanted[:rank], weights, strict=True):
            vector = vector if vector.sum() >= 0 else -vector
            cosines = offered[: rank + 3] @ vector
            best = np.abs(cosines).argmax()
            chosen_s.append(weight * offered[best] * np.sign(cosines[best]))
            chosen_t.append(weight * vector)
        return np.array(chosen_s), np.array(chosen_t)

    total = 0.0
    for sample in range(2):
        found = [
            parts(s[sample].numpy(), t[sample].numpy())
            for s, t in zip(students, teachers, strict=True)
        ]
        for layer in range(2):
            for r in range(rank):
                for i in range(4):
                    for j in range(4):
                        gaps = [found[layer][k][r][i] - found[layer + 1][k][r][j] for k in (0, 1)]
                        bumps = [math.exp(-(g**2) / 8) for g in gaps]
                        total += (bumps[0] - bumps[1]) ** 2
    loss = kdsvd_loss(students, teachers, rank=rank)
    assert loss.item() == pytest.approx(total / 2)


def test_the_teacher_gets_no_gradient():
    student, teacher = maps(0).requires_grad_(True), maps(1).requires_grad_(True)
    (nst_loss(student, teacher) + kdsvd_loss([student, student], [teacher, teacher])).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())


def test_what_cannot_be_compared_says_so():
    with pytest.raises(BadSetting, match=r"at least 2 \(got 1 and 1\)"):
        kdsvd_loss([maps(0)], [maps(1)])
    with pytest.raises(BadSetting, match=r"equally many \(got 3 and 4\)"):
        kdsvd_loss([maps(0, 3), maps(0, 3)], [maps(0), maps(0)])
    with pytest.raises(BadSetting, match=r"rank must be >= 1 \(got 0\)"):
        kdsvd_loss([maps(0), maps(0)], [maps(1), maps(1)], rank=0)
