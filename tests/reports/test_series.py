import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.series import EFFECT_TRIALS, distribution, knob_effects, pareto_front, rolling_quantiles


def test_the_band_holds_the_true_curve_as_often_as_it_says():
    rng = np.random.default_rng(5)
    misses = 0
    for _ in range(300):
        curve = distribution(rng.exponential(size=200), n_effective=200)
        truth = 1 - np.exp(-curve.at_ms)
        misses += bool(np.any(truth < curve.low) or np.any(truth > curve.high))
    assert misses <= 25  # 15 expected at 95 %; more than 25 has probability < 0.01


def test_correlated_requests_widen_the_band():
    values = np.arange(1.0, 101.0)
    wide, narrow = distribution(values, 10), distribution(values, 100)
    assert (wide.high - wide.low)[50] > (narrow.high - narrow.low)[50]


def test_failed_requests_keep_the_curve_below_one_and_meaningless_ones_are_left_out():
    curve = distribution(np.array([1.0, 2.0, 3.0, math.inf, math.nan]), 4)
    assert (curve.n, curve.failed) == (4, 1)
    assert curve.share[-1] == pytest.approx(0.75)


def test_a_run_where_everything_failed_has_an_empty_curve():
    curve = distribution(np.array([math.inf, math.inf]), 2)
    assert (curve.n, curve.failed, len(curve.at_ms)) == (2, 2, 0)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=30))
def test_the_front_is_what_nothing_beats(points):
    front = [points[i] for i in pareto_front(points)]
    beaten = [p for p in points if any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)]

    assert not set(front) & set(beaten)
    assert set(front) == set(points) - set(beaten)


def test_a_knob_that_decides_everything_explains_everything():
    tried = [({"a": i % 2, "b": i // 4}, float(i % 2)) for i in range(EFFECT_TRIALS)]
    effects = knob_effects(tried, {"a": [0, 1], "b": [0, 1], "fixed": [7]})

    assert [e.knob for e in effects] == ["a", "b"]
    assert effects[0].share == pytest.approx(1)
    assert effects[1].share == pytest.approx(0)


def test_too_few_trials_say_nothing_of_knobs():
    tried = [({"a": i % 2}, float(i)) for i in range(EFFECT_TRIALS - 1)]
    assert knob_effects(tried, {"a": [0, 1]}) == []


def test_a_knob_that_is_not_always_used_has_a_value_for_that():
    tried = [({"a": 1} if i % 2 else {}, float(i)) for i in range(EFFECT_TRIALS)]
    assert knob_effects(tried, {"a": [0, 1]})[0].values == (1, None)


def test_rolling_quantiles_count_failures_as_the_slowest():
    at = np.arange(80.0)
    values = np.where(at % 10 == 0, math.inf, 5.0)
    _, (median, tail) = rolling_quantiles(at, values, (0.5, 0.95))
    assert set(median) == {5.0}
    assert np.isinf(tail).any()
