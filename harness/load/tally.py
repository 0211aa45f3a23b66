"""What a generator process knows of its own run, and how the tallies of several become one result.

Knows nothing of what was answered: the rows do.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Self

from harness.load.records import LoadResult


@dataclass(frozen=True, slots=True)
class Tally:
    """Of one process. ``clock_*``: its monotonic clock against that of the process which coordinates the run."""

    t0_monotonic_ns: int  # on the coordinating process's clock
    t0_wall_iso: str
    elapsed_s: float
    stopped_early: str | None
    planned: int
    sent: int
    never_due: int
    lateness_ns: "array[int]"
    loop_lag_ns: "array[int]"
    receive_lag_ns: "array[int]"
    cpu_s: float
    max_rss_bytes: int
    connections_opened: int
    stale_connections_replaced: int
    idle_connections_dropped: int
    locust_version: str
    scheduling: str
    clock_offset_ns: int = 0
    clock_uncertainty_ns: int = 0

    def to_message(self) -> dict[str, Any]:
        """Of types that any serialisation has."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: v.tobytes() if isinstance(v, array) else v for name, v in values.items()}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        values: dict[str, Any] = {n: array("q", v) if isinstance(v, bytes) else v for n, v in message.items()}
        return cls(**values)


def combined(tallies: Sequence[Tally], records_path: Path, *, fleet: bool) -> LoadResult:
    """The result of a run by these processes, at least one; ``cpu_share`` is that of the busiest.

    ``fleet``: a master coordinated them, and read their clocks.
    """
    first = tallies[0]
    lateness_ns = sorted(chain.from_iterable(t.lateness_ns for t in tallies))
    loop_lag_ns = sorted(chain.from_iterable(t.loop_lag_ns for t in tallies))
    receive_lag_ns = sorted(chain.from_iterable(t.receive_lag_ns for t in tallies))
    return LoadResult(
        records_path=records_path,
        t0_monotonic_ns=first.t0_monotonic_ns,
        t0_wall_iso=first.t0_wall_iso,
        elapsed_s=max(t.elapsed_s for t in tallies),
        stopped_early=next((t.stopped_early for t in tallies if t.stopped_early), None),
        planned=sum(t.planned for t in tallies),
        sent=sum(t.sent for t in tallies),
        send_lateness_p50_ms=_percentile(lateness_ns, 50) / 1e6,
        send_lateness_p99_ms=_percentile(lateness_ns, 99) / 1e6,
        loop_lag_p99_ms=_percentile(loop_lag_ns, 99) / 1e6,
        cpu_s=sum(t.cpu_s for t in tallies),
        cpu_share=max(t.cpu_s / t.elapsed_s if t.elapsed_s else 0.0 for t in tallies),
        max_rss_bytes=sum(t.max_rss_bytes for t in tallies),
        connections_opened=sum(t.connections_opened for t in tallies),
        stale_connections_replaced=sum(t.stale_connections_replaced for t in tallies),
        locust_version=first.locust_version,
        idle_connections_dropped=sum(t.idle_connections_dropped for t in tallies),
        scheduling=min((t.scheduling for t in tallies), key=_SCHEDULING.index),
        never_due=sum(t.never_due for t in tallies),
        receive_lag_p50_ms=_percentile(receive_lag_ns, 50) / 1e6 if receive_lag_ns else None,
        receive_lag_p99_ms=_percentile(receive_lag_ns, 99) / 1e6 if receive_lag_ns else None,
        workers=len(tallies),
        clock_offset_ms=max((t.clock_offset_ns for t in tallies), key=abs) / 1e6 if fleet else None,
        clock_uncertainty_ms=max(t.clock_uncertainty_ns for t in tallies) / 1e6 if fleet else None,
    )


_SCHEDULING = ("none", "short slice", "nice", "realtime")


def _percentile(ordered: Sequence[int], percent: float) -> int:
    """Nearest rank; 0 of nothing."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else 0
