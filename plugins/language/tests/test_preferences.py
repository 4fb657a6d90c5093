"""Preference scores, pairs and item response theory."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from stillhouse.errors import BadData, BadSetting
from stillhouse_language.arte.irt import fit_2pl
from stillhouse_language.arte.preferences import (
    preference_scores,
    quartile_pairs,
    rationale_pairs,
)


def test_scores_by_hand() -> None:
    correct = torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0]], [[1, 1, 1, 1], [0, 0, 0, 0]]])
    rationales, questions = preference_scores(correct)
    assert rationales.tolist() == [[0.5, 0.25], [1.0, 0.0]]
    assert questions.tolist() == [0.375, 0.5]


@pytest.mark.parametrize("values", [torch.zeros(2, 2, 0), torch.full((1, 1, 1), 2.0)])
def test_scores_refuse(values: torch.Tensor) -> None:
    with pytest.raises(BadData):
        preference_scores(values)


def test_quartile_pairs_come_from_the_quarters() -> None:
    scores = torch.arange(20.0).flip(0)
    pairs = quartile_pairs(scores, k=5, rng=torch.Generator().manual_seed(0))
    assert sorted(pairs[:, 0].tolist()) == [0, 1, 2, 3, 4]
    assert sorted(pairs[:, 1].tolist()) == [15, 16, 17, 18, 19]
    again = quartile_pairs(scores, k=5, rng=torch.Generator().manual_seed(0))
    assert torch.equal(pairs, again)
    other = quartile_pairs(scores, k=5, rng=torch.Generator().manual_seed(1))
    assert not torch.equal(pairs, other)


def test_pairs_of_equal_scores_are_left_out() -> None:
    scores = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    pairs = quartile_pairs(scores, k=2, rng=torch.Generator().manual_seed(0))
    assert pairs[:, 0].tolist() == [0]


def test_more_pairs_than_a_quarter_has_are_refused() -> None:
    with pytest.raises(BadSetting, match=r"k must be <= 2, a quarter of 9"):
        quartile_pairs(torch.arange(9.0), k=3, rng=torch.Generator())


def test_rationale_pairs_by_hand() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.1], [0.3, 0.3, 0.3], [0.2, 0.25, 0.2], [0.0, 0.05, 0.05]])
    assert rationale_pairs(scores).tolist() == [[0, 1, 2], [2, 1, 0], [3, 1, 0]]
    assert rationale_pairs(scores, least=0.05).tolist() == [[0, 1, 2], [2, 1, 0], [3, 1, 0]]
    assert rationale_pairs(scores, least=0.1).tolist() == [[0, 1, 2]]


def answers(subjects: int, items: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta, beta = rng.normal(size=subjects), rng.normal(size=items)
    alpha = np.exp(0.5 * rng.normal(size=items))
    p = 1 / (1 + np.exp(-alpha * (theta[:, None] - beta)))
    return torch.from_numpy((rng.random(p.shape) < p).astype(np.int64)), alpha


def test_the_fit_is_the_mode_of_the_posterior_by_another_method() -> None:
    """A derivative-free search of the posterior, written out item by item, finds no better one."""
    correct, _ = answers(3, 2)

    def lost(x: np.ndarray) -> float:
        theta, beta, log_alpha = x[:3], x[3:5], x[5:]
        value = 0.5 * (sum(t * t for t in theta) + sum(b * b for b in beta))
        for i in range(2):
            value += 0.5 * (log_alpha[i] / 0.5) ** 2
            for a in range(3):
                p = 1 / (1 + math.exp(-math.exp(log_alpha[i]) * (theta[a] - beta[i])))
                value -= math.log(p if correct[a, i] else 1 - p)
        return value

    found = fit_2pl(correct)
    options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-9, "fatol": 1e-12}
    slow = minimize(lost, np.zeros(7), method="Nelder-Mead", options=options)
    assert -found.log_posterior == pytest.approx(slow.fun, abs=1e-6)
    ours = torch.cat([found.ability, found.difficulty, found.discrimination.log()])
    np.testing.assert_allclose(ours.numpy(), slow.x, atol=2e-3)


def test_items_that_tell_subjects_apart_are_found_again() -> None:
    correct, alpha = answers(400, 60)
    found = fit_2pl(correct)
    kept = set(found.most_discriminating(20).tolist())
    best = set(np.argsort(-alpha)[:20].tolist())
    assert len(kept & best) >= 13
    assert np.corrcoef(found.discrimination.log(), np.log(alpha))[0, 1] > 0.75
    assert found.probabilities().shape == (400, 60)


def test_an_item_that_the_good_fail_is_not_chosen() -> None:
    correct, _ = answers(40, 20)
    correct[:, 7] = 1 - (correct.double().mean(1) > 0.5).long()  # the reverse of ability
    found = fit_2pl(correct)
    assert bool((found.discrimination > 0).all())
    assert 7 not in found.most_discriminating(10).tolist()


def test_twenty_subjects_give_a_finite_fit() -> None:
    correct = torch.zeros(20, 100, dtype=torch.int64)
    correct[:, :10] = 1  # nobody and everybody
    found = fit_2pl(correct)
    assert bool(found.ability.isfinite().all())
    assert bool(found.discrimination.isfinite().all())


@pytest.mark.parametrize("values", [torch.zeros(0, 3), torch.full((2, 2), 0.5)])
def test_the_fit_refuses(values: torch.Tensor) -> None:
    with pytest.raises(BadData):
        fit_2pl(values)


@pytest.mark.parametrize("count", [0, 4])
def test_so_many_items_cannot_be_chosen(count: int) -> None:
    with pytest.raises(BadSetting, match="between 1 and 3"):
        fit_2pl(torch.tensor([[1, 0, 1], [0, 0, 1]])).most_discriminating(count)
