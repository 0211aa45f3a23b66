"""Measurement -> Verdict: does every latency promise hold? Pure.

Knows nothing of raw records or load. The evidence is that of stats/sequential.py, on counts deflated by the
autocorrelation of the latencies seen so far, looked at on a geometric schedule; the first look that decides
stands. Why: docs/metrics.md and ADR 6; how often it is wrong: `make calibrate`.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.measurement import EvidencePoint, SloVerdict, Verdict
from harness.observe import Observed, Target
from harness.stats.autocorrelation import LEAST_DEFLATION, effective_counts, latency_time
from harness.stats.sequential import log_e_fail, log_e_pass

FloatArray = npt.NDArray[np.float64]

FIRST_LOOK = 40  # requests
LOOK_GROWTH = 1.15
PASS_DEFLATION = 3.0  # times tau: a quiet stretch of a queue looks less correlated than the queue is
FAIL_DEFLATION = 1.25  # times tau
FAIL_LEAST = 20.0  # deflated requests: one bad stretch is one observation, however many requests it caught
# Or nine tenths of at least so many requests: latencies that only grow are never worth 20 independent ones.
OVERWHELMING_N, OVERWHELMING_SHARE = 200, 0.9
FARTHEST = 100.0  # an estimate beyond so many times the present length is called hopeless
ESTIMATE_STEP = 1.02


def judge(observed: Observed, alpha: float, earlier: Sequence[Observed] = ()) -> Verdict:
    """VOID, FAIL (saturated, or a target missed), PASS (every target holds), else UNDECIDED.

    ``earlier``: runs at the same rate on the same engine that this one continues, oldest first; the evidence
    is that of all of them. PASS is wrong with probability <= alpha, so is FAIL.
    """
    runs = [*earlier, observed]
    void = tuple(reason for run in runs for reason in run.measurement.audit.void_reasons)
    if void:
        return Verdict(outcome="VOID", reasons=void, slo=())
    counts = observed.measurement.slo
    verdicts = tuple(
        evidence(
            np.concatenate([run.series[count.metric] for run in runs]),
            Target(count.metric, count.percentile, count.target_ms),
            alpha,
            promises=len(counts),
        )
        for count in counts
    )
    reasons = [
        f"saturated: completions were {run.measurement.completions_per_arrival:.0%} of the arrivals"
        for run in runs
        if run.measurement.saturated
    ]
    reasons += [_sentence(v) for v in verdicts if v.outcome == "FAIL"]
    if reasons:
        return Verdict(outcome="FAIL", reasons=tuple(reasons), slo=verdicts)
    undecided = tuple(_sentence(v) for v in verdicts if v.outcome == "UNDECIDED")
    if undecided or not verdicts:
        return Verdict(outcome="UNDECIDED", reasons=undecided or ("there is no target to judge",), slo=verdicts)
    return Verdict(outcome="PASS", reasons=tuple(_sentence(v) for v in verdicts), slo=verdicts)


def evidence(
    latency_ms: npt.ArrayLike,
    target: Target,
    alpha: float,
    promises: int = 1,
    tau: FloatArray | None = None,
) -> SloVerdict:
    """The verdict on one promise of ``promises``, and the trace of evidence that led to it.

    latency_ms: shape (n,), in order of intended send time, inf where the request failed; runs that follow
    each other on the same engine may be concatenated. ``n``, ``misses``, the e-values and ``deflation`` of
    the result are those of the look that decided, or of the last one; ``deflation`` is that of E_fail where
    it decided, else that of E_pass. tau: `look_times` of the same latencies, where they are known already.
    """
    latency = np.asarray(latency_ms, dtype=np.float64)
    q0 = _tolerated(target.percentile)
    log_pass_at, log_fail_at = math.log(1 / alpha), math.log(promises / alpha)
    total = np.cumsum(latency > target.target_ms)
    sizes = looks(latency.size)
    tau = look_times(latency) if tau is None else tau
    misses = np.array([int(total[size - 1]) for size in sizes], dtype=np.int64)
    log_pass, log_fail = _log_evidence(misses, sizes, tau, q0)
    trace = tuple(
        EvidencePoint(n=size, misses=m, log_e_pass=p, log_e_fail=f)
        for size, m, p, f in zip(sizes, misses.tolist(), log_pass.tolist(), log_fail.tolist(), strict=True)
    )
    decided = np.flatnonzero((log_pass >= log_pass_at) | (log_fail >= log_fail_at))
    outcome: Literal["PASS", "FAIL", "UNDECIDED"] = "UNDECIDED"
    at = len(sizes) - 1
    if decided.size:
        at = int(decided[0])
        outcome = "PASS" if log_pass[at] >= log_pass_at else "FAIL"
    return SloVerdict(
        metric=target.metric,
        percentile=target.percentile,
        target_ms=target.target_ms,
        outcome=outcome,
        log_e_pass=trace[at].log_e_pass if trace else 0.0,
        log_e_fail=trace[at].log_e_fail if trace else 0.0,
        n=trace[at].n if trace else 0,
        misses=trace[at].misses if trace else 0,
        deflation=(FAIL_DEFLATION if outcome == "FAIL" else PASS_DEFLATION) * (float(tau[at]) if trace else 1.0),
        requests_to_decide=(
            _requests_to_decide(trace[at], float(tau[at]), q0, log_pass_at, log_fail_at)
            if trace and outcome == "UNDECIDED"
            else None
        ),
        trace=trace,
    )


def looks(n: int) -> list[int]:
    """Sample sizes at which the evidence is looked at: growing by 15 % from `FIRST_LOOK`, and n itself."""
    sizes, size = [], float(FIRST_LOOK)
    while size < n:
        sizes.append(int(size))
        size *= LOOK_GROWTH
    return [*sizes, n] if n > 0 else []


def look_times(latency_ms: npt.ArrayLike) -> FloatArray:
    """Autocorrelation time of log latency at each of `looks`, from what came before it; latency_ms as above."""
    latency = np.asarray(latency_ms, dtype=np.float64)
    return np.array([latency_time(latency[:size]) for size in looks(latency.size)])


def allowed_misses(n: int, percentile: float) -> int:
    """The most misses with which the percentile of n requests still meets its target; one more ends a run early."""
    return math.floor(round(n * _tolerated(percentile), 9))


def live_hopeless(misses: int, n: int, percentile: float, alpha: float) -> bool:
    """Whether counts alone, deflated by what any queue needs at least, already speak against the target.

    Ends a hold of a search; it is no verdict, since the correlation of its latencies is not known yet.
    """
    t, trials = effective_counts(misses, n, LEAST_DEFLATION)
    return n >= FIRST_LOOK and bool(log_e_fail(t, trials, _tolerated(percentile)) >= math.log(1 / alpha))


def _tolerated(percentile: float) -> float:
    return (100 - percentile) / 100


def _log_evidence(
    misses: npt.ArrayLike, n: npt.ArrayLike, tau: npt.ArrayLike, q0: float
) -> tuple[FloatArray, FloatArray]:
    """E_pass and E_fail at each look; E_fail is 1 at most where there are too few deflated requests."""
    count, size, time = (np.asarray(value, dtype=np.float64) for value in (misses, n, tau))
    log_pass = log_e_pass(*effective_counts(count, size, PASS_DEFLATION * time), q0)
    t, trials = effective_counts(count, size, FAIL_DEFLATION * time)
    log_fail = log_e_fail(t, trials, q0)
    enough = (trials >= FAIL_LEAST) | ((size >= OVERWHELMING_N) & (count >= OVERWHELMING_SHARE * size))
    return log_pass, np.where(enough, log_fail, np.minimum(log_fail, 0.0))


def _requests_to_decide(
    last: EvidencePoint, tau: float, q0: float, log_pass_at: float, log_fail_at: float
) -> int | None:
    """How many more requests would decide if misses and correlation stay as they are."""
    growth = ESTIMATE_STEP ** np.arange(1, math.ceil(math.log(FARTHEST, ESTIMATE_STEP)))
    log_pass, log_fail = _log_evidence(last.misses * growth, last.n * growth, tau, q0)
    enough = (log_pass >= log_pass_at) | (log_fail >= log_fail_at)
    return math.ceil(last.n * (growth[int(np.argmax(enough))] - 1)) if enough.any() else None


def _sentence(v: SloVerdict) -> str:
    promise = f"{v.metric} P{v.percentile:g} <= {v.target_ms:g} ms"
    counted = f"{v.misses} of {v.n} requests above it, worth {v.n / v.deflation:.0f} independent ones"
    if v.outcome == "PASS":
        return f"{promise} holds: {counted}"
    if v.outcome == "FAIL":
        return f"{promise} is missed: {counted}"
    more = f"about {v.requests_to_decide} more would decide" if v.requests_to_decide else "too close to call"
    return f"{promise} is undecided: {counted}; {more}"
