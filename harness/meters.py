"""What goes on beside a measurement: counters of the kernel and of GPUs, read at its begin and its end.

Knows no limits: audit.py says what is too much. What this machine does not tell is None, never 0.
"""

import ipaddress
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from harness.host import limits
from harness.measurement import HostReading

NS_PER_MS = 1e6
CLOCK_TRIES = 7  # two clocks are read one after the other; the closest pair counts
GPU_ANSWERS_S = 20
REASONS = ("clocks_event_reasons", "clocks_throttle_reasons")  # in newer drivers, and in older ones
SLOWED = ("hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown")


@dataclass(frozen=True, slots=True)
class Kernel:
    """Where the kernel tells."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")


@dataclass(frozen=True, slots=True)
class _Counters:
    """One look. Every field but the first grows with time or says how things stand; None: not told."""

    monotonic_ns: int
    cpu: tuple[int, ...] | None  # /proc/stat, in ticks: user nice system idle iowait irq softirq steal
    own_cpu_s: float | None
    engine: "_Scheduled | None"
    stalled_us: dict[str, int]
    throttled_ns: int | None
    thermal_ms: dict[str, int]
    swapped_pages: int | None
    clock_offset_ns: int
    suspended_ns: int
    clocksource: str | None
    gpu_neighbours: int | None
    gpu_slowed: bool | None


class _Waited(NamedTuple):
    at_ns: int
    wait_ns: int


class _Scheduled(NamedTuple):
    """Of threads: how long they ran, how long they waited for a core, and how often one was given to them."""

    ran_ns: int
    waited_ns: int
    times: int

    def since(self, before: "_Scheduled") -> "_Scheduled | None":
        """None: a thread has ended and taken its counts along."""
        grown = _Scheduled(*(b - a for a, b in zip(before, self, strict=True)))
        return grown if min(grown) >= 0 else None

    @property
    def wait_share(self) -> float:
        return self.waited_ns / max(1, self.ran_ns + self.waited_ns)

    @property
    def wait_us(self) -> float:
        return self.waited_ns / 1e3 / max(1, self.times)


class HostMeters:
    """Running from its construction until ``reading``; ``look`` is for what only the living tell.

    engine: finds its processes, at the begin and at the end; None: they are not ours, but run on this machine, so
    that their CPU time cannot be told from that of others.
    """

    def __init__(self, engine: Callable[[], list[psutil.Process]] | None, kernel: Kernel | None = None) -> None:
        self._engine = engine
        self._kernel = kernel or Kernel()
        self._there_before = _descendants()
        self._client: set[int] = set()
        self._waited: dict[int, list[_Waited]] = {}
        self._first = self._count()

    def look(self) -> None:
        """How long the load generator, all processes of ours that are new, has waited for a core."""
        self._client = self._client or _descendants() - self._there_before
        for pid in self._client:
            text = _read(self._kernel.proc / str(pid) / "schedstat")
            if text:
                looks = self._waited.setdefault(pid, [])
                looks[1:] = [_Waited(time.monotonic_ns(), int(text.split()[1]))]

    def reading(self) -> HostReading:
        a, b = self._first, self._count()
        seconds = max(1e-9, (b.monotonic_ns - a.monotonic_ns) / 1e9)
        steal, foreign = _cpu_shares(a, b)
        engine = b.engine.since(a.engine) if a.engine and b.engine else None
        thermal = [
            (b.thermal_ms[name] - ms) / 1e3 / seconds for name, ms in a.thermal_ms.items() if name in b.thermal_ms
        ]
        swapped = _growth(a.swapped_pages, b.swapped_pages)
        throttled = _growth(a.throttled_ns, b.throttled_ns)
        stalled = {
            name: (b.stalled_us[name] - us) / 1e6 / seconds for name, us in a.stalled_us.items() if name in b.stalled_us
        }
        neighbours = [n for n in (a.gpu_neighbours, b.gpu_neighbours) if n is not None]
        slowed = [s for s in (a.gpu_slowed, b.gpu_slowed) if s is not None]
        return HostReading(
            steal_share=steal,
            foreign_cpu_share=foreign,
            engine_wait_share=engine and engine.wait_share,
            engine_wait_us=engine and engine.wait_us,
            client_wait_share=self._client_wait_share(),
            cpu_stalled_share=stalled.get("cpu"),
            memory_stalled_share=stalled.get("memory"),
            io_stalled_share=stalled.get("io"),
            throttled_share=None if throttled is None else throttled / 1e9 / seconds / limits().cores,
            thermal_throttled_share=max(thermal, default=None),
            swapped_bytes_per_s=None if swapped is None else swapped * os.sysconf("SC_PAGE_SIZE") / seconds,
            gpu_neighbours=max(neighbours, default=None),
            gpu_slowed=any(slowed) if slowed else None,
            clock_step_ms=(b.clock_offset_ns - a.clock_offset_ns) / NS_PER_MS,
            suspended_ms=(b.suspended_ns - a.suspended_ns) / NS_PER_MS,
            clocksources=tuple(dict.fromkeys(c for c in (a.clocksource, b.clocksource) if c is not None)),
        )

    def _client_wait_share(self) -> float | None:
        """Of the process that waited most, between its first and its last look."""
        pairs = [looks for looks in self._waited.values() if len(looks) == 2]
        shares = [(last.wait_ns - first.wait_ns) / (last.at_ns - first.at_ns) for first, last in pairs]
        return max(shares, default=None)

    def _count(self) -> _Counters:
        proc, sys = self._kernel.proc, self._kernel.sys
        engine = None if self._engine is None else {p.pid for p in self._engine()}
        neighbours, slowed = _gpus(engine or set())
        return _Counters(
            monotonic_ns=time.monotonic_ns(),
            cpu=_cpu_ticks(proc),
            own_cpu_s=None if engine is None else _own_cpu_s(),
            engine=_scheduled(proc, engine or set()),
            stalled_us=dict(_stalled_us(proc)),
            throttled_ns=_throttled_ns(proc, sys),
            thermal_ms=dict(_thermal_ms(sys)),
            swapped_pages=_swapped_pages(proc),
            clock_offset_ns=_offset_ns(time.CLOCK_REALTIME),
            suspended_ns=_offset_ns(time.CLOCK_BOOTTIME),
            clocksource=_read(sys / "devices/system/clocksource/clocksource0/current_clocksource"),
            gpu_neighbours=neighbours,
            gpu_slowed=slowed,
        )


def is_here(url: str) -> bool:
    """Whether a server at ``url`` runs on this machine: it shares the cores that we look at."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(urlsplit(url).hostname, None)}
    except socket.gaierror:
        return False
    own = {address.address.split("%")[0] for addresses in psutil.net_if_addrs().values() for address in addresses}
    return any(str(address) in own or ipaddress.ip_address(address).is_loopback for address in found)


def _cpu_shares(a: _Counters, b: _Counters) -> tuple[float | None, float | None]:
    """Of the machine's CPU time: what the hypervisor took, and what processes took that are not ours."""
    if a.cpu is None or b.cpu is None:
        return None, None
    passed = [after - before for before, after in zip(a.cpu, b.cpu, strict=True)]
    total = sum(passed)
    if total <= 0:
        return None, None
    steal = passed[7] / total
    if a.own_cpu_s is None or b.own_cpu_s is None:
        return steal, None
    # Without interrupts: the kernel serves our packets in them.
    busy = sum(passed[:3])
    own = (b.own_cpu_s - a.own_cpu_s) * os.sysconf("SC_CLK_TCK")
    return steal, max(0.0, busy - own) / total


def _cpu_ticks(proc: Path) -> tuple[int, ...] | None:
    """The first eight columns; guest time is part of user time."""
    text = _read(proc / "stat")
    return None if text is None else tuple(int(part) for part in text.splitlines()[0].split()[1:9])


def _descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def _own_cpu_s() -> float:
    """Of this process, its children that have ended, and all living descendants: the engine and its guard too."""
    spent = sum(os.times()[:4])
    for process in psutil.Process().children(recursive=True):
        try:
            spent += sum(process.cpu_times()[:4])
        except psutil.Error:  # it has just ended
            continue
    return spent


def _scheduled(proc: Path, pids: set[int]) -> _Scheduled | None:
    """All threads of these processes together; None: there are none, or the kernel does not tell."""
    files = (path for pid in pids for path in (proc / str(pid)).glob("task/*/schedstat"))
    told = [tuple(map(int, text.split())) for path in files if (text := _read(path))]
    return _Scheduled(*map(sum, zip(*told, strict=True))) if told else None


def _stalled_us(proc: Path) -> Iterator[tuple[str, int]]:
    """Pressure stall information: `some` for the CPU, `full` (nothing could run) for memory and I/O."""
    for name, kind in (("cpu", "some"), ("memory", "full"), ("io", "full")):
        for line in (_read(proc / "pressure" / name) or "").splitlines():
            if line.startswith(kind):
                yield name, int(line.rsplit("total=", 1)[1])


def _throttled_ns(proc: Path, sys: Path) -> int | None:
    """Time for which the CPU quota of our cgroup, or of one above it, kept its processes from running."""
    found = [
        int(value) * (1000 if name == "throttled_usec" else 1)
        for folder in _cpu_cgroups(proc, sys / "fs/cgroup")
        for name, _, value in (line.partition(" ") for line in (_read(folder / "cpu.stat") or "").splitlines())
        if name in ("throttled_usec", "throttled_time")
    ]
    return max(found, default=None)


def _cpu_cgroups(proc: Path, mount: Path) -> Iterator[Path]:
    """Our cgroup and those above it, for version 2 and version 1. In a container the top is the container's."""
    for line in (_read(proc / "self/cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            roots = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [mount / "cpu", mount / "cpu,cpuacct"]
        else:
            continue
        own = PurePosixPath(path).relative_to("/")
        yield from (root / level for root in roots for level in (own, *own.parents))


def _thermal_ms(sys: Path) -> Iterator[tuple[str, int]]:
    for path in (sys / "devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_total_time_ms"):
        if (text := _read(path)) is not None:
            yield str(path), int(text)


def _swapped_pages(proc: Path) -> int | None:
    found = [int(line.split()[1]) for line in (_read(proc / "vmstat") or "").splitlines() if line.startswith("pswp")]
    return sum(found) if found else None


def _offset_ns(clock: int) -> int:
    """``clock`` - CLOCK_MONOTONIC. It changes when the wall clock is set, or the machine was suspended."""
    tries = []
    for _ in range(CLOCK_TRIES):
        before, there, after = time.monotonic_ns(), time.clock_gettime_ns(clock), time.monotonic_ns()
        tries.append((after - before, there - (before + after) // 2))
    return min(tries)[1]


def _gpus(engine: set[int]) -> tuple[int | None, bool | None]:
    """Processes of others on the GPUs that the engine is on, and whether one of these is slowed down by heat or power.

    None: no GPU, or none that a process of the engine is seen on (it runs on the CPU, or in another PID namespace).
    """
    apps = _nvidia("--query-compute-apps=gpu_uuid,pid")
    on = {gpu for gpu, pid in apps if pid.isdecimal() and int(pid) in engine}
    if not on:
        return None, None
    neighbours = {pid for gpu, pid in apps if gpu in on and not (pid.isdecimal() and int(pid) in engine)}
    states: list[tuple[str, ...]] = []
    for group in REASONS:
        fields = ",".join(f"{group}.{reason}" for reason in SLOWED)
        states = states or [row[1:] for row in _nvidia(f"--query-gpu=uuid,{fields}") if row[0] in on]
    return len(neighbours), any("Active" in state for state in states) if states else None


def _nvidia(query: str) -> list[tuple[str, ...]]:
    """Rows of what nvidia-smi answers; none without it."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return []
    try:
        said = subprocess.run(
            [tool, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=GPU_ANSWERS_S, check=False
        )
    except subprocess.TimeoutExpired:
        return []
    rows = said.stdout.splitlines() if said.returncode == 0 else []
    return [tuple(cell.strip() for cell in row.split(",")) for row in rows if row.strip()]


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
