"""Laws of the schedule: what a seed fixes, what a rate changes, and that the draws have the shapes asked for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scenarios.traffic import Lengths, Workload
from scenarios.workload import draw_lengths, hold, ramp, sequence

seeds = st.integers(0, 2**32 - 1)
rates = st.floats(0.5, 50)
arrivals = st.one_of(
    st.just({"process": "constant"}),
    st.just({"process": "poisson"}),
    st.builds(lambda cv: {"process": "gamma", "gap_cv": cv}, st.floats(0.2, 4)),
)
lengths = st.one_of(
    st.builds(lambda m: {"distribution": "fixed", "mean": float(m)}, st.integers(1, 30)),
    st.builds(lambda a, b: {"distribution": "uniform", "min": a, "max": a + b}, st.integers(1, 9), st.integers(0, 30)),
    st.builds(
        lambda d, m, cv: {"distribution": d, "mean": m, "cv": cv},
        st.sampled_from(["normal", "lognormal"]),
        st.floats(1, 30),
        st.floats(0.1, 2),
    ),
)
workloads = st.builds(
    lambda a, p, o, shared: Workload.model_validate(
        {"arrivals": a, "prompt_tokens": p, "output_tokens": o, "shared_prefix_tokens": shared}
    ),
    arrivals,
    lengths,
    lengths,
    st.integers(0, 5),
)


@given(workloads, rates, seeds)
@settings(max_examples=40)
def test_same_seed_same_schedule(words, workload, rate_rps, seed):
    first, second = (hold(workload, words, rate_rps=rate_rps, duration_s=3, seed=seed) for _ in range(2))
    assert first == second
    assert first.digest == second.digest


@given(workloads, rates, seeds, st.tuples(st.floats(0.5, 4), st.floats(4, 12)))
@settings(max_examples=40)
def test_a_longer_hold_begins_with_the_shorter_one(words, workload, rate_rps, seed, durations_s):
    short_s, long_s = durations_s
    short = hold(workload, words, rate_rps=rate_rps, duration_s=short_s, seed=seed).requests
    long = hold(workload, words, rate_rps=rate_rps, duration_s=long_s, seed=seed).requests
    assert long[: len(short)] == short
    assert all(r.t_int_ns >= round(short_s * 1e9) for r in long[len(short) :])


@given(workloads, rates, rates, seeds)
@settings(max_examples=40)
def test_at_another_rate_the_same_requests_come_at_scaled_times(words, workload, rate_a, rate_b, seed):
    a = hold(workload, words, rate_rps=rate_a, duration_s=20 / rate_a, seed=seed).requests
    b = hold(workload, words, rate_rps=rate_b, duration_s=25 / rate_b, seed=seed).requests
    assert len(a) <= len(b)
    for one, other in zip(a, b, strict=False):
        assert (one.prompt, one.prompt_tokens, one.output_tokens) == (
            other.prompt,
            other.prompt_tokens,
            other.output_tokens,
        )
        assert one.t_int_ns * rate_a == pytest.approx(other.t_int_ns * rate_b, abs=rate_a + rate_b)


@given(workloads, seeds, st.floats(0.5, 5), st.floats(0.2, 8))
@settings(max_examples=40)
def test_a_ramp_is_the_unit_rate_process_on_a_stretched_clock(words, workload, seed, start_rps, factor):
    end_rps, duration_s = start_rps * factor, 5.0
    ramped = ramp(workload, words, start_rps=start_rps, end_rps=end_rps, duration_s=duration_s, seed=seed).requests
    unit = hold(workload, words, rate_rps=1.0, duration_s=100.0, seed=seed).requests
    growth = math.log(end_rps / start_rps) / duration_s
    for r, u in zip(ramped, unit, strict=False):
        t_s = r.t_int_ns / 1e9
        assert t_s <= duration_s
        integrated_rate = start_rps * (math.expm1(growth * t_s) / growth if growth else t_s)
        assert integrated_rate == pytest.approx(u.t_int_ns / 1e9, abs=1e-6)
        assert r.prompt == u.prompt


@given(workloads, seeds)
@settings(max_examples=40)
def test_a_sequence_has_the_requests_of_a_hold_without_times(words, workload, seed):
    held = hold(workload, words, rate_rps=10, duration_s=2, seed=seed).requests
    if held:
        listed = sequence(workload, words, n=len(held), seed=seed)
        assert [r.prompt for r in listed.requests] == [r.prompt for r in held]
        assert {r.t_int_ns for r in listed.requests} == {0}


@given(workloads, seeds)
@settings(max_examples=40)
def test_every_request_is_what_it_says_and_fits(words, workload, seed):
    for r in hold(workload, words, rate_rps=10, duration_s=3, seed=seed).requests:
        assert r.prompt.count(" ") == len(r.prompt.split()) == r.prompt_tokens
        assert r.prompt_tokens + r.output_tokens <= workload.longest_tokens
        assert min(r.prompt_tokens - workload.shared_prefix_tokens, r.output_tokens) >= 1


def test_arrivals_lengths_and_content_have_seeds_of_their_own(words, workload_of):
    spread = {"distribution": "uniform", "min": 1, "max": 9}
    plain = hold(workload_of("poisson", prompt_tokens=spread), words, rate_rps=9, duration_s=9, seed=4).requests
    steady = hold(workload_of("constant", prompt_tokens=spread), words, rate_rps=9, duration_s=9, seed=4).requests
    varied = workload_of("poisson", prompt_tokens=spread, output_tokens=spread)
    outputs = hold(varied, words, rate_rps=9, duration_s=9, seed=4).requests
    assert [r.prompt for r in plain[:40]] == [r.prompt for r in steady[:40]]
    assert [(r.t_int_ns, r.prompt) for r in plain] == [(r.t_int_ns, r.prompt) for r in outputs]
    lengths_in, lengths_out = zip(*((r.prompt_tokens, r.output_tokens) for r in outputs), strict=True)
    assert lengths_in != lengths_out


def test_prompts_are_distinct_but_for_the_shared_prefix(words, workload_of):
    workload = workload_of(prompt_tokens={"distribution": "fixed", "mean": 8}, shared_prefix_tokens=6)
    prompts = [r.prompt.split() for s in (1, 2) for r in sequence(workload, words, n=300, seed=s).requests]
    assert {tuple(p[:6]) for p in prompts} == {tuple(prompts[0][:6])}
    assert len({tuple(p[6:]) for p in prompts}) == 600


def test_the_digest_tells_schedules_apart(words, workload_of):
    workload = workload_of()
    base = {"rate_rps": 5.0, "duration_s": 4.0, "seed": 1}
    variants = [base, base | {"seed": 2}, base | {"rate_rps": 5.1}, base | {"duration_s": 8.0}]
    assert len({hold(workload, words, **v).digest for v in variants}) == 4


def test_constant_arrivals_are_evenly_spaced_and_as_many_as_asked(words, workload_of):
    requests = hold(workload_of("constant"), words, rate_rps=10, duration_s=2, seed=1).requests
    assert [r.t_int_ns for r in requests] == [50_000_000 + 100_000_000 * i for i in range(20)]


def gaps_of(workload, words, seed, n):
    """``n`` gaps in seconds at rate 1."""
    times = [r.t_int_ns / 1e9 for r in hold(workload, words, rate_rps=1, duration_s=4.0 * n, seed=seed).requests]
    assert len(times) > n
    return np.diff([0.0, *times])[:n]


@pytest.mark.parametrize("process", [{"process": "poisson"}, {"process": "gamma", "gap_cv": 1.0}])
def test_poisson_gaps_are_exponential(words, workload_of, process):
    """Kolmogorov-Smirnov at 5 %, 200 seeds: rejections stay below the binomial 99.9 % bound."""
    workload = workload_of(**process)
    rejected = sum(stats.kstest(gaps_of(workload, words, seed, 60), "expon").pvalue < 0.05 for seed in range(200))
    assert rejected <= stats.binom.ppf(0.999, 200, 0.05)


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gamma_gaps_have_mean_one_and_the_cv_asked_for(words, workload_of, cv):
    gaps = gaps_of(workload_of("gamma", gap_cv=cv), words, 3, 6_000)
    assert gaps.mean() == pytest.approx(1, abs=4 * cv / math.sqrt(len(gaps)))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def test_a_ramp_brings_the_integrated_rate_in_each_quarter(words, workload_of):
    """Poisson counts of 150 seeds, each quarter within four standard deviations of its integral."""
    workload, start, end, duration_s, runs = workload_of(), 2.0, 20.0, 8.0, 150
    times = [
        r.t_int_ns / 1e9
        for seed in range(runs)
        for r in ramp(workload, words, start_rps=start, end_rps=end, duration_s=duration_s, seed=seed).requests
    ]
    counts, edges = np.histogram(times, bins=4, range=(0, duration_s))
    growth = math.log(end / start) / duration_s
    expected = runs * np.diff(start * np.exp(growth * edges) / growth)
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected))


@pytest.mark.parametrize("distribution", ["normal", "lognormal"])
@pytest.mark.parametrize("cv", [0.2, 0.5])
def test_lengths_have_the_mean_and_cv_asked_for(distribution, cv):
    drawn = draw_lengths(Lengths(distribution=distribution, mean=400, cv=cv), np.random.default_rng(5), 20_000)
    assert np.mean(drawn) == pytest.approx(400, rel=0.02)
    assert np.std(drawn) / np.mean(drawn) == pytest.approx(cv, rel=0.04)


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0])
def test_lognormal_lengths_have_the_logarithms_of_that_mean_and_cv(cv):
    lengths = Lengths(distribution="lognormal", mean=10_000, cv=cv, max=10**8)
    logs = np.log(draw_lengths(lengths, np.random.default_rng(6), 20_000))
    sigma = math.sqrt(math.log(1 + cv**2))
    assert logs.std() == pytest.approx(sigma, rel=0.02)
    assert logs.mean() == pytest.approx(math.log(10_000) - sigma**2 / 2, abs=4 * sigma / math.sqrt(20_000))


def test_lengths_are_clipped_on_both_sides():
    drawn = draw_lengths(
        Lengths(distribution="lognormal", mean=20, cv=1, min=10, max=40), np.random.default_rng(1), 999
    )
    assert (min(drawn), max(drawn)) == (10, 40)


def test_uniform_lengths_reach_both_ends_evenly():
    drawn = draw_lengths(Lengths(distribution="uniform", min=3, max=6), np.random.default_rng(2), 4_000)
    assert stats.chisquare([drawn.count(n) for n in (3, 4, 5, 6)]).pvalue > 1e-3


@pytest.mark.parametrize("rate_rps", [0, -1, math.inf, math.nan])
def test_impossible_rates_are_refused(words, workload_of, rate_rps):
    with pytest.raises(ValueError, match=r"rate_rps must be > 0 and finite"):
        hold(workload_of(), words, rate_rps=rate_rps, duration_s=1, seed=1)
