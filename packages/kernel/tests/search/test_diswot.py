"""DisWOT's two distances and its score: numbers by hand, a slow version, invariances, messages."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.search.proxies import (
    Similarities,
    combined,
    diswot_score,
    head_gradient,
    relation_distance,
    semantic_distance,
    views,
)
from stillhouse.search.proxies.diswot import STUDENT
from stillhouse.search.proxies.network import draw_normal
from stillhouse.training import mix

from .networks import Line, Small, batch, pixels, small

ROOT2 = math.sqrt(2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def test_semantic_distance_by_hand():
    # teacher g = (1, 1): rows (1, 1) / sqrt 2, twice. Student (1, 0): rows (1, 0) and, of length 0, (0, 0)
    # row 0: (1 - 1/sqrt 2)^2 + 1/2 = 2 - sqrt 2; row 1: 1; one class, C = 2
    found = semantic_distance(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    assert found.item() == pytest.approx((3 - ROOT2) / 2)
    # a second class whose gradients are equal halves the mean over classes
    found = semantic_distance(
        torch.tensor([[1.0, 1.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    )
    assert found.item() == pytest.approx((3 - ROOT2) / 4)


def test_semantic_distance_between_widths_by_hand():
    # teacher: the identity. Student: two equal rows, products all 1, unit rows (1, 1) / sqrt 2
    found = semantic_distance(torch.eye(2), torch.ones(2, 1))
    assert found.item() == pytest.approx((2 - ROOT2) * 2 / 4)


def slow_semantic(teacher: np.ndarray, student: np.ndarray) -> float:
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        for a in range(len(t)):
            row_t, row_s = t[a] * t, s[a] * s
            row_t = row_t / max(math.sqrt((row_t**2).sum()), 1e-12)
            row_s = row_s / max(math.sqrt((row_s**2).sum()), 1e-12)
            total += ((row_t - row_s) ** 2).sum()
    return total / teacher.size


def test_semantic_distance_by_class_is_one_scale_for_all_widths():
    rng = Generator().manual_seed(3)
    teacher, wide = torch.randn(2, 5, 8, generator=rng)
    narrow = torch.randn(5, 3, generator=rng)
    same = semantic_distance(teacher, wide, by_class=True)
    # a width that differs by an empty channel takes the class form by itself
    assert same == pytest.approx(float(semantic_distance(teacher, F.pad(wide, (0, 1)))), rel=1e-6)
    assert same != pytest.approx(float(semantic_distance(teacher, wide)), rel=0.05)
    other = semantic_distance(teacher, narrow, by_class=True)
    assert torch.equal(other, semantic_distance(teacher, narrow))


def test_semantic_distance_is_the_slow_one():
    teacher, student = normal(7, 5), normal(7, 5, seed=1)
    expected = slow_semantic(teacher.numpy(), student.numpy())
    assert semantic_distance(teacher, student).item() == pytest.approx(expected)


@pytest.mark.parametrize("width", [5, 3])
def test_semantic_distance_ignores_the_scale(width: int):
    teacher, student = normal(7, 5), normal(7, width, seed=1)
    distance = semantic_distance(teacher, student)
    assert distance > 0.01
    torch.testing.assert_close(semantic_distance(3 * teacher, 0.2 * student), distance)
    assert semantic_distance(student, 2 * student).item() == pytest.approx(0, abs=1e-15)


def test_semantic_distance_ignores_the_sign_of_a_class():
    teacher, student = normal(7, 5), normal(7, 5, seed=1)
    signs = torch.tensor([1, -1, 1, 1, -1, -1, 1])[:, None]
    found = semantic_distance(teacher, signs * student)
    torch.testing.assert_close(found, semantic_distance(teacher, student))


@pytest.mark.parametrize("width", [5, 3])
def test_a_class_without_a_gradient_is_no_nan(width: int):
    student = normal(7, width)
    student[2] = 0
    assert torch.isfinite(semantic_distance(normal(7, 5), student))


def test_relation_distance_by_hand():
    # student (1, 0), (1, 1): products (1, 1), (1, 2), unit rows (1, 1) / sqrt 2 and (1, 2) / sqrt 5
    # teacher: the identity. Row 0: 2 - sqrt 2; row 1: 1/5 + (1 - 2/sqrt 5)^2 = 2 - 4/sqrt 5; B^2 = 4
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 2, 1, 1)
    found = relation_distance(torch.eye(2).view(2, 1, 1, 2), student)
    assert found.item() == pytest.approx((4 - ROOT2 - 4 / math.sqrt(5)) / 4)


def test_relation_distance_is_the_slow_one():
    teacher, student = normal(6, 4, 3, 3), normal(6, 2, 5, 5, seed=1)
    grams = []
    for x in (teacher.numpy(), student.numpy()):
        gram = np.array([[(a * b).sum() for b in x] for a in x])
        grams.append(gram / np.sqrt((gram**2).sum(axis=1, keepdims=True)))
    expected = ((grams[0] - grams[1]) ** 2).mean()
    assert relation_distance(teacher, student).item() == pytest.approx(expected)
    assert relation_distance(teacher, 5 * teacher).item() == pytest.approx(0, abs=1e-15)


def test_the_head_gradient_is_autograds():
    images, labels = batch()
    network = small()
    outputs = network({"images": images})
    nn.functional.cross_entropy(outputs["logits"], labels).backward()
    found = head_gradient(outputs["logits"], outputs["embedding"], labels)
    torch.testing.assert_close(found, network.head.weight.grad)


def test_weights_are_drawn_as_the_paper_draws():
    network = Small(widths=(32, 64))
    nn.init.constant_(network.norm1.weight, 3.0)
    nn.init.constant_(network.norm2.bias, 3.0)
    draw_normal(network, Generator().manual_seed(0))
    weight = network.conv2.weight  # 18432 values: the mean within 4 standard errors
    assert abs(weight.mean().item()) < 4 / math.sqrt(weight.numel())
    assert weight.std().item() == pytest.approx(1, abs=0.03)
    for zero in (network.conv1.bias, network.head.bias, network.norm1.bias, network.norm2.bias):
        assert zero is not None
        assert zero.abs().max() == 0
    assert network.norm1.weight.min() == network.norm1.weight.max() == 1


def test_a_score_is_of_drawn_weights_in_train_mode():
    """The student's views, worked out again with autograd."""
    images, labels = batch()
    teacher, student = small(0, (3, 5)), small(1)
    score = diswot_score(teacher, student, images, labels, inits=2, seed=7)
    seen = views(teacher, images, labels, inits=2, seed=7)
    for draw in range(2):
        again = small(2).train()
        draw_normal(again, Generator().manual_seed(mix(7, STUDENT, draw)))
        outputs = again({"images": images})
        nn.functional.cross_entropy(outputs["logits"], labels).backward()
        gradient = again.head.weight.grad
        assert gradient is not None
        semantic = -semantic_distance(seen[draw].fc_grad, gradient).item()
        relation = -relation_distance(seen[draw].last_map, outputs["hint2"]).item()
        assert score.semantics[draw] == pytest.approx(semantic, rel=1e-4)
        assert score.relations[draw] == pytest.approx(relation, rel=1e-4)
    assert score.semantic == pytest.approx(sum(score.semantics) / 2)
    assert score.relation == pytest.approx(sum(score.relations) / 2)


def test_a_score_changes_nothing_and_depends_on_the_seed_alone():
    images, labels = batch()
    teacher, student = small(0).eval(), small(1).eval()
    student.conv1.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    score = diswot_score(teacher, student, images, labels)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert not student.training
    assert not student.conv1.weight.requires_grad
    torch.manual_seed(99)  # nor on torch's generator, nor on the weights that the networks have
    assert diswot_score(small(5), small(6), images, labels) == score
    assert diswot_score(teacher, student, images, labels, seed=1) != score


def test_two_networks_of_one_architecture_are_two_draws():
    score = diswot_score(small(0), small(0), *batch())
    assert max(score.semantics) < -1e-3
    assert len(set(score.semantics)) == 4


def test_the_teachers_views_are_computed_once_for_many_students():
    images, labels = batch()
    seen = views(small(0), images, labels, inits=3)
    given = diswot_score(seen, small(1), images, labels, inits=3)
    assert given == diswot_score(small(0), small(1), images, labels, inits=3)


def score(semantic: float, relation: float, combine: Any = "zscore") -> Similarities:
    return Similarities(semantics=(semantic,), relations=(relation,), combine=combine)


def test_zscores_by_hand():
    # semantics -1, -3: mean -2, deviation 1. Relations 0, 0.1, times 2: mean 0.05, deviation 0.05
    assert combined([score(-1, 0), score(-3, 0.1)]) == pytest.approx((0, 0))
    assert combined([score(-1, 0.1), score(-3, 0)]) == pytest.approx((2, -2))
    assert combined([score(-1, 0.5), score(-3, 0.5)]) == pytest.approx((1, -1))


def test_ranks_by_hand():
    # semantics ranked 3, 1, 2; relations 1, 2.5, 2.5
    scores = [score(-1, -9, "rank"), score(-7, -2, "rank"), score(-2, -2, "rank")]
    assert combined(scores) == (4, 3.5, 4.5)


def test_sums_are_as_they_are():
    scores = [score(-1, -0.25, "sum"), score(-0.5, -4, "sum")]
    assert combined(scores) == (-1.25, -4.5)
    assert scores[0].value == -1.25
    assert combined([]) == ()


def test_a_part_of_large_values_does_not_outvote_the_other():
    small_part = [score(-100, -1e-3), score(-101, -2e-3), score(-102, -9e-3)]
    scaled = [score(s.semantic, 1000 * s.relation) for s in small_part]
    assert combined(scaled) == pytest.approx(combined(small_part))


def test_a_mixture_and_a_lone_zscore_are_refused():
    with pytest.raises(BadSetting, match="in one way declare several: rank, zscore"):
        combined([score(0, 0), score(0, 0, "rank")])
    with pytest.raises(BadSetting, match=r"a zscore is one among candidates: give all .* combined"):
        _ = score(0, 0).value


def test_a_wrong_setting_says_so():
    with pytest.raises(BadSetting, match="inits must be >= 1 \\(got 0\\)"):
        diswot_score(small(), small(), *batch(), inits=0)
    # without the tests' own check of types, which a user does not have
    unchecked: Any = inspect.unwrap(diswot_score)
    with pytest.raises(BadSetting, match="one of zscore, rank, sum \\(got 'mean'\\)"):
        unchecked(small(), small(), *batch(), combine="mean")


def test_a_wrong_batch_says_so():
    images, labels = batch(4)
    with pytest.raises(BadData, match="4 images and 3 labels"):
        diswot_score(small(), small(), images, labels[:3])
    with pytest.raises(BadSetting, match="at least 2 images \\(got 1\\)"):
        diswot_score(small(), small(), images[:1], labels[:1])
    with pytest.raises(BadData, match="labels go from 5 to 5; the network has classes 0 to 4"):
        diswot_score(small(), small(), images, torch.full((4,), 5))
    seen = views(small(), images, labels, inits=2)
    with pytest.raises(BadSetting, match="the teacher's views are of 2 draws, the score of 4"):
        diswot_score(seen, small(), images, labels)


class Bare(Small):
    def forward(self, batch: Any) -> dict[str, Tensor]:
        return {k: v for k, v in super().forward(batch).items() if k[:4] != "hint"}


def test_a_network_without_maps_says_so():
    with pytest.raises(UnknownName, match="scored network: unknown output 'hint1'"):
        diswot_score(Bare(), small(), *batch())


def test_an_overflow_says_so():
    images = pixels([[1e30], [2e30]])
    network: Callable[[], nn.Module] = lambda: Line([[1.0]], [[1.0], [2.0]])  # noqa: E731
    with pytest.raises(BadSetting, match=r"distance of this network is nan: its activations"):
        diswot_score(network(), network(), images, torch.tensor([0, 1]))
