"""Was the load what was asked for? Every limit beyond which a run is void, and by whose doing.

Knows nothing of records or of what a good latency is. Why each limit: docs/metrics.md.
"""

from dataclasses import dataclass

from harness.load.records import LoadResult
from harness.measurement import Audit

LATENESS_FLOOR_MS = 1.0
LATENESS_SHARE = 0.02  # of the tightest latency that lateness is part of
ACHIEVED_SHARE = 0.99
STEAL_LIMIT = 0.05


@dataclass(frozen=True, slots=True)
class Asked:
    """What was due in the judged window of ``seconds``, and what of it was really sent."""

    offered: int
    achieved: int
    seconds: float
    scheduled: bool  # False: a closed loop offers no rate
    tightest_ms: float | None  # the tightest latency that lateness is part of; None: there is none


def audit(asked: Asked, load: LoadResult, steal_share: float) -> Audit:
    limit_ms = max(LATENESS_FLOOR_MS, LATENESS_SHARE * (asked.tightest_ms or 0.0))
    reasons = []
    if load.send_lateness_p99_ms > limit_ms:
        reasons.append(f"requests were sent late: P99 {load.send_lateness_p99_ms:.2f} ms, limit {limit_ms:.2f} ms")
    if asked.achieved < ACHIEVED_SHARE * asked.offered:
        reasons.append(f"only {asked.achieved} of {asked.offered} due requests were sent")
    if steal_share > STEAL_LIMIT:
        reasons.append(f"the hypervisor took {steal_share:.0%} of the CPU time, limit {STEAL_LIMIT:.0%}")
    return Audit(
        offered_rps=_per_second(asked.offered, asked.seconds) if asked.scheduled else None,
        achieved_rps=_per_second(asked.achieved, asked.seconds),
        send_lateness_p50_ms=load.send_lateness_p50_ms,
        send_lateness_p99_ms=load.send_lateness_p99_ms,
        send_lateness_limit_ms=limit_ms,
        loop_lag_p99_ms=load.loop_lag_p99_ms,
        generator_cpu_share=load.cpu_share,
        connections_opened=load.connections_opened,
        stale_connections_replaced=load.stale_connections_replaced,
        steal_share=steal_share,
        void_reasons=tuple(reasons),
    )


def _per_second(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
