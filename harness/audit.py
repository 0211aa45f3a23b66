"""Was the load what was asked for, and by whose doing was it not? Every limit beyond which a run is void.

Knows nothing of records or of what a good latency is. Why each limit: docs/metrics.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from harness.errors import HostDisturbed, LoadGeneratorSaturated, TrialVoid
from harness.load.records import LoadResult
from harness.measurement import Audit, HostReading

LATENESS_FLOOR_MS = 1.0
LATENESS_SHARE = 0.02  # of the tightest latency that lateness is part of
ACHIEVED_SHARE = 0.99
CLIENT_CPU_LIMIT = 0.9  # of one core

OWN_MEMORY_SHARE = 0.7  # of the machine's memory: an engine that fills more makes it swap by itself


# Other programs that take less from the engine's threads do it no harm, nor waits as short as any wake-up.
ENGINE_WAIT_LIMIT = 0.02
WAKE_UP_US = 50.0


@dataclass(frozen=True, slots=True)
class HostLimit:
    """Beyond ``limit`` the reading ``name`` voids a run.

    memory: unless the engine fills the memory itself. cores: unless the engine's threads hardly
    waited for one.
    """

    name: str
    limit: float
    reason: str
    advice: str
    memory: bool = False
    cores: bool = False


HOST_LIMITS = (
    HostLimit(
        "steal_share",
        0.05,
        "the hypervisor took {value:.0%} of the CPU time, limit {limit:.0%}",
        "use a machine, or a time, with fewer neighbours",
    ),
    HostLimit(
        "foreign_cpu_share",
        0.10,
        "other programs took {value:.0%} of the CPU time, limit {limit:.0%}{waited}",
        "close other programs",
        cores=True,
    ),
    HostLimit(
        "throttled_share",
        0.05,
        "the CPU quota of the cgroup stopped us for {value:.0%} of the time, limit {limit:.0%}",
        "raise the quota, or leave the engine a thread less than there are cores",
    ),
    HostLimit(
        "thermal_throttled_share",
        0.05,
        "a core was slowed down by heat for {value:.0%} of the time, limit {limit:.0%}",
        "cool the machine, or cap its frequency",
    ),
    HostLimit("gpu_slowed", 0, "the GPU was slowed down by heat or power", "cool the GPU, or cap its clocks"),
    HostLimit("gpu_neighbours", 0, "processes of others on the engine's GPU: {value}", "free the GPU (`nvidia-smi`)"),
    HostLimit(
        "swapped_bytes_per_s",
        1e6,
        "the machine swapped {value:,.0f} bytes/s, limit {limit:,.0f}",
        "close programs that hold memory",
        memory=True,
    ),
    HostLimit(
        "memory_stalled_share",
        0.05,
        "everything waited for memory for {value:.0%} of the time, limit {limit:.0%}",
        "close programs that hold memory",
        memory=True,
    ),
    HostLimit(
        "clock_step_ms",
        1.0,
        "the wall clock was set by {value:.1f} ms, limit {limit:.1f} ms",
        "let the clock settle (`chronyc tracking`)",
    ),
    HostLimit("suspended_ms", 1.0, "the machine was suspended for {value:.0f} ms", "keep the machine awake"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was due in the judged window of ``seconds``, and what of it was really sent."""

    offered: int
    achieved: int
    seconds: float
    scheduled: bool  # False: a closed loop offers no rate
    tightest_ms: float | None  # the tightest latency that lateness is part of; None: there is none


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that was not as it must be, and what a person can do about it."""

    reason: str
    advice: str


def audit(asked: Asked, load: LoadResult, host: HostReading, engine_memory_share: float | None = None) -> Audit:
    """``engine_memory_share``: the engine's peak resident memory, of the machine's; None: not observable."""
    limit_ms = max(LATENESS_FLOOR_MS, LATENESS_SHARE * (asked.tightest_ms or 0.0))
    disturbed = tuple(_host_faults(host, engine_memory_share))
    faults = (*disturbed, *_client_faults(asked, load, host, limit_ms))
    return Audit(
        **host.model_dump(),
        offered_rps=_per_second(asked.offered, asked.seconds) if asked.scheduled else None,
        achieved_rps=_per_second(asked.achieved, asked.seconds),
        send_lateness_p50_ms=load.send_lateness_p50_ms,
        send_lateness_p99_ms=load.send_lateness_p99_ms,
        send_lateness_limit_ms=limit_ms,
        loop_lag_p99_ms=load.loop_lag_p99_ms,
        receive_lag_p99_ms=load.receive_lag_p99_ms,
        generator_cpu_share=load.cpu_share,
        connections_opened=load.connections_opened,
        stale_connections_replaced=load.stale_connections_replaced,
        scheduling=load.scheduling,
        void_reasons=tuple(fault.reason for fault in faults),
        # A client that is late on a disturbed machine is late because of that.
        limited_by="host" if disturbed else "client" if faults else None,
        advice="; ".join(dict.fromkeys(fault.advice for fault in disturbed or faults)),
    )


def void(found: Audit) -> TrialVoid:
    """The error that a void run ends with: who was the limit, how it shows, what to do."""
    error = LoadGeneratorSaturated if found.limited_by == "client" else HostDisturbed
    who = "the load generator was the limit" if found.limited_by == "client" else "the machine was disturbed"
    return error(f"{who}: {'; '.join(found.void_reasons)}. {found.advice[:1].upper()}{found.advice[1:]}")


def _host_faults(host: HostReading, engine_memory_share: float | None) -> Iterator[Fault]:
    own_doing = engine_memory_share is not None and engine_memory_share > OWN_MEMORY_SHARE
    wait, wake_up_us = host.engine_wait_share, host.engine_wait_us
    unharmed = (wait is not None and wait <= ENGINE_WAIT_LIMIT) or (wake_up_us is not None and wake_up_us <= WAKE_UP_US)
    waited = "" if wait is None else f", and the engine waited for a core {wait:.0%} of its time"
    for known in HOST_LIMITS:
        value = getattr(host, known.name)
        harmless = (known.memory and own_doing) or (known.cores and unharmed)
        if value is not None and abs(value) > known.limit and not harmless:
            yield Fault(known.reason.format(value=value, limit=known.limit, waited=waited), known.advice)
    if len(host.clocksources) > 1:
        yield Fault(f"the kernel changed its clock: {' -> '.join(host.clocksources)}", "see what `dmesg` says of it")


def _client_faults(asked: Asked, load: LoadResult, host: HostReading, limit_ms: float) -> Iterator[Fault]:
    advice = _client_advice(load)
    waited = (
        "" if host.client_wait_share is None else f"; it waited for a core {host.client_wait_share:.0%} of the time"
    )
    if load.send_lateness_p99_ms > limit_ms:
        yield Fault(
            f"requests were sent late: P99 {load.send_lateness_p99_ms:.2f} ms, limit {limit_ms:.2f} ms{waited}", advice
        )
    elif load.loop_lag_p99_ms > limit_ms:
        yield Fault(
            f"answers were looked at late: P99 {load.loop_lag_p99_ms:.2f} ms, limit {limit_ms:.2f} ms{waited}", advice
        )
    if load.receive_lag_p99_ms is not None and load.receive_lag_p99_ms > limit_ms:
        yield Fault(
            f"answers were stamped late: P99 {load.receive_lag_p99_ms:.2f} ms after the kernel had them, "
            f"limit {limit_ms:.2f} ms",
            advice,
        )
    if asked.achieved < ACHIEVED_SHARE * asked.offered:
        yield Fault(f"only {asked.achieved} of {asked.offered} due requests were sent", advice)
    if load.cpu_share > CLIENT_CPU_LIMIT:
        yield Fault(f"it used {load.cpu_share:.0%} of a core, limit {CLIENT_CPU_LIMIT:.0%}", advice)


def _client_advice(load: LoadResult) -> str:
    if load.cpu_share > CLIENT_CPU_LIMIT:
        return "spread the load over more processes (`--workers 2`), or ask for a lower rate"
    if load.scheduling != "realtime":
        return "let the load generator run first (`autotune doctor` says how), or leave it a core: fewer engine threads"
    return "leave the load generator a core: fewer engine threads, or another machine"


def _per_second(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
