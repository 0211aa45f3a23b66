"""What goes in and out of the load child: the plan's types and files, and what it tells its parent.

Knows nothing of Locust, gevent, HTTP or SLO verdicts, and imports little: it is part of the child. All times
are integer nanoseconds on the monotonic clock, relative to the run's t0 (``t0_monotonic_ns`` in the result).
"""

import itertools
import json
import mmap
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, overload

PLAN_FILE = "plan.json"
REQUESTS_FILE = "requests.bin"
ROWS_FILE = "rows.bin"
RECORDS_FILE = "requests.parquet"
AUDIT_FILE = "audit.json"

NONE = -(1 << 63)  # stands for None in a column of 64-bit integers

ERRORS = ("connect", "reset", "timeout", "http", "truncated", "protocol", "cancelled")
# connect: no connection. reset: it broke, or ended before a byte of the answer. truncated: the answer ended
# early. http: the server said no, by its status or by an error event in the stream. protocol: not HTTP, or
# not the API's JSON. timeout: plan.timeout_ns after t_int. No request is ever sent twice.
# cancelled: in flight when the run was stopped early or its drain time was over. An unfinished request
# that is already older than its targets counts as a miss; a younger one says nothing (observe.py).


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of the schedule. ``body``: the exact bytes of the HTTP body (JSON, UTF-8).

    A first turn is due at ``t_int_ns``. A later turn names the request it follows in ``after``, and is due
    ``think_ns`` after that one has ended; its ``t_int_ns`` is then only where it would fall if every answer
    took no time, and orders the plan.
    """

    index: int
    t_int_ns: int
    body: bytes
    prompt_tokens_asked: int
    output_tokens_asked: int
    traffic_class: str = ""
    session: int | None = None
    turn: int = 0
    after: int | None = None
    think_ns: int = 0


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Everything the load child needs. Written as a folder: ``plan.json`` plus ``requests.bin``.

    ``mode`` open: every request is fired at t0 + t_int_ns, whatever became of the others.
    ``mode`` closed: ``concurrency`` requests are kept in flight, in plan order, each started
    ``think_time_ns`` after the previous answer on its lane; ``t_int_ns`` is then set when it is due.
    ``slo_ms``: target -> ms, for live miss counters only; verdicts are the parent's. A target is named
    "ttft" (of all requests) or "chat.ttft" (of the traffic class chat).
    ``stop_after_misses``: end early once so many requests missed a target, by its name (empty: never).
    ``drain_ns``: how long to wait for answers after the last intended send.
    """

    base_url: str  # e.g. http://127.0.0.1:8123/v1
    path: str  # "/completions" or "/chat/completions", below base_url
    mode: Literal["open", "closed"]
    api: Literal["completions", "chat"]
    stream: bool
    timeout_ns: int
    drain_ns: int
    hang_ns: int
    requests: Sequence[PlannedRequest] = field(repr=False)
    slo_ms: dict[str, float] = field(default_factory=dict)
    stop_after_misses: dict[str, int] = field(default_factory=dict)
    misses_from_ns: int = 0  # requests due before are a warm-up: their misses do not count
    until_ns: int | None = None  # a later turn that falls due after is not sent (None: all are)
    concurrency: int | None = None
    think_time_ns: int = 0
    api_key_env: str | None = None  # the NAME; the child reads the value from its environment


@dataclass(frozen=True, slots=True)
class LiveCounters:
    """What the child tells every 250 ms at most, as one JSON line on stdout: {"live": {...}}."""

    elapsed_s: float
    planned: int
    sent: int
    done: int
    failed: int
    in_flight: int
    late: int  # sent more than 1 ms after the intended time
    misses: dict[str, int]  # per target of slo_ms, unfinished requests older than their target included
    newest_token_age_s: float | None  # None: nothing in flight


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a run of the load child left: the records and its own audit (``audit.json``).

    With several workers: percentiles over all of them, counts and memory added up, the busiest one's CPU share.
    """

    records_path: Path
    t0_monotonic_ns: int
    t0_wall_iso: str
    elapsed_s: float
    stopped_early: str | None  # None, "misses", "asked", "hung"
    planned: int
    sent: int
    send_lateness_p50_ms: float
    send_lateness_p99_ms: float
    loop_lag_p99_ms: float
    cpu_s: float
    cpu_share: float  # of one core, while running
    max_rss_bytes: int
    connections_opened: int
    stale_connections_replaced: int
    locust_version: str
    idle_connections_dropped: int = 0  # unused for longer than the pool trusts a server to keep them
    scheduling: str = "none"  # what the child was granted to be served before others (priority.py)
    never_due: int = 0  # of planned: later turns whose time did not come
    receive_lag_p50_ms: float | None = None  # from the kernel's receipt of bytes to our stamp, on sampled
    receive_lag_p99_ms: float | None = None  # connections; None: nothing was received on one
    workers: int = 1  # processes that generated the load
    clock_offset_ms: float | None = None  # of the worker whose monotonic clock is farthest from the master's
    clock_uncertainty_ms: float | None = None  # of that offset, at most; None: there is one process

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "records_path": self.records_path.name}


_NUMBERS = ("index", "t_int_ns", "prompt_tokens_asked", "output_tokens_asked", "session", "turn", "after", "think_ns")
_COLUMNS = (*_NUMBERS, "traffic_class", "body_end")


class PackedRequests(Sequence[PlannedRequest]):
    """Requests as they lie in a file: columns of 64-bit integers, then the bodies. Each is made when asked for."""

    def __init__(self, packed: "memoryview | mmap.mmap | bytes", classes: Sequence[str], count: int) -> None:
        view = memoryview(packed)
        width = 8 * count
        self._columns = {n: view[i * width : (i + 1) * width].cast("q") for i, n in enumerate(_COLUMNS)}
        self._bodies = view[len(_COLUMNS) * width :]
        self._classes = classes
        self._count = count

    def column(self, name: str) -> memoryview:
        """Of 64-bit integers; `NONE` stands for None."""
        return self._columns[name]

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> PlannedRequest: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[PlannedRequest]: ...
    def __getitem__(self, at: int | slice) -> PlannedRequest | Sequence[PlannedRequest]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(self._count))]
        columns = self._columns
        numbers = {name: columns[name][at] for name in _NUMBERS}
        ends = columns["body_end"]
        return PlannedRequest(
            **{name: None if number == NONE else number for name, number in numbers.items()},  # type: ignore[arg-type]
            traffic_class=self._classes[columns["traffic_class"][at]],
            body=bytes(self._bodies[ends[at - 1] if at else 0 : ends[at]]),
        )


@dataclass(frozen=True, slots=True)
class PackedPlan(LoadPlan):
    """A plan as the load child has it."""

    requests: PackedRequests = field(repr=False)


def pack(plan: LoadPlan) -> tuple[dict[str, Any], Iterator[bytes]]:
    """Settings that JSON can say, and the requests in pieces of bytes; `unpack` reads both."""
    settings = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name != "requests"}
    classes = list(dict.fromkeys(r.traffic_class for r in plan.requests))
    return {**settings, "classes": classes, "count": len(plan.requests)}, _pieces(plan.requests, classes)


def _pieces(requests: Sequence[PlannedRequest], classes: list[str]) -> Iterator[bytes]:
    for name in _NUMBERS:
        values = (getattr(r, name) for r in requests)
        yield array("q", [NONE if value is None else value for value in values]).tobytes()
    yield array("q", [classes.index(r.traffic_class) for r in requests]).tobytes()
    yield array("q", itertools.accumulate(len(r.body) for r in requests)).tobytes()
    yield from (r.body for r in requests)


def unpack(settings: Mapping[str, Any], packed: "mmap.mmap | bytes") -> PackedPlan:
    """What `pack` was given."""
    own = dict(settings)
    requests = PackedRequests(packed, own.pop("classes"), own.pop("count"))
    return PackedPlan(**own, requests=requests)


def write_plan(plan: LoadPlan, folder: Path) -> None:
    """Into `PLAN_FILE` and `REQUESTS_FILE`. Raises OSError."""
    settings, pieces = pack(plan)
    (folder / PLAN_FILE).write_text(json.dumps(settings, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with (folder / REQUESTS_FILE).open("wb") as file:
        file.writelines(pieces)


def read_plan(folder: Path) -> PackedPlan:
    """What write_plan wrote; the requests stay in their file until they are asked for."""
    settings = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    with (folder / REQUESTS_FILE).open("rb") as file:
        packed = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return unpack(settings, packed)


def delete_plan(folder: Path) -> None:
    """The plan's files are bulky and can be made again from the workload and its seed."""
    for name in (PLAN_FILE, REQUESTS_FILE, ROWS_FILE):
        (folder / name).unlink(missing_ok=True)
