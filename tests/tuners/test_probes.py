"""From a run of load to what the capacity search is told of it, and when a hold is given up."""

from types import SimpleNamespace

import numpy as np
import pytest

from harness.load.records import LiveCounters
from harness.measurement import SloCount
from harness.observe import Limit, Target
from harness.stopping import NS, hopeless
from tuners import capacity
from tuners.evaluate import Hints, _probe, _Prober, evaluate
from tuners.results import Capacity, Probe

TARGETS = (Target("ttft", 95, 100.0), Target("tpot", 99, 10.0))


def loaded(ttft_ms, tpot_ms, *, stopped_early=None, limit=None):
    """A run as `evaluate` sees it, of the latencies given."""
    series = {"ttft": np.asarray(ttft_ms, float), "tpot": np.asarray(tpot_ms, float)}
    slo = tuple(
        SloCount(
            metric=t.metric,
            percentile=t.percentile,
            target_ms=t.target_ms,
            misses=int((series[t.metric] > t.target_ms).sum()),
            n=len(series[t.metric]),
            autocorrelation_time=1.0,
            deflation=2.0,
        )
        for t in TARGETS
    )
    metrics = {
        f"{t.metric}_p{t.percentile:g}_ms": SimpleNamespace(
            value=float(np.percentile(series[t.metric], t.percentile, method="inverted_cdf"))
        )
        for t in TARGETS
    }
    measurement = SimpleNamespace(slo=slo, metrics=metrics, n_judged=len(ttft_ms), saturated=limit is not None)
    return SimpleNamespace(
        measurement=measurement,
        observed=SimpleNamespace(series=series, limit=limit),
        load=SimpleNamespace(stopped_early=stopped_early),
    )


def spread(n, highest):
    return np.linspace(0.5 * highest, highest, n)


def test_a_probe_is_of_the_target_that_is_nearest_to_being_missed():
    probe = _probe(loaded(spread(200, 50.0), spread(200, 9.5)), 4.0)
    assert probe.passed
    assert (probe.n, probe.misses, probe.tolerated) == (200, 0, 0.01)
    assert probe.load == pytest.approx(0.95, abs=0.02)
    assert probe.load_se > 0
    assert probe.deflation >= 2
    assert probe.limit_rps is None


@pytest.mark.parametrize("why", ["misses", "asked"])
def test_a_hold_that_was_given_up_has_failed(why):
    assert not _probe(loaded(spread(200, 50.0), spread(200, 9.5), stopped_early=why), 4.0).passed


def test_a_saturated_hold_says_what_the_engine_completes():
    probe = _probe(loaded(spread(80, 400.0), spread(80, 9.0), limit=Limit(40, 5.0)), 9.0)
    assert not probe.passed
    assert (probe.limit_rps, probe.limit_n) == (5.0, 40)


def test_what_misses_its_targets_at_every_rate_is_as_far_off_as_its_slowest_hold(monkeypatch):
    told = [("ramp", 0.1, 1.5), ("hold", 4.0, 9.0), ("hold", 0.5, 3.0), ("hold", 1.0, 5.0)]
    probes = [Probe(kind=k, rate_rps=r, n=40, misses=40, load=x, passed=False, tolerated=0.05) for k, r, x in told]
    found = Capacity(rate_rps=0.0, highest_passed_rps=None, lowest_failed_rps=0.5, raced=False, probes=tuple(probes))
    monkeypatch.setattr(capacity, "estimate", lambda *_, **__: found)
    wanted = SimpleNamespace(objective="goodput", budget=SimpleNamespace(holds=3))
    evaluated = evaluate(None, wanted, rate_rps=None, seed=1, hints=Hints(1.0))
    assert evaluated.slo_violation == pytest.approx(2.0)
    assert evaluated.why == "misses its targets even at 0.50 requests/s"
    assert (evaluated.score, evaluated.passed) == (0.0, False)


def test_waiting_is_what_the_target_leaves_beyond_an_idle_engine():
    prober = _Prober(SimpleNamespace(subject=SimpleNamespace(targets=TARGETS)), None, 0, "")
    assert prober.allowed == (0.1, 0.1)
    prober._learn_idle(loaded([20.0] * 8 + [500.0] * 50, [9.0] * 58))
    assert prober.allowed == pytest.approx((0.1, 0.08))
    prober._learn_idle(loaded([60.0] * 20, [9.0] * 20))  # a later run found the engine less idle
    assert prober.allowed == pytest.approx((0.1, 0.08))


def test_targets_on_pace_alone_leave_nothing_to_wait_for():
    prober = _Prober(SimpleNamespace(subject=SimpleNamespace(targets=TARGETS[1:])), None, 0, "")
    assert prober.allowed == (0.0, 0.0)


def counters(elapsed_s, misses):
    return LiveCounters(
        elapsed_s=elapsed_s,
        planned=1000,
        sent=0,
        done=0,
        failed=0,
        in_flight=0,
        late=0,
        misses={"ttft": misses},
        newest_token_age_s=None,
    )


def test_a_hold_is_given_up_when_its_misses_are_evidence_and_not_before():
    """10 requests/s after a warm-up of 2 s: 100 are judged by second 12."""
    schedule = SimpleNamespace(
        requests=[SimpleNamespace(t_int_ns=round(i * 0.1 * NS), traffic_class="", session=None) for i in range(1000)]
    )
    given_up = hopeless(schedule, 2.0, TARGETS[:1], 0.05)
    assert not given_up(counters(12.0, 6))
    assert given_up(counters(12.0, 30))
    assert not given_up(counters(4.0, 20)), "20 requests are no evidence yet"
    assert not given_up(counters(90.0, 44)), "5 % of 880 is what a P95 allows"
