"""Two measurements side by side: real files, known latencies."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.load.records import LoadResult
from harness.load.tables import RECORD_SCHEMA
from harness.measurement import HostReading, Telemetry
from harness.observe import RunContext, Target, summarise
from harness.versus import differences, reread

NS = 1_000_000_000
MS = 1_000_000
N, RATE_RPS = 1000, 100.0
TARGETS = (Target("ttft", 95, 200.0), Target("e2e", 95, 400.0))


@pytest.fixture
def run(tmp_path):
    """The folder of a hold whose first tokens took ``ttft_ms`` and whose answers took 100 ms more."""

    def make(name, ttft_ms, *, stopped_early=None, failed=()):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for i, first_ms in enumerate(ttft_ms):
            at = round(i / RATE_RPS * NS)
            first, last = at + round(first_ms * MS), at + round((first_ms + 100) * MS)
            rows.append({
                "index": i, "t_int_ns": at, "t_send_ns": at + 1000, "t_first_ns": first, "t_last_ns": last,
                "t_end_ns": last, "chunk_ns": [first, last], "prompt_tokens_asked": 5, "output_tokens_asked": 2,
                "output_tokens": 2, "error": "http" if i in failed else None, "connection_reused": True,
                "bytes_received": 1, "traffic_class": "", "turn": 0,
            })  # fmt: skip
        path = folder / "requests.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA), path)
        load = LoadResult(
            records_path=path, t0_monotonic_ns=0, t0_wall_iso="", elapsed_s=N / RATE_RPS, stopped_early=stopped_early,
            planned=N, sent=N, send_lateness_p50_ms=0.0, send_lateness_p99_ms=0.1, loop_lag_p99_ms=0.1, cpu_s=1.0,
            cpu_share=0.1, max_rss_bytes=1, connections_opened=1, stale_connections_replaced=0, locust_version="2",
        )  # fmt: skip
        (folder / "audit.json").write_text(json.dumps(load.to_dict()))
        observed = summarise(
            path,
            RunContext(
                kind="hold", rate_rps=RATE_RPS, seed=1, warmup_s=0.0, window_end_s=N / RATE_RPS, targets=TARGETS,
                load=load, host=HostReading(steal_share=0.01), telemetry=Telemetry(), workload_digest="d",
                started_at="", records_path=str(path), command="",
            ),
        )  # fmt: skip
        observed.measurement.save(folder / "measurement.json")
        return folder, observed

    return make


def latencies(seed, times=1.0):
    return times * np.random.default_rng(seed).lognormal(4.6, 0.3, N)


def test_a_run_is_read_again_as_it_was_seen(run):
    folder, seen = run("a", latencies(1))
    again = reread(folder)
    assert again.measurement == seen.measurement
    assert again.series["ttft"].tolist() == seen.series["ttft"].tolist()


def test_a_run_that_is_gone_or_was_ended_by_its_misses_is_no_sample(run):
    assert reread(run("cut", latencies(1), stopped_early="misses")[0]) is None
    folder, _ = run("gone", latencies(1))
    (folder / "requests.parquet").unlink()
    assert reread(folder) is None


def test_what_changed_is_significant_and_corrected_for_what_was_looked_at(run):
    _, first = run("a", latencies(1))
    _, slower = run("b", latencies(2, times=1.3))
    found = {d.name: d for d in differences(first, slower)}
    assert set(found) == {"ttft_p95_ms", "e2e_p95_ms", "missed", "goodput_rps"}
    ttft = found["ttft_p95_ms"]
    assert ttft.significant
    assert ttft.change.low < 1.3 < ttft.change.high
    assert ttft.change.p_value < ttft.p_value < 0.05
    assert found["missed"].change.change > 0.05
    assert found["goodput_rps"].change.change == pytest.approx(-RATE_RPS * found["missed"].change.change)


def test_luck_is_not_significant(run):
    _, first = run("a", latencies(1))
    _, second = run("b", latencies(3))
    assert [d.name for d in differences(first, second) if d.significant] == []


def test_failures_are_seen(run):
    _, first = run("a", latencies(1))
    _, failing = run("b", latencies(1), failed=range(0, N, 8))
    found = {d.name: d for d in differences(first, failing)}
    assert found["missed"].significant
    assert found["ttft_p95_ms"].change.second == np.inf
    assert found["ttft_p95_ms"].significant


def test_it_is_shown_in_words(run):
    from autotune.differences import differences_table, document, said

    _, first = run("a", latencies(1))
    _, slower = run("b", latencies(2, times=1.3))
    found = differences(first, slower)
    assert "significant, p" in said(found[0])
    assert differences_table("t", found, "a", "b").row_count == 4
    json.dumps(document(found), allow_nan=False)
