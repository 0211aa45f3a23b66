"""Several load processes as one: Locust's master and its workers, with the plan's shares as messages.

Run as ``python -m harness.load.locust_fleet master FOLDER PARENT_PID HOST PORT WORKERS MUSTER_S`` by driver.py, and
``… worker PARENT_PID HOST PORT [API_KEY_ENV]`` by it and by `autotune load-worker`. What a key is, only its worker
knows: the plan says the name of the environment variable. Knows nothing of scenarios, percentile targets or verdicts.
"""

# ruff: noqa: I001 - importing locust patches the standard library: it comes first
import locust  # noqa: F401
import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic_ns
from typing import Any

import gevent
import gevent.event
import gevent.queue
from locust.env import Environment
from locust.exception import RPCError
from locust.runners import MasterRunner, WorkerRunner
from zmq.error import ZMQError

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
from harness.load.records import LiveCounters, LoadPlan, PackedPlan, pack, unpack
from harness.load.run import LoadRun
from harness.load.tally import Tally
from harness.load.transport import ClientExhausted

LEAD_NS = 500_000_000  # from the last preparation to t0: the word is on its way in it
LIVE_NS = 250_000_000
CLOCK_READINGS = 16
ANSWER_S = 60.0  # how long a worker may take to prepare its share
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

    def get(self, timeout_s: float | None = None) -> tuple[int, Any] | None:
        """When the next message arrived, and it; None: none came in time."""
        try:
            arrived_ns, message = self._queue.get(timeout=timeout_s)
        except gevent.queue.Empty:
            return None
        return arrived_ns, message

    def wait(self) -> Any:
        """The next message, however long it takes."""
        return self._queue.get()[1]


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
        self._workers: dict[str, str] = {}  # node id -> which clock it has
        self._clocks: dict[str, tuple[int, int]] = {}
        self._counters: dict[str, LiveCounters] = {}
        self._stop_why: str | None = None
        self._t0_ns = self._live_due_ns = 0

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
        self._t0_ns = monotonic_ns() + LEAD_NS
        self._live_due_ns = self._t0_ns + LIVE_NS
        for node, (offset_ns, _) in self._clocks.items():
            self._runner.send_message("go", {"t0_ns": self._t0_ns + offset_ns}, node)
        if self._stop_why is not None:
            self._halt(self._stop_why)
        gevent.spawn(self._runner.start, user_count=self._size, spawn_rate=self._size)
        while len(self.tallies) < self._size:
            if (arrived := self._next(LIVE_NS / 1e9)) is not None:
                self._hear(arrived[1])
            if monotonic_ns() >= self._live_due_ns:
                self._live_due_ns += LIVE_NS
                self.tell_live()

    def dismiss(self) -> None:
        """No worker goes on with this run."""
        for node in self._workers:
            self._runner.send_message("bye", None, node)
        gevent.sleep(0.1)  # the messages are on their way

    def stop(self, why: str) -> None:
        """Ends every worker's run now."""
        if self._stop_why is None:
            self._stop_why = why
            self._halt(why)

    def _halt(self, why: str) -> None:
        for node in self._clocks:
            self._runner.send_message("halt", {"why": why}, node)

    def _next(self, timeout_s: float) -> tuple[int, Any] | None:
        """When the next message of our workers arrived, and it; None: none came. Raises FleetBroken."""
        arrived = self._mailbox.get(timeout_s)
        lost = {c.id for c in self._runner.clients.missing} & self._workers.keys() - self.tallies.keys()
        if lost:
            names = ", ".join(sorted(node.rpartition("_")[0] for node in lost))
            raise FleetBroken(f"lost a worker on {names}; what it said last is in load.log, or on its own screen")
        if arrived is None:
            return None
        _, message = arrived
        if message.type == "exhausted" and message.node_id in self._workers:
            raise FleetBroken(f"on {message.node_id.rpartition('_')[0]} {message.data['why']}")
        if message.type == "hello":
            self._welcome(message)
        return arrived

    def _welcome(self, message: Any) -> None:
        """One more than we need goes home, and Locust forgets it: its users are for those who have a share."""
        if len(self._workers) < self._size:
            self._workers[message.node_id] = message.data["clock"]
        elif message.node_id not in self._workers:
            self._runner.send_message("bye", None, message.node_id)
            self._runner.clients.pop(message.node_id, None)

    def _muster(self) -> None:
        until_ns = monotonic_ns() + round(self._muster_s * 1e9)
        while len(self._workers) < self._size:
            if monotonic_ns() > until_ns:
                host, port = self._runner.master_bind_host, self._runner.server.port
                raise FleetBroken(
                    f"has {len(self._workers)} of {self._size} workers at {host}:{port} after {self._muster_s:.0f} s: "
                    "start `autotune load-worker --master HOST:PORT` on the others"
                )
            self._next(1.0)
            tell({"preparing": "muster"})

    def _await(self, kind: str) -> tuple[int, Any]:
        until_ns = monotonic_ns() + round(ANSWER_S * 1e9)
        while monotonic_ns() < until_ns:
            arrived = self._next(1.0)
            if arrived is not None and arrived[1].type == kind:
                return arrived
            if arrived is None:
                tell({"preparing": kind})
        raise FleetBroken(f"had no answer of a worker for {ANSWER_S:.0f} s")

    def _read_clock(self, node: str) -> tuple[int, int]:
        """Its offset to ours and the uncertainty of that, in ns."""
        if self._workers[node] == own_clock():
            return 0, 0
        readings = []
        for _ in range(CLOCK_READINGS):
            asked_ns = monotonic_ns()
            self._runner.send_message("clock", None, node)
            heard_ns, message = self._await("clock")
            readings.append(ClockReading(asked_ns, message.data["at_ns"], heard_ns))
        return clock_offset(readings)

    def _hear(self, message: Any) -> None:
        node, data = message.node_id, message.data
        if message.type == "live":
            self._counters[node] = LiveCounters(**data)
        elif message.type == "rows":
            self.rows.append(data["piece"])
        elif message.type == "tally":
            offset_ns, uncertainty_ns = self._clocks[node]
            wall_s = time.time() - (monotonic_ns() - self._t0_ns) / 1e9
            ours = {
                "clock_offset_ns": offset_ns,
                "clock_uncertainty_ns": uncertainty_ns,
                "t0_monotonic_ns": self._t0_ns,
                "t0_wall_iso": datetime.fromtimestamp(wall_s, UTC).isoformat(),
            }
            self.tallies[node] = Tally.from_message(data | ours)

    def tell_live(self) -> None:
        live = together(list(self._counters.values()), planned=len(self.plan.requests))
        tell({"live": dataclasses.asdict(live)})
        if any(live.misses.get(target, 0) >= most for target, most in self.plan.stop_after_misses.items()):
            self.stop("misses")
        elif (live.newest_token_age_s or 0) * 1e9 > self.plan.hang_ns:
            self.stop("hung")


def own_clock() -> str:
    """Names the monotonic clock of this process: processes with the same one need not compare theirs."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespace = Path("/proc/self/ns/time")
    return f"{boot} {namespace.readlink() if namespace.is_symlink() else ''}"


def master(folder: Path, parent_pid: int, listen: tuple[str, int], size: int, muster_s: float) -> None:
    prepare_process(parent_pid)
    environment = new_environment(FleetUser)
    try:
        runner = environment.create_master_runner(*listen)
    except (SystemExit, RPCError, ZMQError) as err:
        tell({"exhausted": f"cannot listen at {listen[0]}:{listen[1]}: {err}"})
        return
    conductor = Master(records.read_plan(folder), runner, size, muster_s)
    give_orders_to(conductor, on_orphaned=lambda: gevent.spawn(dismiss_and_exit, conductor))
    tell({"listening": runner.server.port})
    try:
        conductor.conduct()
    except FleetBroken as err:
        conductor.dismiss()
        tell({"exhausted": str(err)})
    else:
        conductor.dismiss()
        conductor.tell_live()
        os.set_blocking(sys.stdout.fileno(), True)
        finish(folder, list(conductor.tallies.values()), conductor.rows, fleet=True)


def dismiss_and_exit(conductor: Master) -> None:
    conductor.dismiss()
    os._exit(1)


def worker(parent_pid: int, host: str, port: int, api_key_env: str | None) -> None:
    """One share of one plan, from its arrival to its rows."""
    prepare_process(parent_pid)
    environment = new_environment(FleetUser)
    environment.begin = lambda: None  # the master's word starts the run, wherever Locust has put its users
    environment.dismissed = gevent.event.Event()
    environment.go = gevent.event.AsyncResult()
    environment.load_run = None
    gevent.spawn(end_without_master, environment)
    runner = environment.create_worker_runner(host, port)
    runner.register_message("clock", lambda **_: runner.send_message("clock", {"at_ns": monotonic_ns()}))
    mailbox = Mailbox(runner, TO_WORKER)
    runner.send_message("hello", {"clock": own_clock()})
    message = mailbox.wait()
    if message.type != "plan":
        return
    plan = unpack(message.data["settings"], message.data["packed"])
    gevent.spawn(obey_master, environment, mailbox)
    try:
        check_key(plan, api_key_env)
        with first_in_line() as scheduling:
            load_run = carry_out(environment, plan)
    except (ClientExhausted, OSError) as err:
        if environment.load_run is not None:
            environment.load_run.stop("exhausted")
        runner.send_message("exhausted", {"why": str(err)})
    else:
        load_run.read_all()
        runner.send_message("live", dataclasses.asdict(load_run.counters()))
        for piece in pieces(load_run.rows):
            runner.send_message("rows", {"piece": piece})
        runner.send_message("tally", tally(load_run, scheduling).to_message())
    environment.dismissed.wait()


def check_key(plan: LoadPlan, granted: str | None) -> None:
    """Who answers as master names the variable: it gets no other than the one that was granted here."""
    asked = plan.api_key_env
    if asked is not None and asked != granted:
        raise ClientExhausted(f"the key in ${asked} is not granted: start `autotune load-worker --api-key-env {asked}`")
    if asked is not None and asked not in os.environ:
        raise ClientExhausted(f"the environment variable {asked} is not set")


def carry_out(environment: Environment, plan: PackedPlan) -> LoadRun:
    """Raises ClientExhausted, and OSError when the server's name is unknown."""
    runner = environment.runner
    load_run = new_run(plan, environment, lambda live: gevent.spawn(runner.send_message, "live", live))
    runner.send_message("planned")
    with quiet_memory():
        load_run.start(environment.go.get())
        environment.over.wait()
    return load_run


def end_without_master(environment: Environment) -> None:
    """Locust ends its greenlets when the master is silent, after a minute; the process would stay."""
    begun_s = time.time()
    while True:
        gevent.sleep(1.0)
        runner = environment.runner
        heard_s = getattr(runner, "last_heartbeat_timestamp", None)
        if runner is not None and runner.connected and time.time() - (heard_s or begun_s) > SILENCE_S:
            os._exit(1)


def obey_master(environment: Environment, mailbox: Mailbox) -> None:
    while True:
        message = mailbox.wait()
        if message.type == "go":
            environment.go.set(message.data["t0_ns"])
        elif environment.load_run is not None:
            environment.load_run.stop(message.data["why"] if message.type == "halt" else "asked")
        if message.type == "bye":
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
        worker(int(what[0]), what[1], int(what[2]), what[3] if what[3:] else None)
