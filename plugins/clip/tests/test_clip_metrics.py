"""Metrics of embeddings against numbers worked by hand and slow versions."""

import math

import pytest
import torch

from stillhouse.errors import BadData, BadSetting
from stillhouse_clip.metrics import (
    class_mean_accuracy,
    neighbour_overlap,
    order_inversions,
    relation_match,
    retrieval_few_shot,
)


def test_every_class_counts_alike() -> None:
    """3 of 4 right in class 0, none of 1 in class 2: (0.75 + 0) / 2, where 3 of 5 images are."""
    labels, predicted = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([0, 0, 0, 2, 0])
    assert class_mean_accuracy(predicted, labels) == pytest.approx(0.375)
    with pytest.raises(BadData, match="one at least"):
        class_mean_accuracy(labels[:0], labels[:0])


def test_a_cache_of_few_shots_by_hand() -> None:
    student, text = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    cache, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0, 1])
    found = retrieval_few_shot(student, text, cache, labels, alpha=2.0, beta=3.0)
    first = 0 + 2 * (1 + math.exp(-3))
    second = math.sqrt(0.5) + 2 * 1
    assert found[0].tolist() == pytest.approx([first, second], rel=1e-6)
    plain = retrieval_few_shot(student, text, cache[:0], labels[:0])
    assert plain[0].tolist() == pytest.approx([0, math.sqrt(0.5)], abs=1e-6)
    with pytest.raises(BadData, match=r"few shots: labels 0 to 2, but 2 class texts"):
        retrieval_few_shot(student, text, cache, torch.tensor([0, 1, 2]))


def test_spaces_of_three_images_by_hand() -> None:
    """Unit vectors at angles; the student turns the second one to the third's place."""

    def at(*degrees: float) -> torch.Tensor:
        turns = torch.tensor(degrees).deg2rad()
        return torch.stack([turns.cos(), turns.sin()], 1)

    teacher, student = at(0, 40, 100), at(5, 90, 100)
    # nearest of the teacher's to 5, 90 and 100 degrees: 0, 100, 100
    assert relation_match(student, teacher) == pytest.approx(2 / 3)
    # one neighbour each; teacher: 40, 0, 40; student: 90, 100, 90
    assert neighbour_overlap(student, teacher, k=1) == pytest.approx(2 / 3)
    assert neighbour_overlap(student, teacher, k=2) == 1
    assert neighbour_overlap(teacher * 7, teacher, k=1) == 1
    text = at(10, 60, 120)
    # teacher's order of the texts: (0, 1, 2), (1, 0, 2), (2, 1, 0); the student's distances:
    # 5 deg: 5 55 115, no inversion; 90 deg in order 1 0 2: 30 80 30, one; 100 in 2 1 0: none
    assert order_inversions(student, teacher, text, k=3) == pytest.approx(1 / 3)
    assert order_inversions(teacher, teacher, text, k=3) == 0
    assert order_inversions(-teacher, teacher, text, k=3) == 3


def test_spaces_agree_with_slow_versions() -> None:
    torch.manual_seed(0)
    student, teacher, text = torch.randn(60, 4), torch.randn(60, 4), torch.randn(9, 4)
    s, t, w = (torch.nn.functional.normalize(x) for x in (student, teacher, text))
    match = [
        min(range(60), key=lambda j: float((t[j] - s[i]).square().sum())) == i for i in range(60)
    ]
    assert relation_match(student, teacher) == pytest.approx(sum(match) / 60)

    def near(x: torch.Tensor, i: int, k: int) -> set[int]:
        others = [j for j in range(60) if j != i]
        return set(sorted(others, key=lambda j: float((x[i] - x[j]).square().sum()))[:k])

    shared = sum(len(near(s, i, 5) & near(t, i, 5)) for i in range(60)) / 5 / 60
    assert neighbour_overlap(student, teacher, k=5) == pytest.approx(shared)
    total = 0
    for i in range(60):
        order = sorted(range(9), key=lambda c: float((t[i] - w[c]).square().sum()))[:4]
        d = [float((s[i] - w[c]).square().sum()) for c in order]
        total += sum(d[a] > d[b] for a in range(4) for b in range(a + 1, 4))
    assert order_inversions(student, teacher, text, k=4) == pytest.approx(total / 60)


def test_unrelated_spaces_are_at_chance() -> None:
    torch.manual_seed(0)
    student, teacher, text = torch.randn(3000, 8), torch.randn(3000, 8), torch.randn(50, 8)
    assert order_inversions(student, teacher, text, k=5) == pytest.approx(5, abs=0.15)
    assert neighbour_overlap(student, teacher, k=10) == pytest.approx(10 / 3000, abs=0.004)


def test_too_few_rows_are_refused() -> None:
    x = torch.randn(3, 2)
    with pytest.raises(BadSetting, match="k must be 1 to 2, for so many images"):
        neighbour_overlap(x, x, k=3)
    with pytest.raises(BadSetting, match="k must be 1 to 3, for so many class texts"):
        order_inversions(x, x, x, k=4)
    with pytest.raises(BadData, match="as many rows of both"):
        relation_match(x, x[:2])
