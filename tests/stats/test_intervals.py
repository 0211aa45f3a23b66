import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.stats.intervals import (
    binomial_upper,
    mean_interval,
    pairs_to_decide,
    percentile,
    percentile_interval,
    ratio_interval,
)


@given(
    st.lists(st.floats(0.1, 1e4), min_size=1, max_size=80),
    st.integers(0, 20),
    st.sampled_from([50, 90, 95, 99]),
)
def test_percentile_is_the_value_at_its_rank(values, failures, q):
    x = [*values, *[math.inf] * failures]
    assert percentile(x, q) == sorted(x)[-(-q * len(x) // 100) - 1]


@pytest.mark.parametrize(("q", "n"), [(50, 30), (95, 200), (99, 1000)])
def test_interval_covers_the_true_percentile_of_a_skewed_law(q, n):
    rng = np.random.default_rng(5)
    truth = float(stats.lognorm.ppf(q / 100, 1))
    runs = 600
    covered = 0
    for _ in range(runs):
        found = percentile_interval(rng.lognormal(0, 1, n), q)
        covered += (found.low or 0) <= truth <= (found.high or math.inf)
    # Coverage is at least 95 %; by chance the estimate falls below 0.93 once in a hundred times.
    assert covered / runs > 0.93


def test_interval_widens_with_fewer_effective_values():
    x = np.random.default_rng(6).exponential(size=1000)
    full, deflated = percentile_interval(x, 95), percentile_interval(x, 95, n_effective=200)
    assert full.value == deflated.value
    assert deflated.low < full.low < full.high < deflated.high
    assert (deflated.n, deflated.n_effective) == (1000, 200)


def test_ends_beyond_the_sample_or_on_failures_are_none():
    x = np.arange(1.0, 21.0)
    short = percentile_interval(x, 95)
    assert short.value == 19.0
    assert short.low is not None
    assert short.high is None
    assert percentile_interval(np.arange(1.0, 4.0), 50).low is None
    failing = percentile_interval([*[1.0] * 80, *[math.inf] * 20], 95)
    assert (failing.value, failing.low, failing.high) == (None, None, None)
    border = percentile_interval([*[1.0] * 96, *[math.inf] * 4], 95)
    assert (border.value, border.low, border.high) == (1.0, 1.0, None)


def test_no_values_no_percentile():
    with pytest.raises(ValueError, match="at least one"):
        percentile_interval([], 95)


def test_mean_has_students_interval():
    x = [4.1, 5.0, 4.4, 4.7]
    found = mean_interval(x, confidence=0.9)
    expected = stats.t.interval(0.9, 3, loc=np.mean(x), scale=stats.sem(x))
    assert (found.low, found.high) == pytest.approx(expected)
    assert mean_interval([3.0]).model_dump(include={"value", "low", "high"}) == {
        "value": 3.0,
        "low": None,
        "high": None,
    }


def test_ratio_is_symmetric_and_covers():
    rng = np.random.default_rng(7)
    runs, covered = 600, 0
    for _ in range(runs):
        block = rng.lognormal(0, 0.3, 3)
        pairs = [(1.5 * b * e, b) for b, e in zip(block, rng.lognormal(0, 0.05, 3), strict=True)]
        found = ratio_interval(pairs)
        covered += found.low <= 1.5 <= found.high
    assert 0.93 < covered / runs < 0.97
    there, back = ratio_interval(pairs), ratio_interval([(b, a) for a, b in pairs])
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / back.high)


def test_one_pair_has_a_ratio_but_no_interval():
    found = ratio_interval([(3.0, 2.0)])
    assert found.value == pytest.approx(1.5)
    assert found.low is None
    assert found.high is None


def ratios(n, mean, spread):
    """``n`` pairs whose log ratios have exactly this mean and standard deviation."""
    z = np.arange(n) - (n - 1) / 2
    return [(float(np.exp(mean + spread * d)), 1.0) for d in z / z.std(ddof=1)]


@pytest.mark.parametrize(("gain", "spread"), [(2.0, 0.3), (1.1, 0.1), (0.5, 0.2), (1.02, 0.05)])
def test_so_many_pairs_decide_and_one_fewer_does_not(gain, spread):
    enough = pairs_to_decide(ratio_interval(ratios(2, np.log(gain), spread)), most=100)
    for n, decided in ((enough, True), (enough - 1, False)):
        found = ratio_interval(ratios(n, np.log(gain), spread))
        assert (found.low > 1 or found.high < 1) == decided


def test_no_number_of_pairs_is_named_that_may_not_be_asked_for():
    assert pairs_to_decide(ratio_interval(ratios(4, 0.001, 0.3)), most=100) is None
    assert pairs_to_decide(ratio_interval([(3.0, 2.0)]), most=100) is None


@pytest.mark.parametrize("pairs", [[(1.0, 0.0)], [(-1.0, 2.0)], []])
def test_refuses_ratios_that_do_not_exist(pairs):
    with pytest.raises(ValueError, match=r"> 0|at least one"):
        ratio_interval(pairs)


def test_upper_bound_of_a_proportion():
    assert binomial_upper(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert stats.binom.cdf(7, 200, binomial_upper(7, 200)) == pytest.approx(0.05)
    assert binomial_upper(10, 10) == 1.0
    with pytest.raises(ValueError, match="got 11 of 10"):
        binomial_upper(11, 10)
