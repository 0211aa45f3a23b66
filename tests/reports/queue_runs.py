"""Runs of a FIFO queue with k servers: real records of a known law, told and judged by the project's own code."""

import heapq
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.judge import judge
from harness.load.records import LoadResult
from harness.load.tables import RECORD_SCHEMA
from harness.measurement import HostReading, Telemetry
from harness.observe import RunContext, Target, summarise
from tuners.results import Run

TARGETS_MS = {"ttft": 400.0, "tpot": 40.0}
BYTES_PER_WEIGHT = {"f16": 16.0, "q8_0": 8.5, "q4_1": 5.0, "q4_0": 4.5}
WARMUP_S = 1.0
ALPHA = 0.05


def step_s(knobs):
    """Of one token: longer with more bytes and more slots."""
    slower = 1.0 if knobs["flash_attention"] else 1.15
    return slower * 0.0005 * BYTES_PER_WEIGHT[knobs["variant"]] * (1 + 0.22 * knobs["slots"])


def capacity_rate(knobs):
    """Rate at about 80 % of the queue's limit."""
    return 0.8 * knobs["slots"] / (0.03 * (1 + 64 / knobs["micro_batch"]) + 23 * step_s(knobs))


def simulate(knobs, rate_rps, seconds, seed, failures=0.004):
    """Records of a FIFO queue with ``slots`` servers, Poisson arrivals and a step time that grows with the slots."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate_rps, size=max(8, int(rate_rps * seconds * 1.5))))
    arrivals = arrivals[arrivals < seconds]
    free = [0.0] * knobs["slots"]
    rows = []
    for index, intended in enumerate(arrivals):
        tokens = int(np.clip(rng.lognormal(3.0, 0.5), 2, 96))
        start = max(intended, heapq.heappop(free))
        first = start + 0.03 * (1 + 64 / knobs["micro_batch"]) * rng.lognormal(0, 0.15)
        gaps = step_s(knobs) * rng.lognormal(0, 0.1, size=tokens - 1)
        stamps = [round(1e9 * t) for t in first + np.concatenate([[0.0], np.cumsum(gaps)])]
        heapq.heappush(free, stamps[-1] / 1e9)
        failed = rng.random() < failures
        rows.append(
            {
                "index": index,
                "t_int_ns": round(1e9 * intended),
                "t_send_ns": round(1e9 * (intended + 1e-4 * rng.random())),
                "t_first_ns": None if failed else stamps[0],
                "t_last_ns": None if failed else stamps[-1],
                "t_end_ns": stamps[-1],
                "chunk_ns": [] if failed else stamps,
                "prompt_tokens_asked": 64,
                "output_tokens_asked": tokens,
                "prompt_tokens": 64,
                "cached_tokens": 0,
                "output_tokens": None if failed else tokens,
                "finish_reason": None if failed else "length",
                "http_status": None if failed else 200,
                "error": "reset" if failed else None,
                "connection_reused": True,
                "bytes_received": 0 if failed else 100 * tokens,
                "traffic_class": "",
                "session": None,
                "turn": 0,
            }
        )
    return rows


def write_run(root, folder, knobs, rate_rps, *, seconds, seed, kind="hold", void=()):
    """Simulates a run and writes its Parquet file; measurement and verdict are made of it as of any other."""
    rows = simulate(knobs, rate_rps, seconds, seed)
    path = root / folder / "requests.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, RECORD_SCHEMA), path)
    context = RunContext(
        kind=kind,
        rate_rps=rate_rps,
        seed=seed,
        warmup_s=WARMUP_S,
        window_end_s=float(seconds),
        targets=tuple(Target(metric, 95, target) for metric, target in TARGETS_MS.items()),
        load=LoadResult(
            records_path=path,
            t0_monotonic_ns=0,
            t0_wall_iso="2026-11-23T10:00:00+00:00",
            elapsed_s=float(seconds),
            stopped_early=None,
            planned=len(rows),
            sent=len(rows),
            send_lateness_p50_ms=0.05,
            send_lateness_p99_ms=0.1,
            loop_lag_p99_ms=0.2,
            cpu_s=0.04 * seconds,
            cpu_share=0.04,
            max_rss_bytes=100_000_000,
            connections_opened=12,
            stale_connections_replaced=0,
            locust_version="2.47",
        ),
        host=HostReading(steal_share=0.001),
        telemetry=Telemetry(rss_peak_bytes=int(2e7 * BYTES_PER_WEIGHT[knobs["variant"]] + 1e7 * knobs["slots"])),
        workload_digest="w" * 64,
        started_at="2026-11-23T10:00:00+00:00",
        records_path=f"{folder}/requests.parquet",
        command=f"autotune bench {folder}",
    )
    observed = summarise(path, context)
    if void:
        audit = observed.measurement.audit.model_copy(update={"void_reasons": tuple(void)})
        observed = replace(observed, measurement=observed.measurement.model_copy(update={"audit": audit}))
    return Run(folder=folder, measurement=observed.measurement, verdict=judge(observed, ALPHA))
