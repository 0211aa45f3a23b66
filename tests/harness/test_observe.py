"""Every definition of docs/metrics.md, on records whose right answers are plain arithmetic."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.load.records import LoadResult
from harness.load.tables import RECORD_SCHEMA
from harness.measurement import HostReading, Measurement, Telemetry
from harness.observe import RunContext, Target, summarise

METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
MS = 1_000_000
TTFT = Target("ttft", 95, 150.0)
TPOT = Target("tpot", 95, 20.0)
E2E = Target("e2e", 95, 400.0)


def request(at_ms, *, sent=1.0, chunks=(100.0, 110.0, 120.0), end=None, **columns):
    """One record; times in ms after the intended one. By default an answer of three chunks and three tokens."""
    stamps = [round((at_ms + c) * MS) for c in chunks]
    end = end if end is not None else (chunks[-1] if chunks else 1.0) + 1
    return {
        "index": round(at_ms * 1000),
        "t_int_ns": round(at_ms * MS),
        "t_send_ns": None if sent is None else round((at_ms + sent) * MS),
        "t_first_ns": stamps[0] if stamps else None,
        "t_last_ns": stamps[-1] if stamps else None,
        "t_end_ns": round((at_ms + end) * MS),
        "chunk_ns": stamps,
        "prompt_tokens_asked": 10,
        "output_tokens_asked": 3,
        "prompt_tokens": 10,
        "cached_tokens": 0,
        "output_tokens": 3,
        "finish_reason": "length",
        "http_status": 200,
        "error": None,
        "connection_reused": True,
        "bytes_received": 100,
        "traffic_class": "",
        "session": None,
        "turn": 0,
        **columns,
    }


def steady_requests(n, gap_ms=50.0):
    return [request(gap_ms * i) for i in range(n)]


@pytest.fixture
def observe(tmp_path):
    def run(rows, *, targets=(TTFT, TPOT, E2E), load=None, **context):
        path = tmp_path / "requests.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA), path)
        result = LoadResult(
            records_path=path,
            t0_monotonic_ns=0,
            t0_wall_iso="2026-01-01T00:00:00Z",
            elapsed_s=10.0,
            stopped_early=None,
            planned=len(rows),
            sent=len(rows),
            send_lateness_p50_ms=0.1,
            send_lateness_p99_ms=0.4,
            loop_lag_p99_ms=0.2,
            cpu_s=1.0,
            cpu_share=0.1,
            max_rss_bytes=1,
            connections_opened=1,
            stale_connections_replaced=0,
            locust_version="2",
        )
        fields = {
            "kind": "hold",
            "rate_rps": 20.0,
            "seed": 1,
            "warmup_s": 0.0,
            "window_end_s": 10.0,
            "targets": targets,
            "load": dataclasses.replace(result, **(load or {})),
            "host": HostReading(steal_share=0.0),
            "telemetry": Telemetry(),
            "workload_digest": "0" * 64,
            "started_at": "2026-01-01T00:00:00Z",
            "records_path": "requests.parquet",
            "command": "autotune bench",
        }
        return summarise(path, RunContext(**{**fields, **context}))

    return run


def values(observed, percentile=50):
    suffix = f"_p{percentile}_ms"
    return {k.removesuffix(suffix): e.value for k, e in observed.measurement.metrics.items() if k.endswith(suffix)}


def test_the_definitions(observe):
    found = observe([request(1000, sent=4.0, chunks=(100.0, 130.0, 180.0), output_tokens=5)])
    assert values(found) == {
        "ttft": 100.0,
        "ttft_wire": 96.0,
        "client_lag": 4.0,
        "e2e": 180.0,
        "tpot": (180.0 - 100.0) / (5 - 1),
        "icg": 30.0,
    }
    assert found.measurement.percentile_method == "inverted_cdf"


def test_chunks_are_counted_only_where_the_server_does_not_say(observe):
    found = observe([request(0, output_tokens=None, chunks=(100.0, 110.0, 120.0, 130.0))])
    assert values(found)["tpot"] == 10.0
    assert found.measurement.tokens_from_chunks == 1
    assert observe([request(0)]).measurement.tokens_from_chunks == 0


def test_one_token_has_no_time_per_output_token(observe):
    found = observe([request(0, chunks=(100.0,), output_tokens=1), request(50)])
    tpot = next(s for s in found.measurement.slo if s.metric == "tpot")
    assert (tpot.n, tpot.misses) == (1, 0)
    assert found.missed.tolist() == [False, False]


@pytest.mark.parametrize("error", ["connect", "reset", "timeout", "http", "truncated", "protocol"])
def test_a_failed_request_misses_every_target(observe, error):
    found = observe([*steady_requests(9), request(450, error=error)])
    assert {s.metric: (s.misses, s.n) for s in found.measurement.slo} == dict.fromkeys(("ttft", "tpot", "e2e"), (1, 10))
    assert found.measurement.metrics["ttft_p95_ms"].value is None
    assert found.measurement.metrics["ttft_p50_ms"].value == 100.0
    assert found.measurement.errors == {error: 1}
    assert found.measurement.goodput_rps == pytest.approx(9 / 10.0)


def test_an_answer_without_content_is_no_answer(observe):
    found = observe([request(0, chunks=(), output_tokens=0)])
    assert {s.metric: s.misses for s in found.measurement.slo} == {"ttft": 1, "tpot": 1, "e2e": 1}


CANCELLED = {
    # what it had reached when it was cancelled -> (misses, n) of ttft, tpot, e2e
    "young, nothing came": ({"chunks": (), "end": 140.0}, [(0, 0), (0, 0), (0, 0)]),
    "nothing came in time": ({"chunks": (), "end": 160.0}, [(1, 1), (0, 0), (0, 0)]),
    "older than every target": ({"chunks": (), "end": 500.0}, [(1, 1), (0, 0), (1, 1)]),
    "first token in time": ({"chunks": (100.0,), "end": 120.0}, [(0, 1), (0, 0), (0, 0)]),
    "first token late": ({"chunks": (160.0,), "end": 170.0}, [(1, 1), (0, 0), (0, 0)]),
    # two more tokens at most: 41 ms after the first the mean gap must exceed 20 ms
    "stalls after the first": ({"chunks": (100.0,), "end": 141.0}, [(0, 1), (1, 1), (0, 0)]),
}


@pytest.mark.parametrize("case", CANCELLED)
def test_a_cancelled_request_counts_for_what_is_certain(observe, case):
    reached, expected = CANCELLED[case]
    found = observe([request(0, error="cancelled", output_tokens=None, **reached)])
    assert [(s.misses, s.n) for s in found.measurement.slo] == expected
    assert found.missed.tolist() == ([True] if any(misses for misses, _ in expected) else [])


def test_without_a_target_a_cancelled_request_says_nothing_of_what_it_had_not_reached(observe):
    rows = [*steady_requests(5), request(250, error="cancelled", chunks=(), end=9000.0)]
    found = observe(rows, targets=(TTFT,))
    assert found.measurement.metrics["e2e_p99_ms"].n == 5
    assert found.measurement.metrics["ttft_p99_ms"].n == 6
    assert set(found.series) == {"ttft"}


def test_a_cancelled_request_is_no_goodput(observe):
    young = request(250, error="cancelled", chunks=(), end=10.0)
    assert observe([*steady_requests(5), young]).measurement.goodput_rps == pytest.approx(5 / 10.0)


def test_warm_up_is_discarded_by_time_and_order_is_that_of_intent(observe):
    rows = [request(50.0 * i, chunks=(100.0 + i, 150.0 + i)) for i in range(40)]
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(40)]
    found = observe(shuffled, warmup_s=1.0, window_end_s=1.5)
    assert found.series["ttft"].tolist() == [100.0 + i for i in range(20, 30)]
    assert found.t_int_s == pytest.approx([0.05 * i for i in range(20, 30)])
    assert found.measurement.n_judged == 10
    assert found.measurement.window_s == (1.0, 1.5)
    assert found.measurement == observe(rows, warmup_s=1.0, window_end_s=1.5).measurement


def test_rates_are_of_what_falls_into_the_window(observe):
    rows = [
        request(500),  # warm-up, but its tokens at 600, 610, 620 ms and its end come before the window
        request(950, chunks=(100.0, 110.0, 120.0)),  # due in warm-up, answered in the window
        request(1500),
        request(1600, chunks=(390.0, 395.0, 430.0), output_tokens=6),  # two of three chunks before the end
    ]
    found = observe(rows, warmup_s=1.0, window_end_s=2.0, targets=(E2E,)).measurement
    assert found.throughput_rps == 2.0
    assert found.throughput_output_tps == pytest.approx(3 + 3 + 2 * 6 / 3)
    assert found.goodput_rps == 1.0
    assert found.audit.offered_rps == found.audit.achieved_rps == 2.0


def test_counts_carry_the_correlation_of_log_latency(observe):
    rng = np.random.default_rng(2)
    first = 100 * np.exp(rng.normal(0, 0.1, 300).cumsum())
    slow = [request(20.0 * i, chunks=(f, f + 10)) for i, f in enumerate(first)]
    fast = [request(20.0 * i, chunks=(f, f + 10)) for i, f in enumerate(rng.permutation(first))]
    correlated, independent = (observe(rows, targets=(TTFT,)).measurement for rows in (slow, fast))
    assert correlated.slo[0].misses == independent.slo[0].misses > 0
    assert correlated.slo[0].deflation == 2 * correlated.slo[0].autocorrelation_time > 20
    assert independent.slo[0].deflation < 4
    wide, narrow = correlated.metrics["ttft_p50_ms"], independent.metrics["ttft_p50_ms"]
    assert wide.n_effective == pytest.approx(300 / correlated.slo[0].deflation)
    assert wide.high is None or wide.high - wide.low > narrow.high - narrow.low


def test_gaps_are_pooled_over_answers(observe):
    found = observe([request(0, chunks=(10.0, 11.0, 14.0)), request(5, chunks=(8.0, 10.0)), request(9, chunks=(3.0,))])
    assert found.measurement.metrics["icg_p99_ms"].n == 3
    assert values(found, 99)["icg"] == 3.0
    assert values(found, 50)["icg"] == 2.0


def test_saturation_is_seen(observe):
    rows = [request(20.0 * i, chunks=(100.0 + 20 * i, 110.0 + 20 * i)) for i in range(200)]
    seen = observe(rows, window_end_s=4.0)
    found = seen.measurement
    assert found.saturated
    assert not found.steady
    assert found.completions_per_arrival == pytest.approx(0.5, abs=0.05)
    assert seen.limit.rps == pytest.approx(25, abs=1)
    assert seen.limit.n < 100, "only what was completed since it was full"
    calm = observe(steady_requests(200))
    assert (calm.measurement.steady, calm.measurement.saturated) == (True, False)
    assert (calm.limit, calm.filling) == (None, False)


def test_a_run_shorter_than_an_answer_tells_nothing_of_saturation(observe):
    seen = observe([request(100.0 * i, chunks=(100.0, 8000.0)) for i in range(50)], window_end_s=5.0)
    assert (seen.measurement.steady, seen.measurement.saturated, seen.filling) == (False, False, True)
    assert seen.measurement.completions_per_arrival is None


def test_a_closed_loop_ends_with_its_last_answer(observe):
    found = observe(steady_requests(20), rate_rps=None, window_end_s=None, load={"planned": 500}).measurement
    assert found.window_s == (0.0, pytest.approx(0.95 + 0.121))
    assert found.audit.offered_rps is None
    assert found.audit.void_reasons == ()
    assert found.n_judged == 20


def test_an_early_stop_ends_the_window(observe):
    rows = [*steady_requests(18), request(1000, error="cancelled", chunks=(), end=3.0)]
    found = observe(rows, load={"stopped_early": "misses", "planned": 200}).measurement
    assert found.window_s == (0.0, pytest.approx(1.003))
    assert found.audit.void_reasons == ()


def test_stopped_in_the_warm_up_nothing_is_judged_and_nothing_void(observe):
    found = observe(steady_requests(20), warmup_s=5.0, load={"stopped_early": "misses", "planned": 200})
    assert found.measurement.n_judged == 0
    assert found.measurement.metrics == {}
    assert found.measurement.audit.void_reasons == ()
    assert [(s.misses, s.n) for s in found.measurement.slo] == [(0, 0)] * 3
    assert observe([], window_end_s=None).measurement.n_judged == 0


def test_without_a_stream_only_the_whole_answer_is_known(observe):
    found = observe([request(0, chunks=(100.0,))], stream=False, targets=(E2E,))
    assert set(values(found)) == {"e2e", "client_lag"}


VOID = {
    "late": ({"load": {"send_lateness_p99_ms": 3.1}}, "sent late"),
    "unsent": ({"load": {"planned": 103}}, "only 100 of 103"),
    "blind": ({"load": {"loop_lag_p99_ms": 3.1}}, "looked at late"),
    "late stamps": ({"load": {"receive_lag_p99_ms": 3.1}}, "stamped late"),
    "no core left": ({"load": {"cpu_share": 0.91}}, "91% of a core"),
    "steal": ({"host": HostReading(steal_share=0.06)}, "hypervisor took 6%"),
}


@pytest.mark.parametrize("case", VOID)
def test_a_disturbed_load_is_void(observe, case):
    change, words = VOID[case]
    reasons = observe(steady_requests(100), **change).measurement.audit.void_reasons
    assert len(reasons) == 1
    assert words in reasons[0]


def test_small_disturbances_are_not_void(observe):
    small = {"load": {"send_lateness_p99_ms": 2.9, "planned": 101}, "host": HostReading(steal_share=0.05)}
    assert observe(steady_requests(100), **small).measurement.audit.void_reasons == ()


def test_requests_that_the_engine_refused_are_not_the_clients_fault(observe):
    refused = [request(50.0 * i, sent=None, chunks=(), error="connect") for i in range(100)]
    unsent = [request(50.0 * i, sent=None, chunks=(), error="cancelled") for i in range(100)]
    assert observe(refused).measurement.audit.void_reasons == ()
    assert observe(unsent).measurement.audit.void_reasons != ()


@pytest.mark.parametrize(
    ("targets", "limit_ms"),
    [
        ((TTFT, TPOT, E2E), 3.0),  # 2 % of 150 ms; lateness is no part of TPOT
        ((Target("ttft", 95, 20.0),), 1.0),  # never stricter than the floor
        ((TPOT,), 2.0),  # 2 % of the median TTFT of 100 ms
        ((), 2.0),
    ],
)
def test_lateness_is_limited_by_the_latency_it_is_part_of(observe, targets, limit_ms):
    found = observe(steady_requests(10), targets=targets).measurement
    assert found.audit.send_lateness_limit_ms == pytest.approx(limit_ms)


def test_survives_json(observe):
    found = observe([*steady_requests(9), request(450, error="http")]).measurement
    assert Measurement.model_validate_json(found.model_dump_json()) == found


def test_the_snippet_of_the_docs_finds_the_same_number(observe, tmp_path, capsys):
    """Runs docs/metrics.md's plain pandas as written, on a file with warm-up, failures and cancelled requests."""
    pytest.importorskip("pandas")
    (snippet,) = re.findall(r"```python\n(.*?)```", METRICS_PAGE.read_text(encoding="utf-8"), re.DOTALL)
    rng = np.random.default_rng(3)
    rows = [
        request(at, chunks=(f, f + 30))
        for at, f in zip(rng.uniform(0, 9000, 400), rng.lognormal(5, 1, 400), strict=True)
    ]
    for i, row in enumerate(rows):
        if i % 50 == 7:
            row.update(error="timeout", t_first_ns=None, t_last_ns=None, chunk_ns=[])
        if i % 40 == 3:
            row.update(error="cancelled", t_last_ns=None)
        if i % 40 == 5:
            row.update(error="cancelled", t_first_ns=None, t_last_ns=None, chunk_ns=[])
    found = observe(rows, warmup_s=2.0, window_end_s=9.0).measurement
    found.save(tmp_path / "measurement.json")
    exec(compile(snippet.replace('"RUN"', repr(str(tmp_path))), "docs/metrics.md", "exec"), {})
    printed = float(capsys.readouterr().out)
    assert printed == found.metrics["ttft_p95_ms"].value
    assert math.isfinite(printed)
    assert found.errors["timeout"] > 0
    assert found.errors["cancelled"] > 0


CHAT_TTFT = Target("chat.ttft", 95, 150.0)
BATCH_E2E = Target("batch.e2e", 90, 200.0)


def mixed(n=10):
    """Every third request is of the class batch and twice as slow."""
    slow = {"traffic_class": "batch", "chunks": (200.0, 220.0, 240.0)}
    return [request(50.0 * i, **(slow if i % 3 == 0 else {"traffic_class": "chat"})) for i in range(n)]


def test_a_class_has_metrics_of_its_own_requests_and_all_together_have_theirs(observe):
    found = values(observe(mixed(), targets=(TTFT,)))
    assert (found["chat.ttft"], found["batch.ttft"]) == (100.0, 200.0)
    assert (found["chat.e2e"], found["batch.e2e"], found["batch.tpot"]) == (120.0, 240.0, 20.0)
    assert found["ttft"] == 100.0
    assert observe(mixed(), targets=(TTFT,)).measurement.metrics["chat.ttft_p95_ms"].n == 6


def test_a_promise_of_a_class_counts_its_requests_only(observe):
    found = observe(mixed(), targets=(TTFT, CHAT_TTFT, BATCH_E2E))
    counts = {c.metric: (c.misses, c.n, c.percentile) for c in found.measurement.slo}
    assert counts == {"ttft": (4, 10, 95), "chat.ttft": (0, 6, 95), "batch.e2e": (4, 4, 90)}
    assert {name: len(series) for name, series in found.series.items()} == {"ttft": 10, "chat.ttft": 6, "batch.e2e": 4}
    assert observe(mixed(), targets=(CHAT_TTFT, BATCH_E2E)).missed.tolist() == [i % 3 == 0 for i in range(10)]


def test_goodput_holds_each_class_to_its_own_promises(observe):
    assert observe(mixed(), targets=(CHAT_TTFT,)).measurement.goodput_rps == pytest.approx(1.0)
    assert observe(mixed(), targets=(CHAT_TTFT, BATCH_E2E)).measurement.goodput_rps == pytest.approx(0.6)


def test_a_failed_request_misses_the_promises_of_its_class_not_of_another(observe):
    found = observe([*mixed(9), request(450, error="reset", traffic_class="chat")], targets=(CHAT_TTFT, BATCH_E2E))
    counts = {c.metric: (c.misses, c.n) for c in found.measurement.slo}
    assert counts == {"chat.ttft": (1, 7), "batch.e2e": (3, 3)}


def test_a_cancelled_request_is_held_to_the_target_of_its_class(observe):
    late = request(500, error="cancelled", chunks=(), end=180.0, traffic_class="chat")
    found = observe([*mixed(), late], targets=(CHAT_TTFT, BATCH_E2E))
    assert {c.metric: (c.misses, c.n) for c in found.measurement.slo} == {"chat.ttft": (1, 7), "batch.e2e": (4, 4)}
    early = request(500, error="cancelled", chunks=(), end=120.0, traffic_class="chat")
    assert len(observe([*mixed(), early], targets=(CHAT_TTFT, BATCH_E2E)).missed) == 10
    begun = request(500, error="cancelled", chunks=(100.0,), end=120.0, traffic_class="chat")
    assert len(observe([*mixed(), begun], targets=(CHAT_TTFT, BATCH_E2E)).missed) == 11


def test_a_class_without_a_request_has_no_evidence(observe):
    found = observe(steady_requests(5), targets=(TTFT, CHAT_TTFT))
    assert {c.metric: c.n for c in found.measurement.slo} == {"ttft": 5, "chat.ttft": 0}


def test_the_lateness_limit_knows_the_targets_of_classes(observe):
    limit = observe(mixed(), targets=(BATCH_E2E, Target("chat.tpot", 95, 1.0))).measurement.audit.send_lateness_limit_ms
    assert limit == pytest.approx(0.02 * 200)
