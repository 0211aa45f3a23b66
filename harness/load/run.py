"""One run of a plan: fires each request when it is due, watches what is on its way, counts.

Everything is a callback of an event loop, and nothing waits. Knows nothing of Locust, gevent or sockets.
"""

import heapq
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic_ns

from harness.load.exchange import Exchange
from harness.load.live import LiveMisses
from harness.load.loop import FIRST, READABLE, Loop
from harness.load.records import NONE, LiveCounters, PackedPlan, PlannedRequest
from harness.load.rows import pack_row
from harness.load.timers import NEVER_NS, TimerFd
from harness.load.transport import Transport

_TICK_NS = 10_000_000
_LIVE_NS = 250_000_000
_LATE_NS = 1_000_000
_BURST = 32  # requests fired in a row, when behind, before answers are looked at
_MOST_UNREAD = 1_000  # answers that wait for an idle moment to be recorded


class LoadRun:
    """``on_done`` is told of every request that is over, ``on_live`` four times a second, ``on_over`` once."""

    def __init__(
        self,
        plan: PackedPlan,
        loop: Loop,
        *,
        on_done: Callable[[Exchange], object],
        on_live: Callable[[], object],
        on_over: Callable[[], object],
    ) -> None:
        """Raises OSError when the server's name is unknown, ValueError for a target that nobody can count."""
        self.plan = plan
        self.transport = Transport(plan, loop, on_sent=self._sent, on_end=self._ended, on_alarm=self._fire_what_is_due)
        self.rows: list[bytes] = []  # of every request that is over (rows.py)
        self.lateness_ns = array("q")
        self.loop_lag_ns = array("q")
        self.stopped_early: str | None = None
        self.t0_ns = self.elapsed_ns = 0
        self.cpu_s = 0.0
        self._on_done, self._on_live, self._on_over = on_done, on_live, on_over
        self._misses = LiveMisses(plan.slo_ms)
        self._due: list[tuple[int, int]] = []  # a heap of (due, position in plan.requests)
        followed = plan.requests.column("after")
        self._followers = {after: at for at, after in enumerate(followed) if after != NONE}  # by index -> position
        self._firsts = deque(at for at, after in enumerate(followed) if after == NONE)  # positions nobody scheduled yet
        self._in_flight: dict[int, Exchange] = {}  # in the order in which they were due
        self._unread: deque[Exchange] = deque()
        self._pacer, self._ticker = TimerFd(), TimerFd()
        self._pacing = loop.io(self._pacer.fd, READABLE, priority=FIRST)
        self._ticking = loop.io(self._ticker.fd, READABLE, priority=FIRST)
        self._idle = loop.idle()
        self._n_sent = self._n_done = self._n_failed = self._n_late = self._n_too_late = 0
        self._fired_ns = self._busy_since_ns = self._tick_due_ns = self._live_due_ns = 0
        self._cpu_before_s = 0.0
        self._over = False

    def start(self, t0_ns: int) -> None:
        """From t0 until every request has ended, in whatever way. Nothing happens if it was stopped before."""
        if self._over:
            return
        self.t0_ns = self._fired_ns = t0_ns
        self._tick_due_ns = t0_ns - _TICK_NS
        self._live_due_ns = t0_ns + _LIVE_NS
        self._misses.from_ns = t0_ns + self.plan.misses_from_ns
        self._cpu_before_s = time.process_time()
        if self.plan.mode == "open":
            t_int_ns = self.plan.requests.column("t_int_ns")
            self._due = [(t0_ns + t_int_ns[at], at) for at in self._firsts]
            self._firsts.clear()
            heapq.heapify(self._due)
        else:
            assert self.plan.concurrency is not None
            lanes = min(self.plan.concurrency, len(self._firsts))
            self._due = [(t0_ns, self._firsts.popleft()) for _ in range(lanes)]
        self._ticking.start(self._tick)
        self._ticker.set(t0_ns, every_ns=_TICK_NS)
        self._pacing.start(self._fire_what_is_due)
        self._fire_what_is_due()
        self._finish_if_done()  # there may be nothing to do

    def stop(self, why: str) -> None:
        """Ends the run now; what is in flight is cut."""
        if self.stopped_early is None and not self._over:
            self.stopped_early = why
            self._due.clear()
            self._firsts.clear()
            self._cut(list(self._in_flight.values()), "cancelled")
            self._finish_if_done()

    def read_all(self) -> None:
        """Makes the rows that there was no time for."""
        while self._unread:
            self._read_one()

    @property
    def never_due(self) -> int:
        """Later turns whose time did not come before ``until_ns``, or before the end."""
        return self._n_too_late + len(self._followers)

    def counters(self) -> LiveCounters:
        now_ns = monotonic_ns()
        return LiveCounters(
            elapsed_s=round((self.elapsed_ns or now_ns - self.t0_ns) / 1e9, 3),
            planned=len(self.plan.requests),
            sent=self._n_sent,
            done=self._n_done,
            failed=self._n_failed,
            in_flight=len(self._in_flight),
            late=self._n_late,
            misses=dict(self._misses.counts),
            newest_token_age_s=round((now_ns - self._heard_ns) / 1e9, 3) if self._in_flight else None,
        )

    @property
    def _heard_ns(self) -> int:
        return max(self.transport.newest_bytes_ns, self._busy_since_ns)

    def _fire_what_is_due(self) -> None:
        due = self._due
        for _ in range(_BURST):
            if not due or due[0][0] > monotonic_ns():
                break
            due_ns, at = heapq.heappop(due)
            self._fire(self.plan.requests[at], due_ns)
        if not self._over:
            self._set_alarm()

    def _set_alarm(self) -> None:
        next_ns = self._due[0][0] if self._due else NEVER_NS
        self.transport.alarm_ns = next_ns
        self._pacer.set(next_ns)

    def _fire(self, request: PlannedRequest, due_ns: int) -> None:
        exchange = Exchange(request, due_ns)
        self._fired_ns = monotonic_ns()
        if not self._in_flight:
            self._busy_since_ns = self._fired_ns
        self._in_flight[request.index] = exchange
        self._misses.watch(exchange)
        self.transport.send(exchange)

    def _sent(self, exchange: Exchange) -> None:
        self._n_sent += 1
        lateness_ns = exchange.lateness_ns
        self.lateness_ns.append(lateness_ns)
        self._n_late += lateness_ns > _LATE_NS

    def _ended(self, exchange: Exchange) -> None:
        """A session goes on after a failure too: a failing engine is not spared its later turns."""
        del self._in_flight[exchange.request.index]
        self._n_done += 1
        if not self._unread:
            self._idle.start(self._read_one)
        self._unread.append(exchange)
        if self.stopped_early is None:
            assert exchange.t_end_ns is not None
            self._follow(exchange.request.index, exchange.t_end_ns)
        self._finish_if_done()

    def _follow(self, index: int, end_ns: int) -> None:
        """The next turn of its session; after the last one, a lane of the closed loop takes another session."""
        following = self._followers.pop(index, None)
        if following is not None:
            due_ns = end_ns + self.plan.requests.column("think_ns")[following]
            if self.plan.until_ns is not None and due_ns >= self.t0_ns + self.plan.until_ns:
                self._n_too_late += 1
                return
        elif self._firsts:
            following = self._firsts.popleft()
            due_ns = end_ns + self.plan.think_time_ns
        else:
            return
        heapq.heappush(self._due, (due_ns, following))
        if self._due[0][0] < self.transport.alarm_ns:
            self._set_alarm()

    def _read_one(self) -> None:
        """One row, made while the loop has nothing else to do."""
        exchange = self._unread.popleft()
        if not self._unread:
            self._idle.stop()
        self.rows.append(pack_row(exchange, self.t0_ns))
        self._n_failed += exchange.error is not None
        self._misses.settle(exchange)
        self._on_done(exchange)

    def _tick(self) -> None:
        """A clock that measures how late the loop serves it, and what is due by the clock."""
        self._tick_due_ns += _TICK_NS * self._ticker.expirations()
        now_ns = monotonic_ns()
        self.loop_lag_ns.append(now_ns - self._tick_due_ns)
        while len(self._unread) > _MOST_UNREAD:
            self._read_one()
        self._cut(self._overdue(now_ns), "timeout")
        self._misses.look(now_ns)
        if any(self._misses.counts[target] >= most for target, most in self.plan.stop_after_misses.items()):
            self.stop("misses")
        elif self._in_flight and now_ns - self._heard_ns > self.plan.hang_ns:
            self.stop("hung")
        elif now_ns - self._fired_ns > self.plan.drain_ns and not self._has_more_to_fire(now_ns):
            self._cut(list(self._in_flight.values()), "cancelled")
        if now_ns >= self._live_due_ns:
            self._live_due_ns += _LIVE_NS
            self._on_live()

    def _overdue(self, now_ns: int) -> list[Exchange]:
        overdue = []
        for exchange in self._in_flight.values():
            if exchange.t_int_ns + self.plan.timeout_ns > now_ns:
                break
            overdue.append(exchange)
        return overdue

    def _has_more_to_fire(self, now_ns: int) -> bool:
        """Now, when a lane of the closed loop is free, or when an answer in flight is there that has a next turn."""
        if self._due or self._firsts:
            return True
        if self.plan.until_ns is not None and now_ns >= self.t0_ns + self.plan.until_ns:
            return False
        return not self._followers.keys().isdisjoint(self._in_flight)

    def _cut(self, exchanges: Iterable[Exchange], reason: str) -> None:
        for exchange in exchanges:
            self.transport.cut(exchange, reason)

    def _finish_if_done(self) -> None:
        if self._in_flight or self._due or self._over:
            return
        self._over = True
        self.elapsed_ns = max(0, monotonic_ns() - self.t0_ns) if self.t0_ns else 0
        self.cpu_s = time.process_time() - self._cpu_before_s
        for watcher in (self._pacing, self._ticking):
            watcher.stop()
            watcher.close()
        self._pacer.close()
        self._ticker.close()
        self.transport.close()
        self._on_over()
