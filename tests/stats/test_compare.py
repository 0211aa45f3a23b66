"""How often two measurements of one queue are called different, and whether a slower one is found: seeded.

The worst case is two independent schedules on a busy queue. Nominal error: ALPHA.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.stats.compare import batches, holm, percentile_change, rate_change, share_change
from harness.stats.intervals import binomial_upper

ALPHA = 0.05
WARMUP = 1500
PAIRS = 300


@pytest.fixture(scope="module")
def pairs(queues):
    """Latencies of two independent measurements of one queue, each of shape (PAIRS, n)."""

    def make(utilisation, servers, n):
        q = queues(utilisation=utilisation, servers=servers, n=WARMUP + n, runs=2 * PAIRS, seed=17)
        return q.latency[:PAIRS, WARMUP:], q.latency[PAIRS:, WARMUP:]

    return make


CELLS = [(u, servers, n) for u in (0.5, 0.8, 0.9) for servers in (1, 8) for n in (600, 2000)]


def significant(p):
    return p is not None and p < ALPHA


@pytest.mark.parametrize(("utilisation", "servers", "n"), CELLS)
def test_false_alarms_are_rare(pairs, utilisation, servers, n, record_property):
    first, second = pairs(utilisation, servers, n)
    target = np.percentile(first, 95)
    alarms = {"p95": 0, "misses": 0}
    for a, b in zip(first, second, strict=True):
        alarms["p95"] += significant(percentile_change(a, b, 95, interval=False).p_value)
        alarms["misses"] += significant(share_change(a > target, b > target, batches(a, b, rare=0.05)).p_value)
    for name, count in alarms.items():
        record_property(name, count / PAIRS)
        # With 300 pairs the exact bound lies three points above the observed share.
        assert binomial_upper(count, PAIRS) <= 2 * ALPHA, (name, count)


def test_with_independent_requests_assumed_most_pairs_would_differ(pairs):
    """The guard: what the usual test of two proportions says of the same pairs."""
    first, second = pairs(0.9, 1, 2000)
    target = np.percentile(first, 95)
    a, b = (first > target).mean(axis=1), (second > target).mean(axis=1)
    spread = np.sqrt((a + b) * (1 - (a + b) / 2) / 2000)
    assert (np.abs(a - b) / np.maximum(spread, 1e-9) > 1.96).mean() > 0.5


def test_a_busy_queue_seen_briefly_is_too_short_to_tell(pairs):
    first, second = pairs(0.9, 1, 600)
    told = [percentile_change(a, b, 95).p_value is not None for a, b in zip(first, second, strict=True)]
    assert np.mean(told) < 0.5


def test_the_same_luck_falls_out_of_the_difference():
    """Two runs of one schedule: the slower one is found although the schedule's own swings are far larger."""
    rng = np.random.default_rng(4)
    swings = np.exp(0.5 * np.sin(np.arange(2000) / 50))
    found, apart = 0, 0
    for _ in range(50):
        a, b, c = (swings * rng.lognormal(0, 0.1, 2000) for _ in range(3))
        found += significant(percentile_change(a, 1.05 * b, 95).p_value)
        apart += significant(percentile_change(a, 1.05 * np.roll(c, 700), 95).p_value)
    assert found > 40 > apart


def test_the_interval_holds_the_ratio_and_agrees_with_the_p_value():
    rng = np.random.default_rng(5)
    held, agree = 0, 0
    for _ in range(300):
        change = percentile_change(rng.lognormal(0, 0.5, 1000), 1.2 * rng.lognormal(0, 0.5, 1000), 95)
        assert change.low <= change.change <= change.high
        held += change.low <= 1.2 <= change.high
        agree += (change.low <= 1 <= change.high) == (change.p_value >= ALPHA)
    assert binomial_upper(300 - held, 300) <= 2 * ALPHA
    assert agree == 300


def test_failures_are_very_late_answers():
    rng = np.random.default_rng(6)
    fine = rng.lognormal(0, 0.3, 1000)
    failing = np.where(rng.random(1000) < 0.2, np.inf, rng.lognormal(0, 0.3, 1000))
    change = percentile_change(fine, failing, 95)
    assert (change.second, change.change) == (math.inf, None)
    assert change.p_value < 0.001
    assert not significant(percentile_change(failing, rng.permutation(failing), 95).p_value)


def test_rates_are_compared_part_by_part():
    rng = np.random.default_rng(7)
    a, b = np.sort(rng.uniform(5, 25, 2000)), np.sort(rng.uniform(0, 20, 1000))
    change = rate_change(a, b, [(5, 25), (0, 20)], 10)
    assert (change.first, change.second, change.change) == pytest.approx((100, 50, -50))
    assert change.low < -50 < change.high
    assert change.p_value < 0.001


def test_nothing_missed_on_either_side_is_no_difference():
    change = share_change(np.zeros(500), np.zeros(500), 10)
    assert (change.change, change.p_value) == (0, 1)
    assert share_change(np.zeros(500), np.ones(500), 10).p_value == 0


def test_too_short_says_so():
    change = percentile_change(np.arange(1.0, 50), np.arange(1.0, 50), 95)
    assert (change.batches, change.p_value, change.low, change.high) == (0, None, None, None)
    assert change.change == 1


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_holm_never_makes_a_p_value_smaller_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    pairs = [(p, a) for p, a in zip(p_values, adjusted, strict=True) if p is not None]
    assert [a is None for a in adjusted] == [p is None for p in p_values]
    assert all(p <= a <= 1 for p, a in pairs)
    assert [a for _, a in sorted(pairs)] == sorted(a for _, a in pairs)
    if pairs:
        assert min(pairs)[1] == min(1, min(pairs)[0] * len(pairs))
