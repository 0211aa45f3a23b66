"""The verdict's rules. How often it is wrong on queues: tests/stats/test_calibration.py."""

import math
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.judge import FIRST_LOOK, OVERWHELMING_N, allowed_misses, evidence, judge, live_hopeless, looks
from harness.measurement import Audit, Measurement, SloCount, Telemetry
from harness.observe import Observed, Target
from harness.stats.intervals import percentile

ALPHA = 0.05
TTFT = Target("ttft", 95, 100.0)
GOOD = 50.0


def observed(*, void=(), saturated=False, **series):
    """A run with a P95 target of 100 ms on each metric."""
    arrays = {metric: np.asarray(values, dtype=float) for metric, values in series.items()}
    measurement = Measurement(
        kind="hold",
        rate_rps=5.0,
        seed=1,
        workload_digest="0" * 64,
        started_at="2026-01-01T00:00:00Z",
        window_s=(0.0, 10.0),
        steady=not saturated,
        saturated=saturated,
        completions_per_arrival=0.8 if saturated else 1.0,
        n_sent=100,
        n_judged=100,
        errors={},
        metrics={},
        throughput_rps=1.0,
        throughput_output_tps=1.0,
        goodput_rps=1.0,
        slo=tuple(
            SloCount(
                metric=metric,
                percentile=95,
                target_ms=100.0,
                misses=int((values > 100).sum()),
                n=values.size,
                autocorrelation_time=1.0,
                deflation=2.0,
            )
            for metric, values in arrays.items()
        ),
        audit=Audit(
            offered_rps=5.0,
            achieved_rps=5.0,
            send_lateness_p50_ms=0.1,
            send_lateness_p99_ms=0.1,
            send_lateness_limit_ms=1.0,
            loop_lag_p99_ms=0.1,
            generator_cpu_share=0.1,
            connections_opened=1,
            stale_connections_replaced=0,
            steal_share=0.0,
            void_reasons=void,
        ),
        telemetry=Telemetry(),
        records_path="requests.parquet",
        command="autotune bench",
        percentile_method="inverted_cdf",
    )
    return Observed(measurement, arrays, np.zeros(0, dtype=bool), np.zeros(0))


def with_misses(n, every):
    """``every``-th request fails, the others are equal: no correlation, tau is 1."""
    latency = np.full(n, GOOD)
    latency[every - 1 :: every] = math.inf
    return latency


def test_passes_after_three_times_the_independent_number():
    """88 clean independent requests are enough; without correlation the deflation is 3."""
    clean = with_misses(400, 1000)
    verdict = judge(observed(ttft=clean), ALPHA)
    assert verdict.outcome == "PASS"
    assert verdict.slo[0].n == next(size for size in looks(400) if size >= 264)
    assert verdict.slo[0].requests_to_decide is None
    assert judge(observed(ttft=clean[:261]), ALPHA).outcome == "UNDECIDED"


def test_fails_with_the_evidence_in_words():
    verdict = judge(observed(ttft=with_misses(400, 3)), ALPHA)
    assert verdict.outcome == "FAIL"
    assert verdict.reasons == ("ttft P95 <= 100 ms is missed: 13 of 40 requests above it, worth 32 independent ones",)


def test_a_void_run_is_nothing_else():
    verdict = judge(observed(void=("requests were sent late",), saturated=True, ttft=with_misses(400, 3)), ALPHA)
    assert verdict.outcome == "VOID"
    assert verdict.reasons == ("requests were sent late",)
    assert verdict.slo == ()


def test_saturation_fails_whatever_the_latencies():
    verdict = judge(observed(saturated=True, ttft=with_misses(400, 1000)), ALPHA)
    assert verdict.outcome == "FAIL"
    assert verdict.reasons == ("saturated: completions were 80% of the arrivals",)


def test_pass_needs_every_target():
    clean, short = with_misses(400, 1000), with_misses(100, 1000)
    verdict = judge(observed(ttft=clean, tpot=short), ALPHA)
    assert verdict.outcome == "UNDECIDED"
    assert [v.outcome for v in verdict.slo] == ["PASS", "UNDECIDED"]
    assert judge(observed(ttft=clean, tpot=clean), ALPHA).outcome == "PASS"


def test_any_target_fails_but_at_its_share_of_alpha():
    clean = with_misses(400, 1000)
    borderline = np.array([*[GOOD] * 34, *[math.inf] * 8])  # 6.4 of 33.6 after deflation
    found = evidence(borderline, TTFT, ALPHA)
    assert math.log(1 / ALPHA) <= found.log_e_fail < math.log(2 / ALPHA)
    assert judge(observed(ttft=borderline), ALPHA).outcome == "FAIL"
    assert judge(observed(ttft=borderline, tpot=clean), ALPHA).outcome == "UNDECIDED"
    assert judge(observed(ttft=with_misses(400, 3), tpot=clean), ALPHA).outcome == "FAIL"


def test_the_first_look_that_decides_stands():
    late_trouble = np.concatenate([with_misses(300, 1000), with_misses(600, 2)])
    found = evidence(late_trouble, TTFT, ALPHA)
    assert found.outcome == "PASS"
    assert found.n < 300
    assert found.trace[-1].log_e_fail > math.log(1 / ALPHA)


def test_looks_use_nothing_that_came_later():
    latency = 50 * np.exp(np.random.default_rng(1).normal(0, 0.1, 700).cumsum())
    whole, part = evidence(latency, TTFT, ALPHA), evidence(latency[:400], TTFT, ALPHA)
    shared = len(looks(400)) - 1
    assert shared > 10
    assert whole.trace[:shared] == part.trace[:shared]
    assert part.trace[-1].n == 400


def test_consecutive_runs_are_judged_together():
    first, second = with_misses(150, 1000), with_misses(150, 1000)
    alone = judge(observed(ttft=second), ALPHA)
    together = judge(observed(ttft=second), ALPHA, earlier=[observed(ttft=first)])
    assert (alone.outcome, together.outcome) == ("UNDECIDED", "PASS")
    assert together.slo[0] == evidence(np.concatenate([first, second]), TTFT, ALPHA)
    assert judge(observed(ttft=second), ALPHA, earlier=[observed(void=("late",), ttft=first)]).outcome == "VOID"


def test_correlated_latencies_are_worth_less():
    slow_wave = 50 + 40 * np.sin(np.arange(400) / 40)
    found = evidence(slow_wave, TTFT, ALPHA)
    assert found.outcome == "UNDECIDED"
    assert found.deflation > 20
    assert evidence(np.random.default_rng(2).permutation(slow_wave), TTFT, ALPHA).outcome == "PASS"


def test_says_how_much_longer_it_would_take():
    found = evidence(with_misses(300, 100), TTFT, ALPHA)
    assert found.outcome == "UNDECIDED"
    assert 0 < found.requests_to_decide < 1500
    longer = evidence(with_misses(round(1.2 * (300 + found.requests_to_decide)), 100), TTFT, ALPHA)
    assert longer.outcome == "PASS"
    assert longer.n > 300 + found.requests_to_decide / 2
    assert evidence(with_misses(200, 20), TTFT, ALPHA).requests_to_decide is None
    assert "too close to call" in judge(observed(ttft=with_misses(200, 20)), ALPHA).reasons[0]


def test_nothing_seen_is_undecided():
    verdict = judge(observed(ttft=[]), ALPHA)
    assert verdict.outcome == "UNDECIDED"
    assert (verdict.slo[0].n, verdict.slo[0].trace) == (0, ())
    assert judge(observed(), ALPHA).reasons == ("there is no target to judge",)


latencies = st.lists(st.one_of(st.floats(1, 300), st.just(math.inf)), min_size=1, max_size=300)


@given(latencies, st.floats(1.0, 5.0))
@settings(max_examples=60)
def test_tightening_a_target_never_turns_fail_into_pass(latency, factor):
    loose = evidence(latency, TTFT, ALPHA)
    tight = evidence(latency, Target("ttft", 95, 100.0 / factor), ALPHA)
    assert not (loose.outcome == "FAIL" and tight.outcome == "PASS")
    assert not (loose.outcome == "UNDECIDED" and tight.outcome == "PASS")


@given(st.integers(0, 5000))
def test_looks_grow_geometrically_and_end_with_everything(n):
    sizes = looks(n)
    assert sizes == sorted(set(sizes))
    assert sizes[-1:] == ([n] if n else [])
    assert all(size >= min(FIRST_LOOK, n) for size in sizes)
    assert all(b <= a * 1.15 + 1 for a, b in pairwise(sizes))


@given(latencies, st.sampled_from([90.0, 95.0, 99.0, 99.9]))
def test_more_misses_than_allowed_are_a_percentile_above_the_target(latency, q):
    misses = sum(value > 100.0 for value in latency)
    assert (misses > allowed_misses(len(latency), q)) == (percentile(latency, q) > 100.0)


def test_one_bad_stretch_is_one_observation():
    """A queue that happens to start in a busy period: every request late, and no two of them independent."""
    stretch = 400 - np.abs(np.arange(120) - 60.0)
    found = evidence(stretch, TTFT, ALPHA)
    assert found.misses == found.n == 120
    assert found.outcome == "UNDECIDED"
    assert evidence(np.random.default_rng(3).permutation(stretch), TTFT, ALPHA).outcome == "FAIL"


def test_latencies_that_only_grow_fail_in_the_end():
    growing = 200.0 + np.arange(400)
    found = evidence(growing, TTFT, ALPHA)
    assert found.outcome == "FAIL"
    assert found.n >= OVERWHELMING_N
    assert found.deflation > 20


def test_a_hopeless_run_is_seen_before_it_is_over():
    assert live_hopeless(misses=10, n=40, percentile=95, alpha=ALPHA)
    assert not live_hopeless(misses=9, n=40, percentile=95, alpha=ALPHA)
    assert not live_hopeless(misses=39, n=39, percentile=95, alpha=ALPHA)
