"""What the traffic of a workload looks like: is it what was asked for, and how much of it is shared?

Read off a schedule, before anything is sent. Knows nothing of servers or of how a summary is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from scenarios.replay import Replay, replay
from scenarios.traffic import Arrivals, TraceFile, Workload
from scenarios.words import Words
from scenarios.workload import Schedule, ScheduledRequest, hold, sequence

FloatArray = npt.NDArray[np.float64]

PREFIX_BLOCK_WORDS = 16  # sharing is counted in whole blocks, as prefix caches do
KOLMOGOROV_95 = 1.36  # the 95 % point of sqrt(n) times the Kolmogorov distance


@dataclass(frozen=True, slots=True)
class Distribution:
    """Percentiles of a quantity over the requests, or conversations, of a schedule."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class ArrivalFit:
    """Kolmogorov distance of the gaps between begins (of conversations) to the process that was asked for.

    ``noise``: 1.36/sqrt(n), below which the distance of a right process stays in 95 of 100 schedules.
    """

    process: str
    gaps: int
    distance: float
    noise: float


@dataclass(frozen=True, slots=True)
class ClassTraffic:
    """One class of the mix, or all of the traffic under the name ``""``. Tokens per request, history included."""

    name: str
    requests: int
    rate_rps: float | None
    prompt_tokens: Distribution
    output_tokens: Distribution
    sessions: int
    turns: Distribution | None
    pause_s: Distribution | None


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """What became of a trace file's rows. ``replayed``: requests of the window after thinning."""

    file: str
    rows: int
    malformed: int
    first_problems: tuple[str, ...]
    unusable: dict[str, int]
    replayed: int
    sessions: int
    seconds: float
    rate_rps: float
    shortened: int


@dataclass(frozen=True, slots=True)
class TrafficSummary:
    """``shared_prefix``: share of the prompt tokens that stand in a prefix some earlier request had, too."""

    seed: int
    requests: int
    duration_s: float | None  # None: a closed loop has no times
    rate_rps: float | None
    achieved_rps: float | None
    arrivals: ArrivalFit | None
    parts: tuple[ClassTraffic, ...]
    shared_prefix: float
    traces: tuple[TraceSummary, ...]
    digest: str


def summarise(workload: Workload, words: Words, *, rate_rps: float, duration_s: float, seed: int) -> TrafficSummary:
    """Of one hold; of a closed loop, the same number of requests without times. Raises TraceError."""
    closed = workload.arrivals.process == "closed"
    if closed:
        schedule = sequence(workload, words, n=max(1, round(rate_rps * duration_s)), seed=seed)
    else:
        schedule = hold(workload, words, rate_rps=rate_rps, duration_s=duration_s, seed=seed)
    names = [part.name for part in workload.mix if part.name]
    requests = schedule.requests
    seconds = None if closed else duration_s
    files = [t.trace for t in (workload, *workload.classes) if t.trace is not None]
    return TrafficSummary(
        seed=seed,
        requests=len(requests),
        duration_s=seconds,
        rate_rps=schedule.rate_rps,
        achieved_rps=None if seconds is None else len(requests) / seconds,
        arrivals=None if closed else arrival_fit(workload, schedule),
        parts=tuple(
            _class(name, [r for r in requests if r.traffic_class == name], seconds)
            for name in (names or [""])
            if any(r.traffic_class == name for r in requests)
        ),
        shared_prefix=shared_prefix(requests),
        traces=tuple(_trace(spec) for spec in files),
        digest=schedule.digest,
    )


def arrival_fit(workload: Workload, schedule: Schedule) -> ArrivalFit | None:
    """None where there are too few begins to say. Conversations that had begun before the schedule do not count."""
    arrivals = workload.arrivals
    if arrivals.process == "trace":
        times = np.array([r.t_int_ns / 1e9 for r in schedule.requests])
    else:
        times = np.array([r.t_int_ns / 1e9 for r in schedule.requests if r.turn == 0])
    if len(times) < 2:
        return None
    gaps = np.diff(times) / np.diff(times).mean()
    if arrivals.process == "trace":
        assert workload.trace is not None
        distance = _distance_to_trace(gaps, replay(workload.trace), schedule)
    else:
        distance = _distance(gaps, arrivals)
    return ArrivalFit(arrivals.process, len(gaps), distance, KOLMOGOROV_95 / len(gaps) ** 0.5)


def _distance(gaps: FloatArray, arrivals: Arrivals) -> float:
    """To the gaps of mean 1 that the process has; constant ones are one value, met to a thousandth or not."""
    if arrivals.process == "constant":
        return float(np.mean(np.abs(gaps - 1) > 1e-3))
    shape = 1.0 if arrivals.gap_cv is None else arrivals.gap_cv**-2
    return float(stats.kstest(gaps, stats.gamma(shape, scale=1 / shape).cdf).statistic)


def _distance_to_trace(gaps: FloatArray, recorded: Replay, schedule: Schedule) -> float:
    """To the gaps of as many requests of the file itself, read from where the seed begins."""
    kept = None
    if recorded.spec.fit == "thin" and schedule.rate_rps is not None:
        kept = recorded.thinned(min(1.0, schedule.rate_rps / recorded.rate_rps))
    events = recorded.forward(recorded.offset_s(schedule.seed), kept)
    own = np.diff([next(events).at_s for _ in range(len(gaps) + 1)])
    if own.mean() == 0:
        return 0.0
    return float(stats.ks_2samp(np.round(gaps, 6), np.round(own / own.mean(), 6), method="asymp").statistic)


def shared_prefix(requests: Sequence[ScheduledRequest]) -> float:
    """What an unlimited prefix cache could save: words of leading blocks that an earlier prompt began with, too.

    Words stand for tokens, which is exact for made-up prompts. 0 of nothing.
    """
    seen: set[int] = set()
    shared = total = 0
    for request in requests:
        said = request.prompt.split()
        total += len(said)
        place, hit = 0, True
        for start in range(0, len(said) - PREFIX_BLOCK_WORDS + 1, PREFIX_BLOCK_WORDS):
            place = hash((place, *said[start : start + PREFIX_BLOCK_WORDS]))
            hit = hit and place in seen
            shared += PREFIX_BLOCK_WORDS * hit
            seen.add(place)
    return shared / total if total else 0.0


def _class(name: str, requests: Sequence[ScheduledRequest], seconds: float | None) -> ClassTraffic:
    turns: dict[int, int] = {}
    for r in requests:
        if r.session is not None:
            turns[r.session] = max(turns.get(r.session, 0), r.turn + 1)
    pauses = [r.think_ns / 1e9 for r in requests if r.after is not None]
    return ClassTraffic(
        name=name,
        requests=len(requests),
        rate_rps=None if seconds is None else len(requests) / seconds,
        prompt_tokens=_distribution([r.prompt_tokens for r in requests]),
        output_tokens=_distribution([r.output_tokens for r in requests]),
        sessions=len(turns),
        turns=_distribution(list(turns.values())) if turns else None,
        pause_s=_distribution(pauses) if pauses else None,
    )


def _distribution(values: Sequence[float]) -> Distribution:
    p50, p95, p99 = np.percentile(values, [50, 95, 99], method="inverted_cdf").tolist()
    return Distribution(float(np.mean(values)), p50, p95, p99, float(max(values)))


def _trace(spec: TraceFile) -> TraceSummary:
    recorded = replay(spec)
    trace = recorded.trace
    return TraceSummary(
        file=spec.file,
        rows=trace.rows,
        malformed=trace.malformed,
        first_problems=tuple(str(p) for p in trace.problems),
        unusable=dict(trace.unusable),
        replayed=recorded.requests,
        sessions=len(recorded.sessions),
        seconds=recorded.seconds,
        rate_rps=recorded.rate_rps,
        shortened=recorded.shortened,
    )
