"""When a run of load has shown enough: rules that end it early. Pure.

Knows nothing of engines. Every rule takes the careful side: it ends what could not have met its targets.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from harness.judge import allowed_misses, live_hopeless
from harness.load.records import LiveCounters
from harness.observe import Target
from scenarios.workload import Schedule, ScheduledRequest

NS = 1_000_000_000


class StopWhen(Protocol):
    def __call__(self, counters: LiveCounters, /) -> bool: ...


def concerned(schedule: Schedule, target: Target, from_s: float = 0.0) -> list[ScheduledRequest]:
    """The requests that a target may be about. Later turns of a session may become due at any time."""
    return [
        r
        for r in schedule.requests
        if (not target.traffic_class or r.traffic_class == target.traffic_class)
        and (r.t_int_ns >= from_s * NS or r.session is not None)
    ]


def certain_misses(schedule: Schedule, from_s: float, targets: Sequence[Target]) -> dict[str, int]:
    """Target -> so many misses of the requests due from ``from_s`` put its percentile above it for certain."""
    return {t.metric: 1 + allowed_misses(len(concerned(schedule, t, from_s)), t.percentile) for t in targets}


def hopeless(schedule: Schedule, from_s: float, targets: Sequence[Target], alpha: float) -> StopWhen:
    """Whether the counters speak against any target. All requests due by then count as seen: the careful side."""
    due_s = {t: sorted(r.t_int_ns / NS for r in concerned(schedule, t, from_s)) for t in targets}

    def speaks_against(counters: LiveCounters) -> bool:
        seen = {t: bisect_right(due_s[t], counters.elapsed_s) for t in targets}
        return any(
            live_hopeless(min(counters.misses.get(t.metric, 0), n), n, t.percentile, alpha / len(targets))
            for t, n in seen.items()
        )

    return speaks_against
