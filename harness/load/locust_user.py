"""The load child: Locust with one user that fires a finished schedule, whatever becomes of the answers.

Run as ``python -m harness.load.locust_user FOLDER`` by driver.py; the only module that imports Locust or
gevent. Knows nothing of scenarios, percentile targets or verdicts.
"""

# ruff: noqa: I001 - importing locust patches the standard library: it comes first
import locust

import contextlib
import ctypes
import dataclasses
import gc
import json
import math
import os
import resource
import signal
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic_ns
from typing import Any

import gevent
import gevent.event
from locust.env import Environment
from locust.exception import StopUser

from harness.load import records
from harness.load.exchange import Exchange
from harness.load.live import LiveMisses
from harness.load.priority import first_in_line
from harness.load.records import LiveCounters, LoadPlan, LoadResult, PlannedRequest, Record
from harness.load.timers import TimerFd
from harness.load.transport import ClientExhausted, Cut, Transport

_LEAD_NS = 20_000_000  # from now to t0: what is left to set up happens in it
_TICK_NS = 10_000_000
_LIVE_NS = 250_000_000
_LATE_NS = 1_000_000
_BURST = 32  # requests fired in a row, when behind, before answers are looked at
_PR_SET_PDEATHSIG = 1


class Pacer:
    """Sleeps until an instant, to some ten microseconds."""

    def __init__(self) -> None:
        self._timer = TimerFd()
        self._hub = gevent.get_hub()
        self._readable = self._hub.loop.io(self._timer.fd, 1)

    def sleep_until(self, at_ns: int, every_ns: int = 0) -> None:
        self._timer.set(at_ns, every_ns)
        self.sleep()

    def sleep(self) -> int:
        """Until the timer that was set expires (again); how often it did."""
        self._hub.wait(self._readable)
        return self._timer.expirations()

    def wake(self) -> None:
        """Ends the sleep of another greenlet now."""
        self._timer.set(1)

    def close(self) -> None:
        self._readable.close()
        self._timer.close()


class LoadRun:
    """One run of a plan: fires, watches, counts. ``over`` is set when nothing is in flight any more."""

    def __init__(self, plan: LoadPlan, request_event: Any) -> None:
        self.plan = plan
        self.transport = Transport(plan)
        self.over = gevent.event.Event()
        self.records: list[Record] = []
        self.lateness_ns = array("q")
        self.loop_lag_ns = array("q")
        self.stopped_early: str | None = None
        self.t0_ns = self.elapsed_ns = 0
        self.cpu_s = 0.0
        self._request_event = request_event
        self._misses: LiveMisses
        self._in_flight: dict[int, Exchange] = {}
        self._over_but_unread: deque[Exchange] = deque()
        self._waiting = iter(sorted(plan.requests, key=lambda r: r.t_int_ns) if plan.mode == "open" else plan.requests)
        self._changed = gevent.event.Event()  # something ended that a wait may be for
        self._pacer = Pacer()
        self._between = gevent.get_hub().loop.idle()
        self._sent = self._done = self._failed = self._late = self._lanes_busy = 0
        self._busy_since_ns = 0

    def follow_plan(self) -> None:
        """From t0 until every request has ended, in whatever way."""
        self.t0_ns = monotonic_ns() + _LEAD_NS
        self._misses = LiveMisses(self.plan.slo_ms, self.t0_ns + self.plan.misses_from_ns)
        cpu_before = time.process_time()
        ticker = gevent.spawn(self._tick_forever)
        if self.plan.mode == "open":
            self._fire_when_due()
        else:
            self._keep_lanes_busy()
        self._wait_until(lambda: not self._in_flight, self.plan.drain_ns / 1e9)
        self._cut(list(self._in_flight.values()), "cancelled")
        gevent.joinall([exchange.greenlet for exchange in self._in_flight.values()])
        for exchange in list(self._in_flight.values()):  # cut before it began
            exchange.end(monotonic_ns(), "cancelled")
            self._ended(exchange)
        ticker.kill()
        self.elapsed_ns = monotonic_ns() - self.t0_ns
        self.cpu_s = time.process_time() - cpu_before
        self.transport.close()
        self.over.set()

    def stop(self, why: str) -> None:
        """Ends the run now; what is in flight is cut."""
        if self.stopped_early is None and not self.over.is_set():
            self.stopped_early = why
            self._changed.set()
            self._pacer.wake()

    def read_all(self) -> None:
        """Makes the records of the exchanges that there was no time for."""
        while self._over_but_unread:
            self._read_one()

    def counters(self) -> LiveCounters:
        now_ns = monotonic_ns()
        newest_ns = max(self.transport.newest_bytes_ns, self._busy_since_ns)
        return LiveCounters(
            elapsed_s=round((self.elapsed_ns or now_ns - self.t0_ns) / 1e9, 3),
            planned=len(self.plan.requests),
            sent=self._sent,
            done=self._done,
            failed=self._failed,
            in_flight=len(self._in_flight),
            late=self._late,
            misses=dict(self._misses.counts),
            newest_token_age_s=round((now_ns - newest_ns) / 1e9, 3) if self._in_flight else None,
        )

    def _fire_when_due(self) -> None:
        in_a_row = 0
        for request in self._waiting:
            due_ns = self.t0_ns + request.t_int_ns
            if due_ns > monotonic_ns():
                self._pacer.sleep_until(due_ns)
                in_a_row = 0
            elif (in_a_row := in_a_row + 1) % _BURST == 0:
                gevent.sleep(0)
            if self.stopped_early:
                return
            self._fire(request, due_ns)

    def _wait_until(self, settled: Callable[[], bool], limit_s: float | None = None) -> None:
        with gevent.Timeout(limit_s, exception=False):
            while not settled() and self.stopped_early is None:
                self._changed.clear()
                self._changed.wait()

    def _keep_lanes_busy(self) -> None:
        assert self.plan.concurrency
        self._pacer.sleep_until(self.t0_ns)
        self._lanes_busy = self.plan.concurrency
        for _ in range(self.plan.concurrency):
            self._fire_next(self.t0_ns)
        self._wait_until(lambda: self._lanes_busy == 0)

    def _fire_next(self, due_ns: int) -> None:
        """The next request of a lane of the closed loop; when there is none left, the lane ends."""
        request = next(self._waiting, None)
        if request is None:
            self._lanes_busy -= 1
            self._changed.set()
            return
        if due_ns > monotonic_ns():
            pacer = Pacer()
            pacer.sleep_until(due_ns)
            pacer.close()
        if self.stopped_early is None:
            self._fire(request, due_ns)

    def _fire(self, request: PlannedRequest, due_ns: int) -> None:
        exchange = Exchange(request, due_ns)
        if not self._in_flight:
            self._busy_since_ns = monotonic_ns()
        self._in_flight[request.index] = exchange
        self._misses.watch(exchange)
        exchange.greenlet = gevent.spawn(self._carry, exchange)

    def _carry(self, exchange: Exchange) -> None:
        connection = self.transport.send(exchange)
        if exchange.t_send_ns is not None:
            self._sent += 1
            self.lateness_ns.append(exchange.lateness_ns)
            self._late += exchange.lateness_ns > _LATE_NS
        if connection is not None:
            self.transport.receive(exchange, connection)
        self._ended(exchange)
        if self.plan.mode == "closed":
            assert exchange.t_end_ns is not None
            self._fire_next(exchange.t_end_ns + self.plan.think_time_ns)
        if not self._in_flight:
            self._changed.set()

    def _ended(self, exchange: Exchange) -> None:
        del self._in_flight[exchange.request.index]
        self._done += 1
        exchange.greenlet = None
        if not self._over_but_unread:
            self._between.start(self._read_one)
        self._over_but_unread.append(exchange)

    def _read_one(self) -> None:
        """One record, made while the loop has nothing else to do."""
        exchange = self._over_but_unread.popleft()
        if not self._over_but_unread:
            self._between.stop()
        record = exchange.record(self.t0_ns)
        self.records.append(record)
        self._failed += record.error is not None
        self._misses.settle(exchange, record)
        self._request_event.fire(
            request_type="POST",
            name=self.plan.path,
            response_time=(record.t_end_ns - record.t_int_ns) / 1e6,
            response_length=record.bytes_received,
            exception=record.error,
            context={},
        )

    def _tick_forever(self) -> None:
        """A clock that measures how late the loop serves it, and what is due by the clock."""
        pacer = Pacer()
        due_ns = self.t0_ns
        live_ns = self.t0_ns + _LIVE_NS
        pacer.sleep_until(due_ns, every_ns=_TICK_NS)
        while True:
            due_ns += _TICK_NS * pacer.sleep()
            now_ns = monotonic_ns()
            self.loop_lag_ns.append(now_ns - due_ns)
            self._cut_overdue(now_ns)
            self._misses.look(now_ns)
            if any(self._misses.counts[metric] >= most for metric, most in self.plan.stop_after_misses.items()):
                self.stop("misses")
            heard_ns = max(self.transport.newest_bytes_ns, self._busy_since_ns)
            if self._in_flight and now_ns - heard_ns > self.plan.hang_ns:
                self.stop("hung")
            if now_ns >= live_ns:
                live_ns += _LIVE_NS
                tell({"live": dataclasses.asdict(self.counters())})

    def _cut_overdue(self, now_ns: int) -> None:
        overdue = []
        for exchange in self._in_flight.values():  # in order of t_int_ns
            if exchange.t_int_ns + self.plan.timeout_ns > now_ns:
                break
            overdue.append(exchange)
        self._cut(overdue, "timeout")

    def _cut(self, exchanges: Sequence[Exchange], reason: str) -> None:
        for exchange in exchanges:
            exchange.greenlet.kill(Cut(reason), block=False)


class OpenLoopUser(locust.User):  # type: ignore[misc]
    """Locust's one user of this process: it fires the whole schedule, and the requests run beside it."""

    fixed_count = 1

    @locust.task  # type: ignore[untyped-decorator]
    def follow_plan(self) -> None:
        self.environment.load_run.follow_plan()
        raise StopUser


def run(plan: LoadPlan) -> tuple[LoadRun, Environment]:
    """Carries out the plan on Locust's local runner. Raises ClientExhausted."""
    hub = gevent.get_hub()
    hub.SYSTEM_ERROR = (Exception,)  # a bug in any greenlet ends this process; nothing is logged and forgotten
    environment = Environment(user_classes=[OpenLoopUser], catch_exceptions=False)
    environment.load_run = load_run = LoadRun(plan, environment.events.request)
    gevent.signal_handler(signal.SIGTERM, load_run.stop, "asked")
    orders = hub.loop.io(sys.stdin.fileno(), 1)
    orders.start(obey, load_run)
    runner = environment.create_local_runner()
    gc.collect()
    gc.freeze()
    gc.disable()
    runner.start(user_count=1, spawn_rate=1)
    load_run.over.wait()
    orders.close()
    gc.enable()
    runner.quit()
    return load_run, environment


def obey(load_run: LoadRun) -> None:
    """A line on stdin: stop. Its end: the parent is gone, and so are we."""
    if not os.read(sys.stdin.fileno(), 64):
        os._exit(1)
    load_run.stop("asked")


def tell(message: dict[str, Any]) -> None:
    """One line to the parent; dropped rather than waited for when it does not listen."""
    with contextlib.suppress(BlockingIOError):
        os.write(sys.stdout.fileno(), json.dumps(message, separators=(",", ":")).encode() + b"\n")


def result(load_run: LoadRun, t0_wall_iso: str, records_path: Path, scheduling: str) -> LoadResult:
    elapsed_s = load_run.elapsed_ns / 1e9
    transport = load_run.transport
    return LoadResult(
        records_path=records_path,
        t0_monotonic_ns=load_run.t0_ns,
        t0_wall_iso=t0_wall_iso,
        elapsed_s=elapsed_s,
        stopped_early=load_run.stopped_early,
        planned=len(load_run.plan.requests),
        sent=len(load_run.lateness_ns),
        send_lateness_p50_ms=percentile(load_run.lateness_ns, 50) / 1e6,
        send_lateness_p99_ms=percentile(load_run.lateness_ns, 99) / 1e6,
        loop_lag_p99_ms=percentile(load_run.loop_lag_ns, 99) / 1e6,
        cpu_s=load_run.cpu_s,
        cpu_share=load_run.cpu_s / elapsed_s,
        max_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        connections_opened=transport.opened,
        stale_connections_replaced=transport.stale_replaced,
        locust_version=locust.__version__,
        idle_connections_dropped=transport.idle_dropped,
        scheduling=scheduling,
    )


def percentile(values: Sequence[int], percent: float) -> int:
    """Nearest rank; 0 of nothing."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1] if values else 0


def die_with_parent(parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def main(folder: Path, parent_pid: int) -> None:
    die_with_parent(parent_pid)
    os.set_blocking(sys.stdout.fileno(), False)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    plan, metadata = records.read_plan(folder)
    try:
        with first_in_line() as scheduling:
            load_run, _ = run(plan)
    except ClientExhausted as err:
        tell({"exhausted": str(err)})
        return
    finally:
        os.set_blocking(sys.stdout.fileno(), True)
    load_run.read_all()
    t0_wall_s = time.time() - (monotonic_ns() - load_run.t0_ns) / 1e9
    t0_wall_iso = datetime.fromtimestamp(t0_wall_s, UTC).isoformat()
    stamps = {"t0_monotonic_ns": str(load_run.t0_ns), "t0_wall_iso": t0_wall_iso}
    path = folder / records.RECORDS_FILE
    tell({"live": dataclasses.asdict(load_run.counters())})
    try:
        records.write_records(sorted(load_run.records), {**metadata, **stamps}, path)
    except OSError as err:
        tell({"unwritable": err.errno})
        return
    tell({"done": result(load_run, t0_wall_iso, path, scheduling).to_dict()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
