"""One cell: one generator, one rate, once. Starts the stub and the generator, and holds both records together.

Everything a generator reports is compared with what the server and its kernel stamped for the same requests.
Knows nothing of repeats, targets or tables.
"""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from asks import TTFT_MS, Answers, Ask, FloatArray
from footprint import Footprint
from peers import ENVIRONMENTS, Peer
from scipy import stats
from stub import ServerRecord, Stub

NS = 1_000_000_000
WARMUP_NS = NS  # from the first arrival: connections are opened, code is compiled
FREEZE_MS = 2000
FREEZE_RATE_RPS = 100.0
SERVER_CPU, CLIENT_CPU = 1, 0
SERVER_PRIORITY = 10
KOLMOGOROV_5_PERCENT = 1.36
PERCENTS = (50, 95, 99)
_MISSED_ARRIVALS = 0.8  # fewer of the expected arrivals in the freeze: the generator waited for it to end


@dataclass(frozen=True, slots=True)
class Ended:
    """How the generator's process ended. ``why``: None where it ended by itself with status 0."""

    why: str | None
    log: str
    wall_s: float
    total_cpu_s: float  # start and evaluation included


def measure(peer: Peer, ask: Ask, *, freeze: bool) -> dict[str, Any]:
    """The cell's row. Never raises for what the generator does wrong: that is a result (``failed``)."""
    shutil.rmtree(ask.folder, ignore_errors=True)
    ask.folder.mkdir(parents=True)
    os.sched_setaffinity(0, {SERVER_CPU})
    limit_s = 60 + 3 * ask.seconds
    priority = server_priority()
    with Stub(pin=SERVER_CPU, realtime=priority, max_seconds=limit_s + 30) as stub:
        ask = Ask(**{**_fields(ask), "url": stub.url})
        if freeze:
            stub.freeze(FREEZE_MS, at_request=ask.count // 2)
        ended, footprint = _run(peer, ask, limit_s)
        status, record = stub.status(), stub.record()
    row: dict[str, Any] = {
        "failed": ended.why,
        "server_priority": priority,
        "wall_s": ended.wall_s,
        "total_cpu_s": ended.total_cpu_s,
        "processes": footprint.most_processes,
        "peak_pss_mb": footprint.peak_pss_bytes / 1e6,
        "stub_cpu_s": status["cpu_s"],
        "connections": status["connections"],
        "without_kernel_stamp": status["without_kernel_stamp"],
        "argv": [word.replace(str(ENVIRONMENTS), "…").replace(str(ask.folder), "RUN") for word in peer.argv(ask)],
    }
    answers = None
    if ended.why is None:
        try:
            answers = peer.read(ask, ended.log)
        except (OSError, KeyError, ValueError, TypeError) as err:
            row["failed"] = f"its results cannot be read: {type(err).__name__}: {err}"
    if len(record) > 2:
        row |= _of_server(record, ask, footprint)
    if answers is not None and len(answers.ttft_ms) and len(record) > 2:
        row |= freeze_row(record, answers, ask, status["freezes"]) if freeze else inflation_row(record, answers)
        row["errors"] = answers.errors
        row["notes"] = list(answers.notes)
    if row["failed"] is None:
        shutil.rmtree(ask.folder, ignore_errors=True)
    return row


def server_priority() -> int:
    """Real time where that is allowed, so that a greedy generator does not starve the server; else 0."""
    _, most = resource.getrlimit(resource.RLIMIT_RTPRIO)
    return SERVER_PRIORITY if os.geteuid() == 0 or most >= SERVER_PRIORITY else 0


def _fields(ask: Ask) -> dict[str, Any]:
    return {name: getattr(ask, name) for name in Ask.__slots__}


# ---- the generator's process ----


def _run(peer: Peer, ask: Ask, limit_s: float) -> tuple[Ended, Footprint]:
    log_path = ask.folder / "generator.log"
    began = time.monotonic()
    with log_path.open("wb") as log, _on(CLIENT_CPU if ask.workers == 1 else None):
        child = subprocess.Popen(
            peer.argv(ask),
            cwd=ask.folder,
            env=_environ(peer, ask),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    footprint = Footprint(child.pid)
    footprint.start()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    with _killed_after(child, limit_s) as expired:
        child.wait()
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    footprint.stop()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # what it left behind
    text = log_path.read_text("utf-8", "replace")
    why = None
    if expired.is_set():
        why = f"did not end within {limit_s:.0f} s"
    elif child.returncode != 0:
        last = [line for line in text.splitlines() if line.strip()]
        why = f"ended with status {child.returncode}: {(last or ['no output'])[-1][:200]}"
    cpu_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return Ended(why, text, time.monotonic() - began, cpu_s), footprint


@contextlib.contextmanager
def _on(cpu: int | None) -> Iterator[None]:
    """What is started here stays on this core (None: on any); we return to the server's."""
    os.sched_setaffinity(0, set(range(os.cpu_count() or 1)) if cpu is None else {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, {SERVER_CPU})


@contextlib.contextmanager
def _killed_after(child: "subprocess.Popen[bytes]", limit_s: float) -> Iterator[threading.Event]:
    expired = threading.Event()

    def kill() -> None:
        expired.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(limit_s, kill)
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()
        timer.join()


def _environ(peer: Peer, ask: Ask) -> Mapping[str, str]:
    """Ours without proxies and pip's settings, and a home of the peers' own for what they cache."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    home = ENVIRONMENTS / ".home"
    if peer.requirements:
        home.mkdir(parents=True, exist_ok=True)
        kept["HOME"] = str(home)
    return {
        **kept,
        "PATH": f"{peer.python.parent}:{kept.get('PATH', '')}",
        "NO_PROXY": "127.0.0.1",
        **peer.environ(ask),
    }


# ---- what the server saw ----


def steady(record: ServerRecord) -> npt.NDArray[np.bool_]:
    """Requests that arrived after the warm-up. Readiness probes before the load count as its beginning."""
    arrived = record["kernel_ns"]
    return arrived >= _load_begins_ns(arrived) + WARMUP_NS


def _load_begins_ns(arrived: npt.NDArray[np.int64]) -> int:
    """The first arrival that is not a lone probe: the earliest one followed by others within a second."""
    for i in range(min(5, len(arrived) - 1)):
        if arrived[i + 1] - arrived[i] < NS:
            return int(arrived[i])
    return int(arrived[0])


def _of_server(record: ServerRecord, ask: Ask, footprint: Footprint) -> dict[str, Any]:
    arrived = record["kernel_ns"]
    kept = arrived[steady(record)]
    began, over = _load_begins_ns(arrived), int(record["end_ns"].max())
    cpu_s = footprint.cpu_s_between(began, over)
    late_ms = record["worst_late_ns"] / 1e6
    if len(kept) < 3:
        return {"requests": len(record)}
    firsts_s = np.sort(record["kernel_first_ns"][steady(record)]) / NS
    gaps_s = np.diff(firsts_s)
    distance = stats.kstest(gaps_s, stats.expon(scale=1 / ask.rate_rps).cdf).statistic
    from_ns = began + WARMUP_NS
    moments = (kept[:-1] - from_ns) / (kept[-1] - from_ns)  # of a Poisson process: uniform, given their number
    return {
        "requests": len(record),
        "incomplete": int((record["complete"] == 0).sum()),
        "n": len(kept),
        "rate_rps": float((len(kept) - 1) / ((kept[-1] - kept[0]) / NS)),
        "arrival_distance": float(distance),
        "moments_distance": float(stats.kstest(moments, "uniform").statistic),
        "arrival_noise": KOLMOGOROV_5_PERCENT / np.sqrt(len(gaps_s)),
        "cpu_ms_per_request": None if cpu_s is None else cpu_s * 1e3 / len(record),
        "cpu_share": None if cpu_s is None else cpu_s / ((over - began) / NS),
        "stub_late_p99_ms": float(np.percentile(late_ms, 99)),
    }


# ---- both records together ----


def joined(record: ServerRecord, answers: Answers) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of the server's record and rows of the answers, pair by pair; none where they cannot be told apart."""
    nothing = np.array([], dtype=np.int64)
    if answers.join == "none":
        return nothing, nothing
    if answers.join == "order":
        assert answers.start_ns is not None
        complete = np.flatnonzero(record["complete"] == 1)
        mine = np.argsort(answers.start_ns, kind="stable")
        return (complete, mine) if len(complete) == len(mine) else (nothing, nothing)
    names = {
        "body": record.body_fnv1a,
        "client_id": record.client_id,
        "seq": [str(seq) for seq in record["seq"]],
    }[answers.join]
    row_of = {name: row for row, name in enumerate(names)}
    pairs = [(row_of[key], i) for i, key in enumerate(answers.keys) if key in row_of]
    server, mine = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return server, mine


def inflation_row(record: ServerRecord, answers: Answers) -> dict[str, Any]:
    """Reported minus served: of each request where both can be paired, else of the quantiles."""
    ttft_ms = (record["first_ns"] - record["kernel_ns"]) / 1e6
    tpot_ms = (record["last_ns"] - record["first_ns"]) / 1e6 / np.maximum(record["tokens"] - 1, 1)
    kept = steady(record) & (record["complete"] == 1)
    server, mine = joined(record, answers)
    both = kept[server]
    server, mine = server[both], mine[both]
    paired_by = answers.join if len(server) else "quantiles"
    row: dict[str, Any] = {"joined_by": paired_by, "answers": len(answers.ttft_ms), "paired": len(server)}
    if not len(server):
        whole = record["complete"] == 1
        for name, theirs, true in (("ttft", answers.ttft_ms, ttft_ms), ("tpot", answers.tpot_ms, tpot_ms)):
            for p in PERCENTS:
                row[f"{name}_inflation_p{p}_ms"] = float(np.percentile(theirs, p) - np.percentile(true[whole], p))
        return row
    _put(row, "ttft_inflation", answers.ttft_ms[mine] - ttft_ms[server])
    _put(row, "tpot_inflation", answers.tpot_ms[mine] - tpot_ms[server])
    if answers.lateness_ms is not None:
        _put(row, "send_lateness", answers.lateness_ms[mine])
    if answers.due_ns is not None:
        due, arrived = answers.due_ns[mine], record["kernel_ns"][server]
        row["offered_rps"] = float((len(due) - 1) / ((due.max() - due.min()) / NS))
        row["rate_of_offered"] = float((due.max() - due.min()) / (arrived.max() - arrived.min()))
    return row


def _put(row: dict[str, Any], name: str, values: FloatArray) -> None:
    for p in PERCENTS:
        row[f"{name}_p{p}_ms"] = float(np.percentile(values, p))


# ---- the freeze ----


def freeze_row(record: ServerRecord, answers: Answers, ask: Ask, freezes: list[tuple[int, int]]) -> dict[str, Any]:
    """Percentiles of TTFT as reported, and as they were from the intended times of the same schedule.

    Where the generator says its intended times, those; else its arrivals, as long as it went on sending while
    the server stood still; else (it waited, and so left out the requests that would have waited) the schedule
    that was asked for.
    """
    if not freezes:
        return {"failed": "the server was never frozen: too few requests came"}
    [(frozen_ns, thawed_ns)] = freezes
    arrived = record["kernel_ns"]
    during = int(((arrived > frozen_ns) & (arrived < thawed_ns)).sum())
    expected = (thawed_ns - frozen_ns) / NS * ask.rate_rps
    complete = record["complete"] == 1
    if answers.due_ns is not None:
        server, mine = joined(record, answers)
        truth, schedule = (record["first_ns"][server] - answers.due_ns[mine]) / 1e6, "its own intended times"
    elif during >= _MISSED_ARRIVALS * expected:
        truth, schedule = ((record["first_ns"] - arrived) / 1e6)[complete], "its arrivals"
    else:
        truth, schedule = asked_schedule_ms(ask, int(arrived[0]), frozen_ns, thawed_ns), "the schedule asked for"
    row: dict[str, Any] = {"truth_from": schedule, "arrivals_in_freeze": during, "arrivals_expected": expected}
    for p in (95, 99):
        reported, true = float(np.percentile(answers.ttft_ms, p)), float(np.percentile(truth, p))
        row |= {f"reported_p{p}_ms": reported, f"true_p{p}_ms": true, f"truth_over_reported_p{p}": true / reported}
    return row


def asked_schedule_ms(ask: Ask, first_ns: int, frozen_ns: int, thawed_ns: int) -> FloatArray:
    """TTFT of evenly spaced requests at the asked rate, by the law of the stub."""
    due_ns = first_ns + np.arange(ask.count) * NS / ask.rate_rps
    ttft_ns = TTFT_MS * 1e6
    halted = due_ns + ttft_ns > frozen_ns
    ready_ns = np.where(due_ns < frozen_ns, due_ns + ttft_ns + (thawed_ns - frozen_ns), thawed_ns + ttft_ns)
    served_ns = np.where(halted & (due_ns < thawed_ns), ready_ns, due_ns + ttft_ns)
    return np.asarray((served_ns - due_ns) / 1e6, dtype=np.float64)
