"""What this machine grants to those who measure on it, why that matters, and the command that grants what lacks.

Knows nothing of a running measurement (meters.py) or of engines.
"""

import math
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.audit import LATENESS_FLOOR_MS
from harness.load.priority import first_in_line
from harness.load.timers import TimerFd

FEWEST_FILES = 4096
FEWEST_PORTS = 20_000
LONGEST_SLACK_NS = 50_000
SLOW_CLOCKS = ("hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies")
WAKE_UPS = 200
WAKE_UP_EVERY_NS = 1_000_000

RTPRIO = (
    'echo "$USER - rtprio 1" | sudo tee /etc/security/limits.d/autotune.conf, and log in again '
    "(containers: --ulimit rtprio=1, services: LimitRTPRIO=1)"
)
NOFILE = (
    'echo "$USER hard nofile 65536" | sudo tee -a /etc/security/limits.d/autotune.conf, and log in again '
    "(containers: --ulimit nofile=65536, services: LimitNOFILE=65536)"
)
PORTS = 'sudo sysctl -w net.ipv4.ip_local_port_range="15000 64999"'
GOVERNOR = "sudo cpupower frequency-set -g performance"
CLOCK = "see why the kernel left the TSC: sudo dmesg | grep -i -e tsc -e clocksource"
PRESSURE = "add psi=1 to the kernel's command line"
QUOTA = "give whole cores instead of a quota (containers: --cpuset-cpus instead of --cpus)"
SLACK = "start it from a plain shell: the slack is inherited (/proc/self/timerslack_ns)"


@dataclass(frozen=True, slots=True)
class Grant:
    """``ok`` None: this machine does not tell. ``how``: the command that grants it; empty where it is granted."""

    name: str
    found: str
    ok: bool | None
    why: str
    how: str = ""


def grants(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Iterator[Grant]:
    """Takes a third of a second: it measures how late this process wakes up."""
    with first_in_line() as scheduling:
        late_ms = wake_up_p99_ms()
    realtime = scheduling == "realtime"
    yield _grant("real-time scheduling", scheduling, realtime, "an engine's threads cannot delay a send", RTPRIO)
    yield _grant(
        "wake-up, P99",
        f"{late_ms:.3f} ms late",
        late_ms <= LATENESS_FLOOR_MS / 2,
        f"sends later than {LATENESS_FLOOR_MS:g} ms void a run",
        "close other programs" if realtime else "grant real-time scheduling; close other programs",
    )
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = files == resource.RLIM_INFINITY or files >= FEWEST_FILES
    shown = "unlimited" if files == resource.RLIM_INFINITY else f"{files:,}"
    yield _grant("open files", shown, enough, "every request in flight holds one", NOFILE)
    yield _ports(proc)
    yield _slack(proc)
    yield _clock(sys)
    told = _read(proc / "pressure/cpu") is not None
    yield _grant("pressure (PSI)", "told" if told else "not told", told, "shows who waited, and for what", PRESSURE)
    yield _governor(sys)
    yield _quota(sys)


def wake_up_p99_ms(wake_ups: int = WAKE_UPS) -> float:
    """How late a timer of 1 ms wakes this process up: P99, nearest rank."""
    timer, late = TimerFd(), []
    os.set_blocking(timer.fd, True)
    try:
        due_ns = time.monotonic_ns() + WAKE_UP_EVERY_NS
        for _ in range(wake_ups):
            timer.set(due_ns)
            timer.expirations()
            now_ns = time.monotonic_ns()
            late.append(now_ns - due_ns)
            due_ns = max(due_ns, now_ns) + WAKE_UP_EVERY_NS
    finally:
        timer.close()
    return sorted(late)[math.ceil(0.99 * wake_ups) - 1] / 1e6


def _grant(name: str, found: str, ok: bool | None, why: str, how: str) -> Grant:
    return Grant(name, found, ok, why, "" if ok in (True, None) else how)


def _ports(proc: Path) -> Grant:
    why = "a connection that was closed holds its port for a minute"
    text = _read(proc / "sys/net/ipv4/ip_local_port_range")
    if text is None:
        return _grant("ephemeral ports", "not told", None, why, PORTS)
    low, high = map(int, text.split())
    return _grant("ephemeral ports", f"{high - low + 1:,}", high - low + 1 >= FEWEST_PORTS, why, PORTS)


def _slack(proc: Path) -> Grant:
    why = "sleeps may end so much later"
    text = _read(proc / "self/timerslack_ns")
    if text is None:
        return _grant("timer slack", "not told", None, why, SLACK)
    return _grant("timer slack", f"{int(text) / 1e3:g} µs", int(text) <= LONGEST_SLACK_NS, why, SLACK)


def _clock(sys: Path) -> Grant:
    found = _read(sys / "devices/system/clocksource/clocksource0/current_clocksource")
    ok = None if found is None else found not in SLOW_CLOCKS
    return _grant("clock", found or "not told", ok, "slow clocks cost a microsecond a stamp, or are coarse", CLOCK)


def _governor(sys: Path) -> Grant:
    found = {
        text
        for path in (sys / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
        if (text := _read(path)) is not None
    }
    ok = found == {"performance"} if found else None
    shown = ", ".join(sorted(found)) or "not told"
    return _grant(
        "frequency governor", shown, ok, "frequencies that follow the load make it slow when it is light", GOVERNOR
    )


def _quota(sys: Path) -> Grant:
    """Version 2: ``cpu.max``; version 1: ``cpu.cfs_quota_us``."""
    why = "a quota stops everything for tens of milliseconds when it is used up"
    new, old = _read(sys / "fs/cgroup/cpu.max"), _read(sys / "fs/cgroup/cpu/cpu.cfs_quota_us")
    if new is None and old is None:
        return _grant("CPU quota", "not told", None, why, QUOTA)
    limited = new.split()[0] != "max" if new is not None else old != "-1"
    return _grant("CPU quota", f"limited: {new or old}" if limited else "none", not limited, why, QUOTA)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
