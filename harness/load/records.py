"""The file formats between the parent and the load child: the plan that goes in, the records that come out.

Knows nothing of Locust, gevent, HTTP or SLO verdicts. All times are integer nanoseconds on the monotonic
clock, relative to the run's t0 (``t0_monotonic_ns`` in the result).
"""

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

PLAN_FILE = "plan.json"
REQUESTS_FILE = "requests.arrow"
RECORDS_FILE = "requests.parquet"
AUDIT_FILE = "audit.json"

RECORD_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),  # position in the plan
        pa.field("t_int_ns", pa.int64(), nullable=False),  # intended send time
        pa.field("t_send_ns", pa.int64()),  # after the last byte was sent; null: never sent
        pa.field("t_first_ns", pa.int64()),  # first chunk with content; null: none came
        pa.field("t_last_ns", pa.int64()),  # last chunk with content
        pa.field("t_end_ns", pa.int64(), nullable=False),  # response over, error, or timeout
        pa.field("chunk_ns", pa.list_(pa.int64()), nullable=False),  # every chunk with content
        pa.field("prompt_tokens_asked", pa.int64(), nullable=False),
        pa.field("output_tokens_asked", pa.int64(), nullable=False),
        pa.field("prompt_tokens", pa.int64()),  # usage.prompt_tokens; null: server did not say
        pa.field("cached_tokens", pa.int64()),  # usage.prompt_tokens_details.cached_tokens
        pa.field("output_tokens", pa.int64()),  # usage.completion_tokens
        pa.field("finish_reason", pa.string()),
        pa.field("http_status", pa.int64()),
        pa.field("error", pa.string()),  # null: success. Else one of ERRORS
        pa.field("connection_reused", pa.bool_(), nullable=False),
        pa.field("bytes_received", pa.int64(), nullable=False),
        pa.field("traffic_class", pa.string(), nullable=False),  # of a mix of classes; "": there is just one
        pa.field("session", pa.int64()),  # the conversation it is a turn of; null: it stands alone
        pa.field("turn", pa.int64(), nullable=False),  # of its session, from 0
    ]
)

ERRORS = ("connect", "reset", "timeout", "http", "truncated", "protocol", "cancelled")
# connect: no connection. reset: it broke, or ended before a byte of the answer. truncated: the answer ended
# early. http: the server said no, by its status or by an error event in the stream. protocol: not HTTP, or
# not the API's JSON. timeout: plan.timeout_ns after t_int. No request is ever sent twice.
# cancelled: in flight when the run was stopped early or its drain time was over. An unfinished request
# that is already older than its targets counts as a miss; a younger one says nothing (observe.py).


class Record(NamedTuple):
    """One row of RECORD_SCHEMA; same names, same order."""

    index: int  # type: ignore[assignment]  # the column's name; nobody looks for values in a record
    t_int_ns: int
    t_send_ns: int | None
    t_first_ns: int | None
    t_last_ns: int | None
    t_end_ns: int
    chunk_ns: "array[int]"
    prompt_tokens_asked: int
    output_tokens_asked: int
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    finish_reason: str | None
    http_status: int | None
    error: str | None
    connection_reused: bool
    bytes_received: int
    traffic_class: str = ""
    session: int | None = None
    turn: int = 0


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
    """Everything the load child needs. Written as a folder: ``plan.json`` plus ``requests.arrow``.

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
    requests: tuple[PlannedRequest, ...] = field(repr=False)
    slo_ms: dict[str, float] = field(default_factory=dict)
    stop_after_misses: dict[str, int] = field(default_factory=dict)
    misses_from_ns: int = 0  # requests due before are a warm-up: their misses do not count
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
    """What a run of the load child left: the records and its own audit (``audit.json``)."""

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

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "records_path": self.records_path.name}


_REQUESTS_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("t_int_ns", pa.int64(), nullable=False),
        pa.field("body", pa.large_binary(), nullable=False),
        pa.field("prompt_tokens_asked", pa.int64(), nullable=False),
        pa.field("output_tokens_asked", pa.int64(), nullable=False),
        pa.field("traffic_class", pa.string(), nullable=False),
        pa.field("session", pa.int64()),
        pa.field("turn", pa.int64(), nullable=False),
        pa.field("after", pa.int64()),
        pa.field("think_ns", pa.int64(), nullable=False),
    ]
)


def write_plan(plan: LoadPlan, metadata: Mapping[str, str], folder: Path) -> None:
    """``metadata`` travels along, into the schema metadata of the records. Raises OSError."""
    settings = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name != "requests"}
    document = {"plan": settings, "metadata": dict(metadata)}
    (folder / PLAN_FILE).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    columns = {name: [getattr(r, name) for r in plan.requests] for name in _REQUESTS_SCHEMA.names}
    table = pa.table(columns, schema=_REQUESTS_SCHEMA)
    with pa.OSFile(str(folder / REQUESTS_FILE), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_plan(folder: Path) -> tuple[LoadPlan, dict[str, str]]:
    """What write_plan wrote: the plan and its metadata."""
    document = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    with pa.OSFile(str(folder / REQUESTS_FILE), "rb") as source:
        columns = pa.ipc.open_file(source).read_all().to_pydict()
    rows = zip(*(columns[f.name] for f in fields(PlannedRequest)), strict=True)
    return LoadPlan(**document["plan"], requests=tuple(PlannedRequest(*row) for row in rows)), document["metadata"]


def delete_plan(folder: Path) -> None:
    """The plan's files are bulky and can be made again from the workload and its seed."""
    for name in (PLAN_FILE, REQUESTS_FILE):
        (folder / name).unlink(missing_ok=True)


def write_records(records: Sequence[Record], metadata: Mapping[str, str], path: Path) -> None:
    """All at once, under a temporary name until complete. Raises OSError."""
    offsets, chunks = array("q", [0]), array("q")
    for record in records:
        chunks.extend(record.chunk_ns)
        offsets.append(len(chunks))
    by_name = dict(zip(Record._fields, zip(*records, strict=True), strict=False))
    columns = [pa.array(by_name.get(f.name, ()), f.type) for f in RECORD_SCHEMA if f.name != "chunk_ns"]
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(chunks, pa.int64()))
    columns.insert(RECORD_SCHEMA.get_field_index("chunk_ns"), lists)
    table = pa.Table.from_arrays(columns, schema=RECORD_SCHEMA.with_metadata(dict(metadata)))
    partial = path.with_suffix(".partial")
    try:
        pq.write_table(table, partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
