"""Splits: disjoint, of the size asked for, pure; as mixed as alpha says; the messages."""

import pytest
import torch

from stillhouse.errors import BadData, BadSetting
from stillhouse.federated import (
    dirichlet_split,
    grouped_split,
    label_distribution,
    personal_accuracy,
    personal_weights,
)

LABELS = torch.arange(1000) % 10


def classes_of(part):
    return set(LABELS[part].tolist())


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 100.0])
def test_a_dirichlet_split_gives_each_row_once(alpha):
    parts = dirichlet_split(LABELS, clients=10, size=90, alpha=alpha, seed=3)
    assert [len(part) for part in parts] == [90] * 10
    assert len(torch.cat(parts).unique()) == 900
    assert all(torch.equal(part, part.sort().values) for part in parts)


def test_a_split_can_take_every_row():
    # the last clients get what is left, even where their mix names only used-up classes
    parts = dirichlet_split(LABELS, clients=10, size=100, alpha=0.01, seed=0)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))


def test_a_split_is_a_pure_function_of_labels_and_seed():
    torch.manual_seed(1)
    one = dirichlet_split(LABELS, clients=4, size=20, alpha=0.5, seed=7)
    torch.manual_seed(2)
    again = dirichlet_split(LABELS, clients=4, size=20, alpha=0.5, seed=7)
    other = dirichlet_split(LABELS, clients=4, size=20, alpha=0.5, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    groups = {"groups": ((0, 1), (2,)), "members": (2, 1), "size": 20}
    one, again = (grouped_split(LABELS, **groups, seed=7) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))


def test_alpha_says_how_mixed_a_client_is():
    # the mean of sum p^2 under a symmetric Dirichlet of C classes: (alpha + 1) / (C alpha + 1)
    for alpha in (0.1, 1.0, 10.0):
        found: list[float] = []
        for seed in range(60):
            (part,) = dirichlet_split(LABELS, clients=1, size=50, alpha=alpha, seed=seed)
            counts = torch.bincount(LABELS[part], minlength=10).double()
            # unbiased for sum p^2 of the mix: ordered pairs of rows that share a class
            found.append(float((counts * (counts - 1)).sum() / (50 * 49)))
        expected = (alpha + 1) / (10 * alpha + 1)
        # 60 draws; at alpha 0.1 the spread of one is 0.2
        assert sum(found) / 60 == pytest.approx(expected, abs=0.08)


def test_groups_share_classes():
    groups = ((0, 1, 2), (3, 4, 5), (6, 7, 8, 9))
    parts = grouped_split(LABELS, groups=groups, members=(3, 3, 4), size=60, seed=1)
    assert [len(part) for part in parts] == [60] * 10
    assert len(torch.cat(parts).unique()) == 600
    own = [groups[0]] * 3 + [groups[1]] * 3 + [groups[2]] * 4
    assert [classes_of(part) for part in parts] == [set(group) for group in own]


def test_personal_weights_by_hand():
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    distributions = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    weights = personal_weights(labels, distributions)
    assert weights[:, 0].tolist() == pytest.approx([0.25, 0.25] + [0.125] * 4)
    assert weights[:, 1].tolist() == pytest.approx([0.5, 0.5, 0, 0, 0, 0])
    right = torch.tensor([[True, False, True, True, True, True]] * 2)
    # client 0: half of class 0 and all of class 1; client 1: half of class 0
    assert personal_accuracy(right, weights).tolist() == pytest.approx([0.75, 0.5])


def test_a_class_that_the_test_set_lacks_counts_nothing():
    weights = personal_weights(torch.tensor([0, 0]), torch.tensor([[0.5, 0.5]]))
    assert weights[:, 0].tolist() == [0.5, 0.5]
    with pytest.raises(BadData, match="the test set has no class of client 1"):
        personal_weights(torch.tensor([0, 0]), torch.tensor([[0.5, 0.5], [0.0, 1.0]]))


def test_label_distribution_by_hand():
    assert label_distribution(torch.tensor([2, 0, 2, 2]), 4).tolist() == [0.25, 0, 0.75, 0]
    with pytest.raises(BadData, match=r"labels: at least one, each 0 ... 1, is needed"):
        label_distribution(torch.tensor([2]), 2)


def test_messages():
    split = {"clients": 10, "size": 101, "alpha": 1.0, "seed": 0}
    with pytest.raises(BadSetting, match=r"clients \* size <= rows \(got 10 \* 101 of 1000 rows\)"):
        dirichlet_split(LABELS, **split)
    with pytest.raises(BadSetting, match=r"alpha must be > 0 \(got 0.0\)"):
        dirichlet_split(LABELS, **{**split, "alpha": 0.0})
    with pytest.raises(BadData, match=r"labels must be >= 0 \(got -1\)"):
        dirichlet_split(LABELS - 1, **{**split, "size": 1})
    with pytest.raises(
        BadSetting, match=r"group \[0\]: 3 clients of 50 rows need 150 \(it has 100\)"
    ):
        grouped_split(LABELS, groups=((0,),), members=(3,), size=50, seed=0)
    with pytest.raises(
        BadSetting, match=r"groups must not share a class \(got \[\[0, 1\], \[1\]\]\)"
    ):
        grouped_split(LABELS, groups=((0, 1), (1,)), members=(1, 1), size=5, seed=0)
    with pytest.raises(BadSetting, match=r"got 1 groups and members \[1, 1\]"):
        grouped_split(LABELS, groups=((0,),), members=(1, 1), size=5, seed=0)
