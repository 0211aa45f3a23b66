"""Promises of traffic classes on their way from the scenario to targets, live limits and scores."""

import pytest

from harness.measurement import Audit, Estimate, Measurement, SloCount, Telemetry
from harness.observe import Target
from harness.stopping import certain_misses, concerned
from scenarios.load import load
from scenarios.words import Words
from scenarios.workload import hold
from tuners.capacity import LOAD_CAP
from tuners.evaluate import _load
from tuners.settle import resolve_targets

WORDS = Words(("a", "b"), exact=True)


def test_the_promises_of_all_and_of_each_class_have_names_of_their_own():
    scenario = load("mixed")
    assert list(scenario.targets) == ["chat.ttft", "extract.e2e"]
    assert not scenario.targets_are_absolute
    assert list(load("quickstart").targets) == ["ttft", "tpot"]


def test_relative_promises_are_multiples_of_the_classes_own_latency():
    unloaded_ms = {"chat.ttft": 30.0, "extract.e2e": 200.0, "ttft": 1.0}
    assert resolve_targets(load("mixed"), unloaded_ms) == {"chat.ttft": 300.0, "extract.e2e": 1600.0}


def test_a_run_ends_early_by_the_requests_of_the_class():
    workload = load("mixed").workload
    schedule = hold(workload, WORDS, rate_rps=10, duration_s=60, seed=1)
    ttft, chat, extract = (Target(m, 95, 100.0) for m in ("e2e", "chat.ttft", "extract.e2e"))
    in_class = {c: sum(r.traffic_class == c for r in schedule.requests) for c in ("chat", "extract")}
    assert len(concerned(schedule, ttft)) == len(schedule.requests)
    assert len(concerned(schedule, chat)) == in_class["chat"]
    late = sum(r.traffic_class == "extract" and r.t_int_ns >= 30e9 for r in schedule.requests)
    assert certain_misses(schedule, 30.0, (extract,)) == {"extract.e2e": 1 + late * 5 // 100}


def measured(counts, p95_ms):
    estimates = {f"{m}_p95_ms": Estimate(value=v, low=None, high=None, n=10, n_effective=5) for m, v in p95_ms.items()}
    audit = Audit(
        offered_rps=1,
        achieved_rps=1,
        send_lateness_p50_ms=0,
        send_lateness_p99_ms=0,
        send_lateness_limit_ms=1,
        loop_lag_p99_ms=0,
        generator_cpu_share=0,
        connections_opened=1,
        stale_connections_replaced=0,
        steal_share=0,
    )
    slo = tuple(
        SloCount(metric=m, percentile=95, target_ms=t, misses=0, n=n, autocorrelation_time=1, deflation=2)
        for m, t, n in counts
    )
    return Measurement(
        kind="hold",
        rate_rps=1,
        seed=1,
        workload_digest="",
        started_at="",
        window_s=(0, 1),
        steady=True,
        saturated=False,
        n_sent=10,
        n_judged=10,
        errors={},
        metrics=estimates,
        throughput_rps=1,
        throughput_output_tps=1,
        goodput_rps=1,
        slo=slo,
        audit=audit,
        telemetry=Telemetry(),
        records_path="",
        command="",
        percentile_method="",
    )


def test_the_load_is_that_of_the_class_that_is_worst_off():
    p95_ms = {"chat.ttft": 50.0, "batch.e2e": 90.0}
    counts = [("chat.ttft", 100.0, 8), ("batch.e2e", 100.0, 2)]
    assert _load(measured(counts, p95_ms)) == pytest.approx(0.9)
    assert _load(measured(counts, {**p95_ms, "chat.ttft": None})) == LOAD_CAP


def test_a_class_of_which_nothing_came_says_nothing():
    assert _load(measured([("chat.ttft", 100.0, 8), ("batch.e2e", 100.0, 0)], {"chat.ttft": 50.0})) == 0.5
