"""Estimates, distances, weights and fused teachers: numbers by hand, slow loops, limits, messages."""

import math

import pytest
import torch
from torch import Tensor

from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.federated import (
    Itself,
    KnFu,
    Mean,
    divergence,
    effective_neighbours,
    estimated_distribution,
    fuse,
    fusion_weights,
)
from stillhouse.federated.fusion import SMOOTHING, check_distance


def rows(seed: int, *shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(*shape, generator=rng, dtype=torch.float64), dim=-1)


def test_an_estimate_with_labels_by_hand():
    p = torch.tensor([[0.9, 0.1, 0.0], [0.7, 0.2, 0.1], [0.6, 0.4, 0.0], [0.3, 0.3, 0.4]])
    # class 0: (0.9 + 0.7) / 2 = 0.8; class 1: 0.4; class 2: 0.4; divided by their sum 1.6
    found = estimated_distribution(p, torch.tensor([0, 0, 1, 2]))
    assert found.tolist() == pytest.approx([0.5, 0.25, 0.25], abs=1e-6)


def test_an_estimate_without_labels_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.4, 0.6]])
    assert estimated_distribution(p, None).tolist() == pytest.approx([0.6, 0.4], abs=1e-6)


def test_a_class_that_the_transfer_set_lacks_gets_the_smoothing():
    p = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    found = estimated_distribution(p, torch.tensor([0, 0]))
    assert found[1].item() == pytest.approx(SMOOTHING, rel=1e-6)
    # wrong about every sample: nothing is known, all classes are alike
    wrong = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert estimated_distribution(wrong, torch.tensor([0, 1])).tolist() == [0.5, 0.5]


def test_an_estimate_agrees_with_a_slow_one():
    p, labels = rows(1, 40, 6), torch.arange(40) % 5  # class 5 is missing
    slow: list[float] = []
    for c in range(6):
        own = [float(p[i, c]) for i in range(40) if labels[i] == c]
        slow.append(sum(own) / len(own) if own else 0.0)
    shares = [q / sum(slow) + 1e-8 for q in slow]
    expected = [share / sum(shares) for share in shares]
    assert estimated_distribution(p, labels).tolist() == pytest.approx(expected, rel=1e-12)


P = torch.tensor([[0.5, 0.5], [0.25, 0.75]], dtype=torch.float64)


def test_distances_by_hand():
    kl = divergence(P)
    # KL(p0 || p1) = 0.5 ln 2 + 0.5 ln (2/3); KL(p1 || p0) = 0.25 ln 0.5 + 0.75 ln 1.5
    assert kl[0, 1].item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl[1, 0].item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    # the middle is [3/8, 5/8]
    js = 0.25 * (math.log(4 / 3) + math.log(4 / 5))
    js += 0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5))
    assert divergence(P, "js")[0, 1].item() == pytest.approx(js)
    assert divergence(P, "l1").tolist() == [[0.0, 0.25], [0.25, 0.0]]


@pytest.mark.parametrize("kind", ["kl", "js", "l1"])
def test_a_distance_to_oneself_is_zero_and_others_positive(kind):
    d = divergence(rows(2, 5, 4), kind)
    assert torch.equal(d.diagonal(), torch.zeros(5, dtype=torch.float64))
    assert (d[~torch.eye(5, dtype=torch.bool)] > 0).all()
    if kind != "kl":
        torch.testing.assert_close(d, d.T)


def test_disjoint_distributions_are_at_the_far_end():
    d = torch.eye(2, dtype=torch.float64)
    assert divergence(d, "js")[0, 1].item() == pytest.approx(math.log(2))
    assert divergence(d, "l1")[0, 1].item() == 1
    assert divergence(d, "kl")[0, 1].item() == math.inf
    # even then weights are numbers
    assert fusion_weights(divergence(d), beta=10.0).tolist() == [[1, 0], [0, 1]]
    assert fusion_weights(divergence(d), beta=0.0).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_weights_by_hand():
    d = torch.tensor([[0.0, math.log(2) / 10, math.log(4) / 10]] * 3, dtype=torch.float64)
    # exp(-10 d) = 1, 1/2, 1/4: over 7/4
    found = fusion_weights(d, beta=10.0)[0].tolist()
    assert found == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    # 1/7 < 0.2 is dropped: 4/6, 2/6; in the last row it is the client's own and stays
    cut = fusion_weights(d, beta=10.0, min_weight=0.2)
    assert cut[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert cut[2].tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_weights_agree_with_a_slow_loop_and_sum_to_one():
    d = divergence(rows(3, 6, 5))
    found = fusion_weights(d, beta=10.0, min_weight=0.1)
    for n in range(6):
        raw = [math.exp(-10 * float(d[n, m])) for m in range(6)]
        kept = [a if m == n or a / sum(raw) >= 0.1 else 0.0 for m, a in enumerate(raw)]
        assert found[n].tolist() == pytest.approx([a / sum(kept) for a in kept])


def test_fused_teachers_by_hand():
    knowledge = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    fused = fuse(knowledge, torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    assert fused.tolist() == [[[0.75, 0.25]], [[0.5, 0.5]]]


def test_fused_teachers_agree_with_a_slow_loop():
    knowledge, weights = rows(4, 3, 7, 4), rows(5, 3, 3)
    fused = fuse(knowledge, weights)
    for n in range(3):
        slow = sum(weights[n, m] * knowledge[m] for m in range(3))
        torch.testing.assert_close(fused[n], slow)
    torch.testing.assert_close(fused.sum(2), torch.ones(3, 7, dtype=torch.float64))


def test_the_limits_of_beta():
    knowledge = rows(6, 4, 5, 3)
    d = divergence(rows(7, 4, 3))
    mean = knowledge.mean(0, keepdim=True).expand(4, -1, -1)
    torch.testing.assert_close(fuse(knowledge, fusion_weights(d, beta=0.0)), mean)
    torch.testing.assert_close(fuse(knowledge, fusion_weights(d, beta=1e9)), knowledge)


def test_effective_neighbours_by_hand():
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert effective_neighbours(weights).tolist() == pytest.approx([1, 2, 3])


def test_rules():
    # clients 0 and 1 know class 0, client 2 knows class 1; half-right where they know nothing
    sure, unsure = [0.999, 0.001], [0.5, 0.5]
    p = torch.tensor([[sure, sure[::-1]], [sure, sure[::-1]], [unsure, sure[::-1]]])
    p[0, 1] = p[1, 1] = torch.tensor([0.99, 0.01])
    labels = torch.tensor([0, 1])
    weights = KnFu()(p, labels)
    assert weights[0].tolist() == pytest.approx([0.5, 0.5, 0], abs=1e-3)
    # by hand, from q = [0.999, 0.01] and [0.5, 0.999], each divided by its sum
    one, two = [0.999 / 1.009, 0.01 / 1.009], [0.5 / 1.499, 0.999 / 1.499]
    kl = sum(b * math.log(b / a) for a, b in zip(one, two, strict=True))
    assert weights[2, 2].item() == pytest.approx(1 / (1 + 2 * math.exp(-10 * kl)), rel=1e-5)
    free = KnFu(labelled=False, distance="l1", beta=1.0)(p, labels)
    # mean rows [0.9945, 0.0055] and [0.2505, 0.7495]: distance 0.744
    assert free[0, 2].item() == pytest.approx(math.exp(-0.744) / (2 + math.exp(-0.744)), rel=1e-4)
    torch.testing.assert_close(KnFu(labelled=False)(p, labels), KnFu()(p, None))
    assert Mean()(p, labels).tolist() == [[pytest.approx(1 / 3)] * 3] * 3
    assert torch.equal(Itself()(p, labels), torch.eye(3))
    assert (KnFu().shares, Mean().shares, Itself().shares) == (True, True, False)


def test_messages():
    p = rows(8, 4, 3)
    with pytest.raises(BadData, match=r"transfer set: labels must be 0 ... 2 \(got 0 ... 3\)"):
        estimated_distribution(p, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(BadData, match=r"rows must be >= 0 and sum to 1 \(logits need a softmax\)"):
        estimated_distribution(p.log(), None)
    with pytest.raises(BadData, match="rows must be >= 0 and sum to 1"):
        divergence(2 * p)
    with pytest.raises(BadData, match="no rows; the transfer set needs at least one sample"):
        estimated_distribution(p[:0], None)
    with pytest.raises(UnknownName, match="unknown distance 'jss'. Did you mean 'js'"):
        check_distance("jss")
    d = divergence(p)
    with pytest.raises(BadSetting, match=r"beta must be >= 0 \(got -1.0\)"):
        fusion_weights(d, beta=-1.0)
    with pytest.raises(BadSetting, match=r"min_weight must be >= 0 and < 1 \(got 1.0\)"):
        fusion_weights(d, beta=1.0, min_weight=1.0)
    with pytest.raises(BadSetting, match=r"beta must be >= 0 \(got -2.0\)"):
        KnFu(beta=-2.0)


def test_types_that_differ_are_both_named():
    knowledge, weights = rows(0, 2, 5, 3), torch.eye(2)
    with pytest.raises(BadData) as caught:
        fuse(knowledge, weights)
    assert str(caught.value) == (
        "fusion: knowledge is float64 and weights float32; give both as one, as in "
        "weights.to(knowledge.dtype)"
    )
    # half precision is made float32 on the way
    assert fuse(knowledge.half(), weights).dtype == torch.float32
