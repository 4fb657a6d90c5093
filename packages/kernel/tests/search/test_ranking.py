"""Rank correlations: by hand, against scipy and a count of pairs, intervals, messages."""

import itertools
import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Generator, Tensor

from stillhouse.errors import BadData
from stillhouse.search.ranking import (
    Correlation,
    bootstrap,
    kendall_tau,
    kendall_tau_within,
    partial_kendall_tau,
    spearman_rho,
)

INF = math.inf


def drawn(seed: int, rows: int = 40, values: int = 8) -> Tensor:
    """Three columns with ties, the second one noise on the first."""
    rng = Generator().manual_seed(seed)
    one, noise, other = torch.randint(values, (3, rows), generator=rng).double()
    return torch.stack([one, one + noise, other])


def test_tau_by_hand():
    # of 6 pairs, (1, 2) and (3, 4) are the other way round: (4 - 2) / 6
    assert kendall_tau([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(1 / 3)
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_tau_of_ties_by_hand():
    # 6 pairs; one tied in x, none in y; of the other five 4 concordant, 1 not: 3 / sqrt(5 * 6)
    assert kendall_tau([1, 1, 2, 3], [1, 2, 4, 3]) == pytest.approx(3 / math.sqrt(30))


def test_rho_by_hand():
    # differences of rank 1, 1, 1, 1: 1 - 6 * 4 / (4 * 15)
    assert spearman_rho([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    # ranks 1.5 1.5 3 against 1 2 3: covariance 1.5, variances 1.5 and 2 (sums)
    assert spearman_rho([5, 5, 9], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(1.5 * 2))


def test_partial_tau_by_hand():
    x, y, z = [1, 2, 3, 4], [2, 1, 4, 3], [1, 2, 4, 3]
    # t_xy = (4 - 2) / 6, t_xz = (5 - 1) / 6, t_yz = (5 - 1) / 6 (only the pair 1, 2 differs)
    expected = (1 / 3 - 2 / 3 * 2 / 3) / (1 - 4 / 9)
    assert partial_kendall_tau(x, y, z) == pytest.approx(expected)


def test_tau_within_groups_by_hand():
    # group 0: two of three pairs in order, one not; group 1: its pair in order: (3 - 1) / 4
    x, y, groups = [1, 2, 3, 9, 8], [1, 3, 2, 5, 4], [0, 0, 0, 1, 1]
    assert kendall_tau_within(x, y, groups) == pytest.approx(0.5)
    # a shift of a whole group changes nothing, though it does for all pairs
    shifted = [1, 2, 3, -9, -10]
    assert kendall_tau_within(shifted, y, groups) == pytest.approx(0.5)
    assert kendall_tau(shifted, y) != kendall_tau(x, y)
    assert kendall_tau_within([1, 2, 3, -INF, -INF], y, groups) == pytest.approx(1 / math.sqrt(12))


@pytest.mark.parametrize("seed", range(3))
def test_tau_within_one_group_is_tau(seed: int):
    x, y, _ = drawn(seed)
    almost_one = torch.zeros(len(x) + 1)
    almost_one[-1] = 1
    found = kendall_tau_within([*x.tolist(), 100.0], [*y.tolist(), -100.0], almost_one)
    assert found == pytest.approx(kendall_tau(x, y))


def test_size_tells_nothing_among_equals():
    groups = [1, 1, 2, 2, 3]
    with pytest.raises(BadData, match="no group has two values of x that differ"):
        kendall_tau_within([10, 10, 20, 20, 30], [1, 2, 3, 4, 5], groups)
    with pytest.raises(BadData, match="no group has two values of y that differ"):
        kendall_tau_within([1, 2, 3, 4, 5], groups, groups)


def test_a_dead_network_has_the_lowest_rank():
    assert kendall_tau([-INF, 3, 4, -INF], [0, 1, 2, 0]) == pytest.approx(1)
    assert spearman_rho([-INF, 3, 4, -INF], [-9, 1, 2, -9]) == pytest.approx(1)
    with_floor = partial_kendall_tau([-INF, 3, 4, -INF], [0, 1, 3, 2], [3, 1, 4, 2])
    assert with_floor == partial_kendall_tau([-9, 3, 4, -9], [0, 1, 3, 2], [3, 1, 4, 2])


@pytest.mark.parametrize("seed", range(5))
def test_tau_counts_pairs(seed: int):
    x, y, _ = drawn(seed)
    signs = [
        (torch.sign(x[i] - x[j]).item(), torch.sign(y[i] - y[j]).item())
        for i, j in itertools.combinations(range(len(x)), 2)
    ]
    total = sum(a * b for a, b in signs)
    untied = sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs)
    assert kendall_tau(x, y) == pytest.approx(total / math.sqrt(untied))


@pytest.mark.parametrize("seed", range(5))
def test_rho_is_scipys(seed: int):
    x, y, _ = drawn(seed)
    expected: Any = stats.spearmanr(x.numpy(), y.numpy())
    assert spearman_rho(x, y) == pytest.approx(expected.statistic)


def test_only_the_order_counts():
    x, y, z = drawn(0)
    for statistic in (kendall_tau, spearman_rho):
        assert statistic(x.exp(), y**3) == statistic(x, y)
    assert partial_kendall_tau(x.exp(), y**3, 2 * z) == partial_kendall_tau(x, y, z)
    assert partial_kendall_tau(-x, y, z) == pytest.approx(-partial_kendall_tau(x, y, z))


def test_what_only_knows_the_third_tells_nothing_more():
    rng = Generator().manual_seed(0)
    z, a, b = torch.randn(3, 2000, generator=rng)
    x, y = z + a, z + b  # alike through z alone
    assert kendall_tau(x, y) > 0.3
    # Kendall's form is not a test of independence. Here the taus are 2 / pi asin(1/2) = 1/3 and
    # twice 2 / pi asin(sqrt(1/2)) = 1/2: (1/3 - 1/4) / (3/4)
    assert partial_kendall_tau(x, y, z) == pytest.approx(1 / 9, abs=0.03)


def test_an_interval_covers_what_is_true():
    """tau of a bivariate normal of correlation r is 2 / pi asin(r)."""
    true, hits = 2 / math.pi * math.asin(0.6), 0
    for seed in range(30):
        a, b = torch.randn(2, 50, generator=Generator().manual_seed(seed))
        found = bootstrap(kendall_tau, a, 0.6 * a + 0.8 * b, resamples=100, seed=seed)
        assert found.low < found.value < found.high
        hits += found.low <= true <= found.high
    assert 25 <= hits <= 30  # 28.5 expected


def test_a_bootstrap_is_of_rows_and_of_its_seed():
    x, y, z = drawn(1)
    one = bootstrap(partial_kendall_tau, x, y, z, resamples=50)
    assert one.value == partial_kendall_tau(x, y, z)
    assert one.n == 40
    assert one == bootstrap(partial_kendall_tau, x, y, z, resamples=50)
    assert one != bootstrap(partial_kendall_tau, x, y, z, resamples=50, seed=1)
    # rows stay together: a perfect order stays perfect in every draw
    perfect = bootstrap(kendall_tau, z, 2 * z, resamples=20)
    assert (perfect.value, perfect.low, perfect.high) == pytest.approx((1, 1, 1))


def test_draws_without_a_value_are_drawn_again():
    # about a third of the draws miss the one row that differs
    found = bootstrap(kendall_tau, [0, 0, 0, 1], [1, 2, 3, 4], resamples=300)
    assert 0 < found.low <= found.value <= found.high <= 1
    assert isinstance(found, Correlation)
    assert found.n == 4


def test_columns_that_cannot_be_ranked_say_so():
    with pytest.raises(BadData, match=r"^a rank correlation needs at least 3 pairs \(got 2\)$"):
        kendall_tau([1, 2], [1, 2])
    with pytest.raises(BadData, match=r"columns of one length \(got {'x': 3, 'y': 4}\)"):
        spearman_rho([1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(BadData, match=r"^rank correlation: value 1 of y is NaN$"):
        kendall_tau([1, 2, 3], [1, math.nan, 3])
    with pytest.raises(BadData, match=r"all 3 values of given are 7; equal values have no order"):
        partial_kendall_tau([1, 2, 3], [2, 1, 3], [7, 7, 7])
    with pytest.raises(BadData, match=r"partial tau: 'given' orders as x does \(tau 1, 0.333\)"):
        partial_kendall_tau([1, 2, 3], [2, 1, 3], [1, 2, 3])
    with pytest.raises(BadData, match=r"all 3 values of x are -inf"):
        bootstrap(kendall_tau, [-INF] * 3, [1, 2, 3])
    with pytest.raises(BadData, match=r"resamples >= 1 \(got 0\)"):
        bootstrap(kendall_tau, [1, 2, 3], [1, 2, 3], resamples=0)


def test_a_statistic_that_never_has_a_value_ends():
    calls: list[int] = []

    def first_only(x: Tensor) -> float:
        calls.append(len(x))
        if len(calls) > 1:
            raise BadData("no value")
        return 0.0

    with pytest.raises(BadData, match="bootstrap of 3 rows: 20 draws in a row have no value"):
        bootstrap(first_only, [1, 2, 3])
    assert len(calls) == 21
