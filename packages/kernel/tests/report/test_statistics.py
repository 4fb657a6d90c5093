import math

import pytest
from scipy import stats

from stillhouse.report.statistics import paired, summarize, unpaired

OURS, THEIRS = [0.91, 0.88, 0.93, 0.90], [0.87, 0.885, 0.88, 0.86]


def test_mean_spread_and_interval_by_hand() -> None:
    summary = summarize([1.0, 2.0, 3.0])
    # t with 2 degrees of freedom at 97.5 % is 4.302653, the standard error is 1 / sqrt(3)
    assert (summary.mean, summary.sd) == (2.0, 1.0)
    assert summary.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert summary.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_one_seed_has_no_spread_and_no_interval() -> None:
    summary, gap = summarize([0.8]), paired([0.9], [0.8])
    assert (summary.mean, summary.sd, summary.low, summary.high) == (0.8, None, None, None)
    assert (gap.n, gap.low, gap.high) == (1, None, None)
    assert not gap.beyond_noise()


def test_paired_difference_by_hand() -> None:
    gap = paired([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])  # differences 1, 2, 3
    assert (gap.how, gap.n, gap.mean) == ("paired", 3, 2.0)
    assert gap.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert not gap.beyond_noise()
    assert paired([3.0, 3.1, 3.2], [1.0, 1.0, 1.0]).beyond_noise()


def test_pairing_takes_out_what_the_seeds_share() -> None:
    seeds = [0.0, 10.0, 20.0]
    together = paired([s + 1 + e for s, e in zip(seeds, (0.1, 0, -0.1), strict=True)], seeds)
    apart = unpaired([s + 1 for s in seeds], seeds)
    assert together.beyond_noise()
    assert not apart.beyond_noise()


def test_intervals_agree_with_scipy() -> None:
    one, two = paired(OURS, THEIRS), unpaired(OURS, THEIRS)
    expected = stats.ttest_rel(OURS, THEIRS).confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    expected = stats.ttest_ind(OURS, THEIRS, equal_var=False).confidence_interval(0.95)
    assert (two.low, two.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (two.how, two.n) == ("welch", 4)


def test_a_single_value_against_several_is_a_difference_of_means() -> None:
    gap = unpaired([0.95], THEIRS)
    assert (gap.how, gap.n, gap.low) == ("means", 1, None)
    assert gap.mean == pytest.approx(0.95 - sum(THEIRS) / 4)


def test_rows_of_different_seeds_are_not_paired() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired([1.0, 2.0], [1.0])
