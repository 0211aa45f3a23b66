"""Counts missed targets while the run goes on: as soon as a request is too old, not when it ends.

Knows nothing of percentiles or verdicts: it only tells when going on cannot help.
"""

from collections import deque
from collections.abc import Mapping

from harness.load.exchange import Exchange
from harness.load.records import Record

_DEADLINES = ("ttft", "e2e")


class LiveMisses:
    """A request counts once per target. ``counts``: target -> requests known to have missed it."""

    def __init__(self, slo_ms: Mapping[str, float], from_ns: int = 0) -> None:
        """``from_ns``: requests due before are not counted."""
        unknown = set(slo_ms) - {*_DEADLINES, "tpot"}
        if unknown:
            raise ValueError(f"slo_ms: cannot be counted while running: {', '.join(sorted(unknown))}")
        self._target_ns = {metric: round(ms * 1e6) for metric, ms in slo_ms.items()}
        self._young: dict[str, deque[Exchange]] = {m: deque() for m in _DEADLINES if m in slo_ms}
        self._from_ns = from_ns
        self.counts = dict.fromkeys(slo_ms, 0)

    def watch(self, exchange: Exchange) -> None:
        """Called in order of ``t_int_ns``."""
        for young in self._young.values():
            young.append(exchange)

    def look(self, now_ns: int) -> None:
        """Counts every request that has just become older than a target without meeting it."""
        for metric, young in self._young.items():
            target_ns = self._target_ns[metric]
            while young and young[0].t_int_ns + target_ns < now_ns:
                exchange = young.popleft()
                came_ns = exchange.t_first_ns if metric == "ttft" else exchange.t_end_ns
                if came_ns is None:
                    self._count(metric, exchange)

    def settle(self, exchange: Exchange, record: Record) -> None:
        """The request is over: counts what was not counted yet. A failed request misses every target."""
        if record.error == "cancelled":
            return
        for metric, target_ns in self._target_ns.items():
            took_ns = _took_ns(metric, record)
            if record.error is not None or (took_ns is not None and took_ns > target_ns):
                self._count(metric, exchange)

    def _count(self, metric: str, exchange: Exchange) -> None:
        if metric not in exchange.missed and exchange.t_int_ns >= self._from_ns:
            exchange.missed.add(metric)
            self.counts[metric] += 1


def _took_ns(metric: str, record: Record) -> float | None:
    if record.t_first_ns is None or record.t_last_ns is None:
        return None
    if metric == "ttft":
        return record.t_first_ns - record.t_int_ns
    if metric == "e2e":
        return record.t_last_ns - record.t_int_ns
    if record.output_tokens is None or record.output_tokens < 2:
        return None
    return (record.t_last_ns - record.t_first_ns) / (record.output_tokens - 1)
