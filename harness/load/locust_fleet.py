"""Several load processes as one: Locust's master and its workers, with the plan's shares as messages.

Run as ``python -m harness.load.locust_fleet master FOLDER PARENT_PID HOST PORT WORKERS MUSTER_S`` by driver.py, and
``… worker PARENT_PID HOST PORT`` by it and by `autotune load-worker`. What a key is, only its worker knows: the
plan says the name of the environment variable. Knows nothing of scenarios, percentile targets or verdicts.
"""

# ruff: noqa: I001 - importing locust patches the standard library: it comes first
import locust  # noqa: F401
import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns
from typing import Any

import gevent
import gevent.event
import gevent.queue
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from harness.load import records
from harness.load.fleet import ClockReading, clock_offset, shares, together
from harness.load.locust_user import (
    OpenLoopUser,
    finish,
    give_orders_to,
    new_environment,
    new_run,
    prepare_process,
    quiet_memory,
    tally,
    tell,
)
from harness.load.priority import first_in_line
from harness.load.records import LiveCounters, LoadPlan, pack, unpack
from harness.load.run import LoadRun
from harness.load.tally import Tally
from harness.load.transport import ClientExhausted

LEAD_NS = 1_500_000_000  # from the last preparation to t0: Locust spawns its users in it
CLOCK_READINGS = 16
ANSWER_S = 60.0  # how long a worker may take to prepare its share, and to be dismissed
SILENCE_S = 10.0  # of a master, which sends a heartbeat every second
PIECE_BYTES = 4 << 20
TO_MASTER = ("hello", "planned", "clock", "live", "rows", "tally", "exhausted")
TO_WORKER = ("plan", "go", "halt", "bye")


class FleetUser(OpenLoopUser):
    """One in each worker: Locust's dispatcher spreads as many as there are workers."""

    fixed_count = 0


class Mailbox:
    """Messages in order of arrival: a handler that raises would only be logged by Locust."""

    def __init__(self, runner: MasterRunner | WorkerRunner, kinds: tuple[str, ...]) -> None:
        self._queue = gevent.queue.Queue()
        for kind in kinds:
            runner.register_message(kind, self._put)

    def _put(self, environment: Environment, msg: Any, **_: object) -> None:  # noqa: ARG002 - Locust's names
        self._queue.put((monotonic_ns(), msg))

    def get(self, timeout_s: float | None = None) -> tuple[int, Any]:
        """When it arrived, and the message. Raises gevent.queue.Empty."""
        arrived_ns, message = self._queue.get(timeout=timeout_s)
        return arrived_ns, message


class FleetBroken(Exception):
    """A worker is missing, or could not go on."""


class Master:
    """Shares one plan among the workers, and makes one run of theirs."""

    def __init__(self, plan: LoadPlan, runner: MasterRunner, size: int, muster_s: float) -> None:
        self.plan = plan
        self.tallies: dict[str, Tally] = {}
        self.rows: list[bytes] = []
        self._runner = runner
        self._size = size
        self._muster_s = muster_s
        self._mailbox = Mailbox(runner, TO_MASTER)
        self._workers: dict[str, str] = {}  # node id -> which boot of which kernel it runs on
        self._clocks: dict[str, tuple[int, int]] = {}
        self._counters: dict[str, LiveCounters] = {}
        self._stopped = False

    def conduct(self) -> None:
        """From the arrival of the workers to the last one's rows. Raises FleetBroken."""
        self._muster()
        for node, share in zip(self._workers, shares(self.plan, self._size), strict=True):
            settings, pieces = pack(share)
            self._runner.send_message("plan", {"settings": settings, "packed": b"".join(pieces)}, node)
        for _ in self._workers:
            self._await("planned")
        for node in self._workers:
            self._clocks[node] = self._read_clock(node)
        t0_ns = monotonic_ns() + LEAD_NS
        for node, (offset_ns, _) in self._clocks.items():
            self._runner.send_message("go", {"t0_ns": t0_ns + offset_ns}, node)
        gevent.spawn(self._runner.start, user_count=self._size, spawn_rate=self._size)
        while len(self.tallies) < self._size:
            self._listen(t0_ns)

    def dismiss(self) -> None:
        for node in self._workers:
            self._runner.send_message("bye", None, node)
        gevent.sleep(0.1)  # the messages are on their way

    def stop(self, why: str) -> None:
        """Ends every worker's run now."""
        if not self._stopped:
            self._stopped = True
            for node in self._workers:
                self._runner.send_message("halt", {"why": why}, node)

    def _muster(self) -> None:
        until_ns = monotonic_ns() + round(self._muster_s * 1e9)
        while len(self._workers) < self._size:
            left_s = (until_ns - monotonic_ns()) / 1e9
            if left_s <= 0:
                host, port = self._runner.master_bind_host, self._runner.server.port
                raise FleetBroken(
                    f"has {len(self._workers)} of {self._size} workers at {host}:{port} after {self._muster_s:.0f} s: "
                    "start `autotune load-worker --master HOST:PORT` on the others"
                )
            try:
                _, message = self._mailbox.get(min(left_s, 1.0))
            except gevent.queue.Empty:
                tell({"mustering": len(self._workers)})
                continue
            if message.type == "hello":
                self._workers[message.node_id] = message.data["boot"]

    def _await(self, kind: str) -> tuple[int, Any]:
        while True:
            try:
                arrived_ns, message = self._mailbox.get(ANSWER_S)
            except gevent.queue.Empty:
                raise FleetBroken(f"had no answer of a worker for {ANSWER_S:.0f} s") from None
            if message.type == "exhausted":
                raise FleetBroken(message.data["why"])
            if message.type == kind:
                return arrived_ns, message

    def _read_clock(self, node: str) -> tuple[int, int]:
        """Offset and its uncertainty; processes of one kernel share the clock."""
        if self._workers[node] == boot():
            return 0, 0
        readings = []
        for _ in range(CLOCK_READINGS):
            asked_ns = monotonic_ns()
            self._runner.send_message("clock", None, node)
            heard_ns, message = self._await("clock")
            readings.append(ClockReading(asked_ns, message.data["at_ns"], heard_ns))
        return clock_offset(readings)

    def _listen(self, t0_ns: int) -> None:
        try:
            _, message = self._mailbox.get(1.0)
        except gevent.queue.Empty:
            message = None
        if self._runner.clients.missing:
            raise FleetBroken("lost a worker")
        if message is None:
            return
        node, data = message.node_id, message.data
        if message.type == "live":
            self._counters[node] = LiveCounters(**data)
            if node == next(iter(self._workers)):  # as often as one of them speaks
                self.tell_live()
        elif message.type == "rows":
            self.rows.append(data["piece"])
        elif message.type == "exhausted":
            raise FleetBroken(data["why"])
        elif message.type == "tally":
            offset_ns, uncertainty_ns = self._clocks[node]
            clocks = {"clock_offset_ns": offset_ns, "clock_uncertainty_ns": uncertainty_ns, "t0_monotonic_ns": t0_ns}
            self.tallies[node] = Tally.from_message(data | clocks)
            if self.tallies[node].stopped_early:
                self.stop(str(self.tallies[node].stopped_early))

    def tell_live(self) -> None:
        live = together(list(self._counters.values()), planned=len(self.plan.requests))
        tell({"live": dataclasses.asdict(live)})
        if any(live.misses[target] >= most for target, most in self.plan.stop_after_misses.items()):
            self.stop("misses")


def boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def master(folder: Path, parent_pid: int, listen: tuple[str, int], size: int, muster_s: float) -> None:
    prepare_process(parent_pid)
    environment = new_environment(FleetUser)
    runner = environment.create_master_runner(*listen)
    conductor = Master(records.read_plan(folder), runner, size, muster_s)
    give_orders_to(conductor)
    tell({"listening": runner.server.port})
    try:
        conductor.conduct()
    except FleetBroken as err:
        tell({"exhausted": str(err)})
    else:
        conductor.tell_live()
        os.set_blocking(sys.stdout.fileno(), True)
        finish(folder, list(conductor.tallies.values()), conductor.rows)
    conductor.dismiss()


def worker(parent_pid: int, host: str, port: int) -> None:
    """One share of one plan, from its arrival to its rows."""
    prepare_process(parent_pid)
    environment = new_environment(FleetUser)
    runner = environment.create_worker_runner(host, port)
    runner.register_message("clock", lambda **_: runner.send_message("clock", {"at_ns": monotonic_ns()}))
    mailbox = Mailbox(runner, TO_WORKER)
    gevent.spawn(end_without_master, runner)
    runner.send_message("hello", {"boot": boot()})
    try:
        with first_in_line() as scheduling:
            load_run = carry_out(environment, mailbox)
    except ClientExhausted as err:
        runner.send_message("exhausted", {"why": str(err)})
    else:
        load_run.read_all()
        runner.send_message("live", dataclasses.asdict(load_run.counters()))
        for piece in pieces(load_run.rows):
            runner.send_message("rows", {"piece": piece})
        runner.send_message("tally", tally(load_run, scheduling).to_message())
    environment.dismissed.wait(ANSWER_S)


def carry_out(environment: Environment, mailbox: Mailbox) -> LoadRun:
    """Raises ClientExhausted."""
    runner = environment.runner
    environment.dismissed = gevent.event.Event()
    go = gevent.event.AsyncResult()
    environment.begin = lambda: environment.load_run.start(go.get())
    _, message = mailbox.get()
    plan = unpack(message.data["settings"], message.data["packed"])
    load_run = new_run(plan, environment, lambda live: gevent.spawn(runner.send_message, "live", live))
    runner.send_message("planned")
    _, message = mailbox.get()
    go.set(message.data["t0_ns"])
    gevent.spawn(obey_master, environment, mailbox)
    with quiet_memory():
        environment.over.wait()
    return load_run


def end_without_master(runner: WorkerRunner) -> None:
    """Locust ends its greenlets when the master is silent, after a minute; the process would stay."""
    while True:
        gevent.sleep(1.0)
        heard_s = runner.last_heartbeat_timestamp
        if heard_s is not None and time.time() - heard_s > SILENCE_S:
            os._exit(1)


def obey_master(environment: Environment, mailbox: Mailbox) -> None:
    while True:
        _, message = mailbox.get()
        if message.type == "halt":
            environment.load_run.stop(message.data["why"])
        else:
            environment.dismissed.set()


def pieces(rows: list[bytes]) -> Iterator[bytes]:
    piece: list[bytes] = []
    size = 0
    for row in rows:
        piece.append(row)
        size += len(row)
        if size >= PIECE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    yield b"".join(piece)


if __name__ == "__main__":
    role, *what = sys.argv[1:]
    if role == "master":
        master(Path(what[0]), int(what[1]), (what[2], int(what[3])), int(what[4]), float(what[5]))
    else:
        worker(int(what[0]), what[1], int(what[2]))
