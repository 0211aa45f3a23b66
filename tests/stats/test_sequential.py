"""The e-values against exact rational arithmetic, quadrature, the design's reference values and their laws."""

from fractions import Fraction
from math import comb, exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom

from harness.stats.sequential import log_e_fail, log_e_pass

DECIDED = log(1 / 0.05)

counts = st.integers(0, 5000).flatmap(lambda n: st.tuples(st.floats(0, n), st.just(float(n))))


@pytest.mark.parametrize(("misses", "n"), [(0, 88), (1, 134), (2, 174), (5, 277), (10, 430), (20, 709), (50, 1471)])
def test_passes_first_at_the_reference_length(misses, n):
    assert log_e_pass(misses, n) >= DECIDED > log_e_pass(misses, n - 1)


@pytest.mark.parametrize(("misses", "n"), [(5, 20), (9, 50), (13, 100), (22, 200), (43, 500), (76, 1000)])
def test_fails_first_at_the_reference_misses(misses, n):
    assert log_e_fail(misses, n) >= DECIDED > log_e_fail(misses - 1, n)


def test_reference_values():
    assert exp(log_e_pass(3, 100)) == pytest.approx(1.0628, abs=5e-5)
    assert exp(log_e_fail(10, 100)) == pytest.approx(1.30, abs=5e-3)


def upper_tail(successes, n, p):
    """P(Binomial(n, p) >= successes), exactly."""
    return sum(comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(successes, n + 1))


def log_fraction(value):
    return log(value.numerator) - log(value.denominator)


@pytest.mark.parametrize("n", [1, 20, 137, 400])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.5, 0.9, 1.0])
def test_agrees_with_exact_arithmetic(n, share):
    t, q0, q1 = round(share * n), Fraction(1, 20), Fraction(1, 2)
    # For integers I_p(t+1, n-t+1) = P(Binomial(n+1, p) >= t+1) and B(t+1, n-t+1) = 1 / ((n+1) C(n, t)).
    at_q0 = q0**t * (1 - q0) ** (n - t) * (n + 1) * comb(n, t)
    below, above = upper_tail(t + 1, n + 1, q0), upper_tail(t + 1, n + 1, q1)
    assert log_e_pass(t, n) == pytest.approx(log_fraction(below / q0 / at_q0), rel=1e-9, abs=1e-9)
    assert log_e_fail(t, n) == pytest.approx(log_fraction((above - below) / (q1 - q0) / at_q0), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.049, 0.0501, 0.06, 0.3, 0.7, 1.0])
def test_agrees_with_quadrature_for_a_million_requests(share):
    n, q0, q1 = 1e6, 0.05, 0.5
    t = share * n

    def log_ratio(p):
        return t * np.log(p / q0) + (n - t) * np.log((1 - p) / (1 - q0))

    def expected(low, high):
        peak = min(max(share, low), high)
        steepness = abs(n * (share - peak)) / (peak * (1 - peak))
        curvature = n / (peak * (1 - peak))
        width = 40 / (steepness or curvature**0.5)
        a, b = max(low, peak - width), min(high, peak + width)
        area = quad(lambda p: exp(log_ratio(p) - log_ratio(peak)), a, b, points=[peak], epsabs=0, epsrel=1e-10)[0]
        return log_ratio(peak) + log(area / (high - low))

    assert log_e_pass(t, n) == pytest.approx(expected(1e-12, q0), rel=1e-9, abs=1e-5)
    assert log_e_fail(t, n) == pytest.approx(expected(q0, q1), rel=1e-9, abs=1e-5)


@given(counts, st.floats(0, 50))
def test_more_misses_never_speak_for_the_target(case, more):
    misses, n = case
    worse = min(misses + more, n)
    assert log_e_pass(worse, n) <= log_e_pass(misses, n) + 1e-7
    assert log_e_fail(worse, n) >= log_e_fail(misses, n) - 1e-7


@given(counts)
def test_evidence_is_finite_and_never_for_both(case):
    for_it, against_it = log_e_pass(*case), log_e_fail(*case)
    assert np.isfinite(for_it)
    assert np.isfinite(against_it)
    assert min(for_it, against_it) < 0.1


@given(st.integers(0, 200), st.floats(0.01, 0.2))
def test_is_an_e_value_at_the_boundary(n, q0):
    """Averaged over the counts of a coin with exactly q0, each is 1: what Ville's inequality needs."""
    t = np.arange(n + 1)
    log_weight = binom.logpmf(t, n, q0)
    assert np.exp(log_weight + log_e_pass(t, n, q0)).sum() == pytest.approx(1, rel=1e-6)
    assert np.exp(log_weight + log_e_fail(t, n, q0)).sum() == pytest.approx(1, rel=1e-6)


def test_broadcasts():
    assert log_e_pass([[0], [1]], [88, 134, 200]).shape == (2, 3)
    assert log_e_fail(5e5, 1e6).shape == ()


@pytest.mark.parametrize("q0", [0.0, 1.0, -0.1])
def test_refuses_an_impossible_share(q0):
    with pytest.raises(ValueError, match="q0"):
        log_e_pass(1, 10, q0)
    with pytest.raises(ValueError, match="q0"):
        log_e_fail(1, 10, q0)


def test_refuses_more_misses_than_trials():
    with pytest.raises(ValueError, match="got 11 of 10"):
        log_e_pass([1, 11], 10)
