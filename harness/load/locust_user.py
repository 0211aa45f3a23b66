"""The load child: Locust with one user that fires a finished schedule, whatever becomes of the answers.

Run as ``python -m harness.load.locust_user FOLDER PARENT_PID`` by driver.py; with locust_fleet.py the only
module that imports Locust or gevent. Knows nothing of scenarios, percentile targets or verdicts.
"""

# ruff: noqa: I001 - importing locust patches the standard library: it comes first
import locust

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic_ns
from typing import Any, Protocol

import gevent
import gevent.event
from locust.env import Environment
from locust.exception import StopUser

from harness.load import records
from harness.load.priority import first_in_line
from harness.load.exchange import Exchange
from harness.load.loop import READABLE
from harness.load.records import PackedPlan
from harness.load.run import LoadRun
from harness.load.tally import Tally, combined
from harness.load.transport import ClientExhausted

_LEAD_NS = 20_000_000  # from now to t0: what is left to set up happens in it
_PR_SET_PDEATHSIG = 1


class OpenLoopUser(locust.User):  # type: ignore[misc]
    """Locust's one user of this process: it fires the whole schedule, and the requests run beside it."""

    fixed_count = 1

    @locust.task  # type: ignore[untyped-decorator]
    def follow_plan(self) -> None:
        self.environment.begin()
        self.environment.over.wait()
        raise StopUser


def new_environment(user_class: type[OpenLoopUser]) -> Environment:
    """``begin`` starts its ``load_run``, ``over`` is set when that has ended: whoever makes the run sets them."""
    gevent.get_hub().SYSTEM_ERROR = (Exception,)  # a bug in any callback ends this process, not just the callback
    environment = Environment(user_classes=[user_class], catch_exceptions=False)
    environment.over = gevent.event.Event()
    return environment


def new_run(plan: PackedPlan, environment: Environment, on_live: Callable[[dict[str, Any]], object]) -> LoadRun:
    load_run = LoadRun(
        plan,
        gevent.get_hub().loop,
        on_done=lambda exchange: tell_locust(environment, plan.path, exchange),
        on_live=lambda: on_live(dataclasses.asdict(load_run.counters())),
        on_over=environment.over.set,
    )
    environment.load_run = load_run
    return load_run


def run(plan: PackedPlan) -> tuple[LoadRun, Environment]:
    """Carries out the plan on Locust's local runner. Raises ClientExhausted."""
    environment = new_environment(OpenLoopUser)
    load_run = new_run(plan, environment, lambda live: tell({"live": live}))
    environment.begin = lambda: load_run.start(monotonic_ns() + _LEAD_NS)
    orders = give_orders_to(load_run, on_orphaned=lambda: os._exit(1))
    runner = environment.create_local_runner()
    with quiet_memory():
        runner.start(user_count=1, spawn_rate=1)
        environment.over.wait()
    orders.close()
    runner.quit()
    return load_run, environment


@contextlib.contextmanager
def quiet_memory() -> Iterator[None]:
    """No collection of garbage: it would stop the clock for milliseconds, and a run leaves no cycles."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()


def tell_locust(environment: Environment, path: str, exchange: Exchange) -> None:
    """For its web UI and its CSV; no verdict reads them."""
    assert exchange.t_end_ns is not None
    environment.events.request.fire(
        request_type="POST",
        name=path,
        response_time=(exchange.t_end_ns - exchange.t_int_ns) / 1e6,
        response_length=exchange.bytes_received,
        exception=exchange.error,
        context={},
    )


class Stoppable(Protocol):
    def stop(self, why: str) -> None: ...


def give_orders_to(running: Stoppable, on_orphaned: Callable[[], object]) -> Any:
    """A line on stdin, or SIGTERM: stop. The end of stdin: the parent is gone, or wants no more of us."""
    gevent.signal_handler(signal.SIGTERM, running.stop, "asked")
    orders = gevent.get_hub().loop.io(sys.stdin.fileno(), READABLE)
    orders.start(obey, orders, running, on_orphaned)
    return orders


def obey(orders: Any, running: Stoppable, on_orphaned: Callable[[], object]) -> None:
    if os.read(sys.stdin.fileno(), 64):
        running.stop("asked")
    else:
        orders.stop()
        on_orphaned()


def tell(message: dict[str, Any]) -> None:
    """One line to the parent; dropped rather than waited for when it does not listen."""
    with contextlib.suppress(BlockingIOError):
        os.write(sys.stdout.fileno(), json.dumps(message, separators=(",", ":")).encode() + b"\n")


def tally(load_run: LoadRun, scheduling: str) -> Tally:
    transport = load_run.transport
    t0_wall_s = time.time() - (monotonic_ns() - load_run.t0_ns) / 1e9
    return Tally(
        t0_monotonic_ns=load_run.t0_ns,
        t0_wall_iso=datetime.fromtimestamp(t0_wall_s, UTC).isoformat(),
        elapsed_s=load_run.elapsed_ns / 1e9,
        stopped_early=load_run.stopped_early,
        planned=len(load_run.plan.requests),
        sent=len(load_run.lateness_ns),
        never_due=load_run.never_due,
        lateness_ns=load_run.lateness_ns,
        loop_lag_ns=load_run.loop_lag_ns,
        receive_lag_ns=transport.receive_lag_ns,
        cpu_s=load_run.cpu_s,
        max_rss_bytes=peak_memory_bytes(),
        connections_opened=transport.opened,
        stale_connections_replaced=transport.stale_replaced,
        idle_connections_dropped=transport.idle_dropped,
        locust_version=locust.__version__,
        scheduling=scheduling,
    )


def peak_memory_bytes() -> int:
    """Resident, of this program: getrusage's maximum is that of the parent before it became this program."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def die_with_parent(parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def prepare_process(parent_pid: int) -> None:
    """Ends with its parent, never waits for it to listen, and may open as many connections as the system grants."""
    die_with_parent(parent_pid)
    os.set_blocking(sys.stdout.fileno(), False)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(folder: Path, parent_pid: int) -> None:
    prepare_process(parent_pid)
    plan = records.read_plan(folder)
    try:
        with first_in_line() as scheduling:
            load_run, _ = run(plan)
    except ClientExhausted as err:
        tell({"exhausted": str(err)})
        return
    finally:
        os.set_blocking(sys.stdout.fileno(), True)
    load_run.read_all()
    tell({"live": dataclasses.asdict(load_run.counters())})
    finish(folder, [tally(load_run, scheduling)], load_run.rows, fleet=False)


def finish(folder: Path, tallies: Sequence[Tally], rows: Iterable[bytes], *, fleet: bool) -> None:
    """Leaves the rows, and tells the parent that they are there."""
    path = folder / records.ROWS_FILE
    try:
        with path.open("wb") as file:
            file.writelines(rows)
    except OSError as err:
        tell({"unwritable": err.errno})
        return
    tell({"done": combined(tallies, path, fleet=fleet).to_dict()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
