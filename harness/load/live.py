"""Counts missed targets while the run goes on: as soon as a request is too old, not when it ends.

Knows nothing of percentiles or verdicts: it only tells when going on cannot help.
"""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from harness.load.exchange import Exchange

_DEADLINES = ("ttft", "e2e")


class _Promise(NamedTuple):
    name: str  # as in LoadPlan.slo_ms
    metric: str
    target_ns: int
    young: deque[Exchange]  # not yet as old as the target; only of metrics that age tells about


class LiveMisses:
    """A request counts once per target. ``counts``: target -> requests known to have missed it."""

    def __init__(self, slo_ms: Mapping[str, float], from_ns: int = 0) -> None:
        """``from_ns``: requests due before are not counted. Raises ValueError for a metric nobody can count."""
        self._by_class: dict[str, list[_Promise]] = {}  # "": of every request
        for name, ms in slo_ms.items():
            traffic_class, _, metric = name.rpartition(".")
            if metric not in {*_DEADLINES, "tpot"}:
                raise ValueError(f"slo_ms: cannot be counted while running: {name}")
            promise = _Promise(name, metric, round(ms * 1e6), deque())
            self._by_class.setdefault(traffic_class, []).append(promise)
        self._aging = [p for promises in self._by_class.values() for p in promises if p.metric in _DEADLINES]
        self.from_ns = from_ns
        self.counts = dict.fromkeys(slo_ms, 0)

    def watch(self, exchange: Exchange) -> None:
        """Called in order of ``t_int_ns``."""
        for promise in self._of(exchange):
            if promise.metric in _DEADLINES:
                promise.young.append(exchange)

    def look(self, now_ns: int) -> None:
        """Counts every request that has just become older than a target without meeting it."""
        for promise in self._aging:
            young = promise.young
            while young and young[0].t_int_ns + promise.target_ns < now_ns:
                exchange = young.popleft()
                came_ns = exchange.t_first_ns if promise.metric == "ttft" else exchange.t_end_ns
                if came_ns is None:
                    self._count(promise, exchange)

    def settle(self, exchange: Exchange) -> None:
        """The request is over: counts what was not counted yet. A failed request misses every target."""
        if exchange.error == "cancelled":
            return
        for promise in self._of(exchange):
            took_ns = _took_ns(promise.metric, exchange)
            if exchange.error is not None or (took_ns is not None and took_ns > promise.target_ns):
                self._count(promise, exchange)

    def _of(self, exchange: Exchange) -> list[_Promise]:
        of_all = self._by_class.get("", [])
        traffic_class = exchange.request.traffic_class
        return of_all + self._by_class.get(traffic_class, []) if traffic_class else of_all

    def _count(self, promise: _Promise, exchange: Exchange) -> None:
        if promise.name not in exchange.missed and exchange.t_int_ns >= self.from_ns:
            exchange.missed = exchange.missed | {promise.name}
            self.counts[promise.name] += 1


def _took_ns(metric: str, exchange: Exchange) -> float | None:
    if not exchange.chunk_ns:
        return None
    first_ns, last_ns = exchange.chunk_ns[0], exchange.chunk_ns[-1]
    if metric == "ttft":
        return first_ns - exchange.t_int_ns
    if metric == "e2e":
        return last_ns - exchange.t_int_ns
    *_, output_tokens = exchange.usage
    if output_tokens is None or output_tokens < 2:
        return None
    return (last_ns - first_ns) / (output_tokens - 1)
