"""What holds say of the capacity: the posterior against laws that any such belief must obey."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuners.belief import Allowed, Prior, believe, below_saturation, curve, overloaded, saturates_rps, shortfall
from tuners.results import Probe

ALLOWED = Allowed(target_s=1.0, wait_s=0.8)
PRIOR = Prior(10.0, 0.4)


def hold(rate, load, *, n=500, misses=None, se=0.1, **more):
    """A hold whose misses are what an exponential tail of that load gives, unless they are told."""
    if misses is None:
        misses = round(n * 0.05 ** (1 / load))
    return Probe(
        kind="hold", rate_rps=rate, n=n, misses=misses, load=load, passed=load <= 1, load_se=se, deflation=4.0, **more
    )


def test_without_holds_the_belief_is_the_prior():
    belief = believe([], PRIOR, ALLOWED)
    assert belief.quantile(0.5) == pytest.approx(10.0, rel=0.02)
    assert belief.spread == pytest.approx(0.4, rel=0.05)


def test_a_ramp_is_in_the_prior_and_not_counted_again():
    ramp = Probe(kind="ramp", rate_rps=3.0, n=100, misses=20, load=None, passed=False)
    assert believe([ramp], PRIOR, ALLOWED).quantile(0.5) == believe([], PRIOR, ALLOWED).quantile(0.5)


def test_a_pass_below_and_a_fail_above_close_in_on_the_capacity():
    belief = believe([hold(8.0, 0.6), hold(11.0, 2.0)], PRIOR, ALLOWED)
    assert 8.0 < belief.quantile(0.5) < 11.0
    assert belief.spread < 0.5 * PRIOR.spread


def test_holds_at_the_target_say_where_it_is():
    belief = believe([hold(7.0, 1.0, n=2000, se=0.05)] * 3, PRIOR, ALLOWED)
    assert belief.quantile(0.5) == pytest.approx(7.0, rel=0.05)


@given(st.floats(5.0, 15.0), st.floats(0.3, 2.5), st.floats(1.1, 2.0))
def test_slower_answers_at_the_same_rate_never_raise_the_capacity(rate, load, factor):
    faster = believe([hold(rate, load)], PRIOR, ALLOWED)
    slower = believe([hold(rate, load * factor)], PRIOR, ALLOWED)
    assert slower.quantile(0.5) <= faster.quantile(0.5) * 1.01


@given(st.floats(5.0, 15.0), st.integers(0, 100))
def test_more_misses_never_raise_the_capacity(rate, misses):
    fewer = believe([hold(rate, 0.9, misses=misses)], PRIOR, ALLOWED)
    more = believe([hold(rate, 0.9, misses=misses + 40)], PRIOR, ALLOWED)
    assert more.quantile(0.5) <= fewer.quantile(0.5) * 1.01


def test_the_order_of_holds_does_not_matter():
    holds = [hold(8.0, 0.6), hold(11.0, 2.0), hold(9.5, 1.1)]
    assert believe(holds, PRIOR, ALLOWED).quantile(0.5) == pytest.approx(
        believe(holds[::-1], PRIOR, ALLOWED).quantile(0.5)
    )


def test_one_contradicting_hold_is_outvoted():
    """A pass above several fails was luck."""
    fails = [hold(9.0, 1.6, n=800), hold(9.5, 1.8, n=800), hold(10.0, 2.2, n=800)]
    assert believe([*fails, hold(10.5, 0.9, n=100, se=0.4)], PRIOR, ALLOWED).quantile(0.5) < 9.5


def test_a_short_hold_from_empty_convinces_less_of_room_where_long_queues_are_allowed():
    long_queue, short_queue = Allowed(20.0, 19.0), Allowed(0.2, 0.1)
    probe = hold(10.0, 0.8, n=60, misses=0)
    assert believe([probe], PRIOR, long_queue).quantile(0.1) < believe([probe], PRIOR, short_queue).quantile(0.1)


def test_a_saturated_engine_says_where_the_capacity_ends():
    allowed = Allowed(20.0, 19.0)
    told = believe([hold(14.0, 2.0, limit_rps=9.0, limit_n=800)], PRIOR, allowed)
    untold = believe([hold(14.0, 2.0)], PRIOR, allowed)
    assert told.spread < 0.06 < 0.7 * untold.spread
    assert told.quantile(0.5) == pytest.approx(below_saturation(9.0, 19.0), rel=0.05)


def test_a_stricter_percentile_counts_its_own_misses():
    """20 misses of 1000 are fine for a P95 and too many for a P99."""
    p95 = believe([hold(10.0, 1.0, n=1000, misses=20, se=1.0)], PRIOR, ALLOWED)
    p99 = believe([hold(10.0, 1.0, n=1000, misses=20, se=1.0, tolerated=0.01)], PRIOR, ALLOWED)
    assert p99.quantile(0.5) < p95.quantile(0.5)


def test_the_curve_reaches_the_target_at_the_capacity_with_its_steepness():
    c, s, step = np.array(5.0), np.array(4.0), 1e-5
    assert curve(5.0, c, s) == pytest.approx(0.0, abs=1e-12)
    slope = (curve(5.0 * (1 + step), c, s) - curve(5.0 * (1 - step), c, s)) / (2 * step)
    assert slope == pytest.approx(4.0, rel=1e-3)


def test_the_shortfall_grows_with_the_queue_and_vanishes_with_length():
    waiting = np.array([0.0, 1.0, 10.0, 100.0])
    assert shortfall(waiting, 500)[0] == 0
    assert (np.diff(shortfall(waiting, 500)) > 0).all()
    assert float(shortfall(np.array(10.0), 10**7)) < 0.01


@pytest.mark.parametrize("wait_s", [0.0, 0.5, 8.0])
def test_saturation_is_found_from_a_fluid_ramp(wait_s):
    """A fluid served at rate m, fed with an exponential ramp: the wait is the backlog / m."""
    m, growth, t, backlog = 6.0, 0.1, 0.0, 0.0
    while True:
        rate = 2.0 * math.exp(growth * t)
        backlog = max(0.0, backlog + (rate - m) * 1e-3)
        if rate > m and backlog / m >= wait_s:
            break
        t += 1e-3
    assert saturates_rps(rate, growth, wait_s) == pytest.approx(m, rel=0.02)


def test_an_overload_shows_at_least_what_a_fluid_queue_does():
    """At 20/s an engine that serves 10/s is 50 s behind after 100 s: the 95th percentile has waited 47.5 s."""
    allowed = Allowed(target_s=12.0, wait_s=9.0)
    shown = overloaded(20.0, 2000, np.array([10.0, 20.0, 30.0]), 0.95, allowed)
    assert np.exp(shown.log_load[0]) == pytest.approx((3.0 + 47.5) / 12.0)
    assert shown.missed[0] == pytest.approx(1 - 18 / 100), "who came after 18 s waited more than 9 s"
    assert np.isneginf(shown.log_load[1:]).all()
    assert not shown.missed[1:].any()
    assert np.isneginf(overloaded(20.0, 2000, np.array([10.0]), 0.95, Allowed(0.0, 0.0)).log_load).all()


def test_long_holds_that_pass_outweigh_a_prior_far_below():
    """Slow answers: the queue of a hold is never settled, but one far beyond saturation would have shown it."""
    allowed = Allowed(target_s=12.0, wait_s=9.0)
    passed = [hold(rate, load, n=2300, misses=misses) for rate, load, misses in ((19.3, 0.7, 20), (20.1, 0.96, 90))]
    found = believe(passed, Prior(13.7, 0.15), allowed)
    assert found.quantile(0.5) > 18.5
    assert found.quantile(0.08) > 17, "the careful end, which is what is told: 13 if a pass were luck"
