"""Who generates the load, and how a plan is shared among several processes.

Knows nothing of Locust or of how the shares travel.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple
from urllib.parse import urlsplit

from harness.load.records import LiveCounters, LoadPlan, PlannedRequest
from harness.load.timers import NEVER_NS
from scenarios.errors import UserError

DEFAULT_PORT = 5557  # Locust's own


@dataclass(frozen=True, slots=True)
class Fleet:
    """``local`` processes on this machine and ``remote`` ones on others, which come by themselves.

    ``listen``: address at which the remote ones find us; the local ones use it too. With one local process
    and no other, nobody listens anywhere.
    """

    local: int = 1
    remote: int = 0
    listen: tuple[str, int] = ("127.0.0.1", 0)
    muster_s: float = 60.0  # how long all of them may take to come

    @property
    def size(self) -> int:
        return self.local + self.remote


ALONE = Fleet()


def parse_address(text: str) -> tuple[str, int]:
    """HOST or HOST:PORT; an IPv6 address in brackets. Raises UserError."""
    parts = urlsplit(f"//{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.path or parts.username is not None:
        raise UserError(f"an address must look like HOST or HOST:PORT, got {text}")
    return host, DEFAULT_PORT if port is None else port


def is_loopback(url: str) -> bool:
    """Whether the URL means the machine on which it is used."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def shares(plan: LoadPlan, n: int) -> list[LoadPlan]:
    """Every n-th request each, a session's turns together: the joint process stays exactly the plan's.

    Fewer than n have requests where a closed loop has fewer lanes. Misses and silence end a run when all of them
    together show it, so no share ends by itself.
    """
    active = n if plan.concurrency is None else min(n, plan.concurrency)
    parts: list[list[PlannedRequest]] = [[] for _ in range(n)]
    owner: dict[int, int] = {}
    firsts = 0
    for request in plan.requests:
        if request.after is None:
            owner[request.index] = firsts % active
            firsts += 1
        else:
            owner[request.index] = owner[request.after]
        parts[owner[request.index]].append(request)
    settings = {f.name: getattr(plan, f.name) for f in fields(LoadPlan)} | {
        "stop_after_misses": {},
        "hang_ns": NEVER_NS,
    }
    lanes = [None] * n if plan.concurrency is None else [len(range(k, plan.concurrency, n)) for k in range(n)]
    return [
        LoadPlan(**(settings | {"requests": tuple(part), "concurrency": concurrency}))
        for part, concurrency in zip(parts, lanes, strict=True)
    ]


def together(counters: Sequence[LiveCounters], planned: int) -> LiveCounters:
    """What the processes that have said something say as one."""
    ages = [c.newest_token_age_s for c in counters if c.newest_token_age_s is not None]
    misses: dict[str, int] = {}
    for c in counters:
        for target, count in c.misses.items():
            misses[target] = misses.get(target, 0) + count
    sums = {name: sum(getattr(c, name) for c in counters) for name in ("sent", "done", "failed", "in_flight", "late")}
    return LiveCounters(
        elapsed_s=max((c.elapsed_s for c in counters), default=0.0),
        planned=planned,
        misses=misses,
        newest_token_age_s=min(ages, default=None),
        **sums,
    )


class ClockReading(NamedTuple):
    """One question and answer: when we asked, what the other's clock said, when the answer was here. All ns."""

    asked_ns: int
    said_ns: int
    heard_ns: int


def clock_offset(readings: Iterable[ClockReading]) -> tuple[int, int]:
    """The other's clock minus ours, and the most it can be wrong, in ns.

    The answer was given at some instant between question and hearing, so the midpoint of the quickest exchange
    is off by at most half its length (Cristian 1989, Probabilistic clock synchronization). At least one reading.
    """
    best = min(readings, key=lambda r: r.heard_ns - r.asked_ns)
    return best.said_ns - (best.asked_ns + best.heard_ns) // 2, (best.heard_ns - best.asked_ns + 1) // 2
