"""Raw records of one run -> Measurement: the definition of every metric (docs/metrics.md), nothing else.

Knows nothing of what is good enough (judge.py) or of how the load was made. A latency is +inf where the
request failed, and nan where it says nothing about the metric.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.audit import Asked, audit
from harness.load.records import LoadResult
from harness.measurement import Estimate, HostReading, Measurement, RunKind, ServerView, SloCount, Telemetry
from harness.stats import intervals
from harness.stats.autocorrelation import deflation, latency_time
from harness.stats.steady import Steadiness, steadiness

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

NS_PER_MS = 1e6
NS_PER_S = 1e9
PERCENTILES = (50.0, 95.0, 99.0)
NEED_A_STREAM = ("ttft", "ttft_wire", "tpot")


@dataclass(frozen=True, slots=True)
class Target:
    """One promise, resolved: this percentile of the metric is at most ``target_ms``.

    ``metric``: "ttft" (of all requests) or "chat.ttft" (of the traffic class chat).
    """

    metric: str
    percentile: float
    target_ms: float

    @property
    def traffic_class(self) -> str:
        """The class it is about; "": all requests."""
        return self.metric.rpartition(".")[0]

    @property
    def latency(self) -> str:
        """The metric without its class."""
        return latency_name(self.metric)


@dataclass(frozen=True, slots=True)
class RunContext:
    """What the records of a run do not say themselves.

    ``rate_rps``: None in a ramp and in a closed loop. ``window_end_s``: end of the schedule; None: it has none,
    the last answer ends the window.
    """

    kind: RunKind
    rate_rps: float | None
    seed: int
    warmup_s: float
    window_end_s: float | None
    targets: tuple[Target, ...]
    load: LoadResult
    host: HostReading
    telemetry: Telemetry
    workload_digest: str
    started_at: str
    records_path: str
    command: str
    stream: bool = True
    server: ServerView | None = None
    engine_memory_share: float | None = None  # its peak, of the machine's memory; None: not observable


class Limit(NamedTuple):
    """What a saturated engine completed once it was full: so many requests, and per second."""

    n: int
    rps: float


@dataclass(frozen=True, slots=True)
class Observed:
    """A measurement with the request by request series that a verdict needs, in order of intended time.

    ``series``: metric -> latencies in ms of the requests that say something about it, for every target.
    ``missed``: whether a request missed any target, for those where that is settled, due at ``t_int_s``.
    ``limit``: None: not saturated, or nothing completed. ``filling``: whether it is cannot be said, so little came
    after the engine was full.
    """

    measurement: Measurement
    series: Mapping[str, FloatArray]
    missed: BoolArray
    t_int_s: FloatArray
    limit: Limit | None = None
    filling: bool = False


def summarise(records: Path, context: RunContext) -> Observed:
    """Everything that is said about a run. ``records``: Parquet with the columns of load/records.py."""
    table = pq.read_table(records).sort_by([("t_int_ns", "ascending"), ("index", "ascending")])
    start_s, end_s = window_s = _window_s(table, context)
    t_int_s = column(table, "t_int_ns") / NS_PER_S
    judged = table.filter(pa.array((t_int_s >= start_s) & (t_int_s < end_s)))
    t_int_s = column(judged, "t_int_ns") / NS_PER_S

    targets_ms = {t.metric: t.target_ms for t in context.targets}
    latency = latencies_ms(judged, targets_ms)
    if not context.stream:
        latency = {name: values for name, values in latency.items() if latency_name(name) not in NEED_A_STREAM}
    said = {metric: values[~np.isnan(values)] for metric, values in latency.items()}
    if context.stream:
        said["icg"] = inter_chunk_gaps_ms(judged)
    times = {metric: latency_time(values) for metric, values in said.items()}

    missed = np.zeros(judged.num_rows, dtype=bool)
    open_ = np.zeros(judged.num_rows, dtype=bool)
    cancelled = _equals(judged, "cancelled")
    for target in context.targets:
        values = latency[target.metric]
        missed |= values > target.target_ms
        open_ |= cancelled & np.isnan(values) & _of_class(judged, target.traffic_class)
    settled = missed | ~open_
    answered = _answered(judged)

    steady = _steadiness(table, window_s)
    seconds = end_s - start_s
    done_s = column(table, "t_end_ns")[_answered(table)] / NS_PER_S
    measurement = Measurement(
        kind=context.kind,
        rate_rps=context.rate_rps,
        seed=context.seed,
        workload_digest=context.workload_digest,
        started_at=context.started_at,
        window_s=window_s,
        steady=steady is not None and steady.steady,
        saturated=steady is not None and steady.saturated,
        completions_per_arrival=steady.slope if steady and not steady.filling else None,
        n_sent=context.load.sent,
        n_judged=judged.num_rows,
        errors=dict(sorted(Counter(e for e in judged["error"].to_pylist() if e is not None).items())),
        metrics=_estimates(said, times, context.targets),
        throughput_rps=_per_second(int(((done_s >= start_s) & (done_s < end_s)).sum()), seconds),
        throughput_output_tps=_per_second(_tokens_between(table, window_s), seconds),
        goodput_rps=_per_second(int((answered & ~missed).sum()), seconds),
        slo=tuple(_count(t, said[t.metric], times[t.metric]) for t in context.targets),
        audit=audit(
            _asked(table, judged, window_s, context, said), context.load, context.host, context.engine_memory_share
        ),
        telemetry=context.telemetry,
        records_path=context.records_path,
        command=context.command,
        percentile_method=intervals.METHOD,
        server=context.server,
        tokens_from_chunks=int((answered & np.isnan(column(judged, "output_tokens"))).sum()),
    )
    series = {t.metric: said[t.metric] for t in context.targets}
    limit = None
    if steady and steady.saturated:
        n = int(((done_s > steady.start_s) & (done_s <= end_s)).sum())
        limit = Limit(n, _per_second(n, end_s - steady.start_s)) if n else None
    filling = steady is not None and steady.filling
    return Observed(measurement, series, missed[settled], t_int_s[settled], limit, filling)


def latencies_ms(records: pa.Table, targets_ms: Mapping[str, float]) -> dict[str, FloatArray]:
    """Each per-request metric of each row: +inf where the request failed, nan where it says nothing.

    A cancelled request keeps what it had reached. What it had not reached is +inf once it is certain to
    exceed the target, and nan before that (or without a target). The metrics of a traffic class are named
    `chat.ttft`; they are nan in the rows of every other class.
    """
    found = _latencies_ms(records, targets_ms)
    classes = {name for name in pc.unique(records["traffic_class"]).to_pylist() if name}
    classes |= {name.rpartition(".")[0] for name in targets_ms if "." in name}
    for traffic_class in sorted(classes):
        prefix = f"{traffic_class}."
        own = {name.removeprefix(prefix): ms for name, ms in targets_ms.items() if name.startswith(prefix)}
        elsewhere = ~_of_class(records, traffic_class)
        for metric, values in _latencies_ms(records, own).items():
            values[elsewhere] = np.nan
            found[prefix + metric] = values
    return found


def latency_name(metric: str) -> str:
    """`ttft` of `chat.ttft`."""
    return metric.rpartition(".")[2]


def _of_class(records: pa.Table, traffic_class: str) -> BoolArray:
    """Rows of the class; all of them for the empty name."""
    if not traffic_class:
        return np.ones(records.num_rows, dtype=bool)
    own: BoolArray = pc.equal(records["traffic_class"], traffic_class).to_numpy(zero_copy_only=False)
    return own


def _latencies_ms(records: pa.Table, targets_ms: Mapping[str, float]) -> dict[str, FloatArray]:
    t_int, t_send, t_first, t_last, t_end, asked = (
        column(records, name)
        for name in ("t_int_ns", "t_send_ns", "t_first_ns", "t_last_ns", "t_end_ns", "output_tokens_asked")
    )
    answered, cancelled = _answered(records), _equals(records, "cancelled")
    tokens = output_tokens(records)
    several = tokens >= 2
    with np.errstate(divide="ignore", invalid="ignore"):
        latency = {
            "ttft": t_first - t_int,
            "ttft_wire": t_first - t_send,
            "tpot": np.where(several, (t_last - t_first) / (tokens - 1), np.nan),
            "e2e": np.where(cancelled, np.nan, t_last - t_int),
        }
        # Answers are at most as long as asked, so this bounds the TPOT of an unfinished one from below.
        at_least = {
            "ttft": t_end - t_int,
            "tpot": np.where(asked >= 2, (t_end - t_first) / (asked - 1), np.nan),
            "e2e": t_end - t_int,
        }
    latency["tpot"][cancelled] = np.nan
    for metric, values in latency.items():
        silent = answered & np.isnan(t_first)
        values[silent | ~(answered | cancelled)] = np.inf
        if metric in targets_ms:
            over = at_least[metric] > targets_ms[metric] * NS_PER_MS
            values[cancelled & np.isnan(values) & over] = np.inf
    latency["client_lag"] = t_send - t_int
    return {metric: values / NS_PER_MS for metric, values in latency.items()}


def output_tokens(records: pa.Table) -> FloatArray:
    """The server's ``usage.completion_tokens``; where it did not say, the number of chunks with content."""
    said = column(records, "output_tokens")
    return np.where(np.isnan(said), _chunk_counts(records), said)


def inter_chunk_gaps_ms(records: pa.Table) -> FloatArray:
    """Time between consecutive chunks of one answer, of all answers, in order of the later chunk's arrival."""
    stamps, owner = _chunks(records)
    same = owner[1:] == owner[:-1]
    gaps, at = np.diff(stamps)[same], stamps[1:][same]
    in_order: FloatArray = gaps[np.argsort(at, kind="stable")] / NS_PER_MS
    return in_order


def column(records: pa.Table, name: str) -> FloatArray:
    """A nullable integer column as float64, null as nan. Exact below 2^53: stamps of 104 days."""
    values: FloatArray = records[name].cast(pa.float64()).to_numpy().astype(np.float64, copy=True)
    return values


def _answered(records: pa.Table) -> BoolArray:
    answered: BoolArray = pc.is_null(records["error"]).to_numpy()
    return answered


def _equals(records: pa.Table, error: str) -> BoolArray:
    same: BoolArray = pc.fill_null(pc.equal(records["error"], error), False).to_numpy()
    return same


def _chunk_counts(records: pa.Table) -> FloatArray:
    counts: FloatArray = pc.list_value_length(records["chunk_ns"]).to_numpy().astype(np.float64)
    return counts


def _chunks(records: pa.Table) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Every chunk stamp in ns, with the row it belongs to."""
    stamps = pc.list_flatten(records["chunk_ns"]).to_numpy().astype(np.float64)
    return stamps, np.repeat(np.arange(records.num_rows), _chunk_counts(records).astype(np.int64))


def _window_s(table: pa.Table, context: RunContext) -> tuple[float, float]:
    """From the end of the warm-up to the end of the schedule, or to the last event where there was no more."""
    last_s = pc.max(table["t_end_ns"]).as_py() / NS_PER_S if table.num_rows else 0.0
    end_s = context.window_end_s or last_s
    if context.load.stopped_early:
        end_s = min(end_s, last_s)
    return context.warmup_s, max(end_s, context.warmup_s)


def _steadiness(table: pa.Table, window_s: tuple[float, float]) -> Steadiness | None:
    completed = column(table, "t_end_ns")
    completed[_equals(table, "timeout") | _equals(table, "cancelled")] = np.inf
    return steadiness(column(table, "t_int_ns") / NS_PER_S, completed / NS_PER_S, window_s)


def _per_second(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0


def _tokens_between(table: pa.Table, window_s: tuple[float, float]) -> float:
    """Tokens of answers that did not fail, spread evenly over each answer's chunks."""
    stamps, owner = _chunks(table)
    useful = _answered(table) | _equals(table, "cancelled")
    per_chunk = output_tokens(table) / np.maximum(_chunk_counts(table), 1)
    start_ns, end_ns = (bound * NS_PER_S for bound in window_s)
    inside = (stamps >= start_ns) & (stamps < end_ns) & useful[owner]
    return float(per_chunk[owner[inside]].sum())


def _estimates(
    said: Mapping[str, FloatArray], times: Mapping[str, float], targets: tuple[Target, ...]
) -> dict[str, Estimate]:
    wanted = {(metric, q) for metric in said for q in PERCENTILES} | {(t.metric, t.percentile) for t in targets}
    return {
        f"{metric}_p{q:g}_ms": intervals.percentile_interval(
            said[metric], q, n_effective=said[metric].size / deflation(times[metric])
        )
        for metric, q in sorted(wanted)
        if said[metric].size
    }


def _count(target: Target, latency_ms: FloatArray, tau: float) -> SloCount:
    return SloCount(
        metric=target.metric,
        percentile=target.percentile,
        target_ms=target.target_ms,
        misses=int((latency_ms > target.target_ms).sum()),
        n=latency_ms.size,
        autocorrelation_time=tau,
        deflation=deflation(tau),
    )


def _asked(
    table: pa.Table,
    judged: pa.Table,
    window_s: tuple[float, float],
    context: RunContext,
    said: Mapping[str, FloatArray],
) -> Asked:
    # Unsent without an error of the connection is the client's doing; refused is the engine's.
    unsent = np.isnan(column(judged, "t_send_ns")) & (_answered(judged) | _equals(judged, "cancelled"))
    scheduled = context.rate_rps is not None or context.kind == "ramp"
    load = context.load
    missing = load.planned - load.never_due - table.num_rows if scheduled and not load.stopped_early else 0
    return Asked(
        offered=judged.num_rows + missing,
        achieved=judged.num_rows - int(unsent.sum()),
        seconds=window_s[1] - window_s[0],
        scheduled=scheduled,
        tightest_ms=_tightest_ms(context.targets, said),
    )


def _tightest_ms(targets: tuple[Target, ...], said: Mapping[str, FloatArray]) -> float | None:
    """The tightest target that lateness is part of (TPOT is not); without one, the lowest median latency."""
    tightest = [t.target_ms for t in targets if t.latency != "tpot"]
    if not tightest:
        tightest = [float(np.median(said[m])) for m in ("ttft", "e2e") if m in said and said[m].size]
    return min((ms for ms in tightest if np.isfinite(ms)), default=None)
