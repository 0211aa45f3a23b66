"""Several load processes as one: how a plan is shared, whose clock counts, and whole runs of real processes."""

import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import LoadGeneratorSaturated
from harness.load.driver import drive
from harness.load.fleet import ClockReading, Fleet, clock_offset, is_loopback, parse_address, shares, together
from harness.load.records import LiveCounters, LoadPlan, PlannedRequest
from scenarios.errors import UserError

pytestmark = pytest.mark.alone

META = {"seed": "1"}
AUTOTUNE = Path(sys.executable).with_name("autotune")


def rows_of(result):
    return pq.read_table(result.records_path).to_pylist()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@st.composite
def plans_with_sessions(draw):
    befores = draw(st.lists(st.none() | st.integers(0, 20), min_size=1, max_size=30))
    taken, requests = set(), []
    for index, before in enumerate(befores):
        after = before if before is not None and before < index and before not in taken else None
        taken.add(after)
        requests.append(PlannedRequest(index, index, b"", 1, 1, after=after))
    settings = {"mode": "open", "api": "completions", "stream": True, "timeout_ns": 1, "drain_ns": 1, "hang_ns": 1}
    concurrency = draw(st.none() | st.integers(1, 9))
    return LoadPlan(
        base_url="http://x", path="/completions", requests=tuple(requests), concurrency=concurrency, **settings
    )


@given(plans_with_sessions(), st.integers(1, 5))
def test_every_request_has_one_worker_and_a_session_stays_with_its_own(plan, n):
    parts = shares(plan, n)
    assert sorted(r.index for part in parts for r in part.requests) == [r.index for r in plan.requests]
    for part in parts:
        own = {r.index for r in part.requests}
        assert all(r.after is None or r.after in own for r in part.requests)
    lanes = [part.concurrency for part in parts]
    firsts = [sum(r.after is None for r in part.requests) for part in parts]
    busy = [count for count, lane in zip(firsts, lanes, strict=True) if lane != 0]
    assert max(busy) - min(busy) <= 1
    assert sum(busy) == sum(firsts)
    if plan.concurrency is not None:
        assert sum(part.concurrency for part in parts) == plan.concurrency


@given(
    st.integers(-(10**15), 10**15),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=20),
)
def test_the_clocks_are_no_farther_apart_than_is_said(offset_ns, delays):
    readings, now_ns = [], 0
    for there_ns, back_ns in delays:
        readings.append(ClockReading(now_ns, now_ns + there_ns + offset_ns, now_ns + there_ns + back_ns))
        now_ns += there_ns + back_ns + 5
    found_ns, uncertainty_ns = clock_offset(readings)
    assert abs(found_ns - offset_ns) <= uncertainty_ns
    assert uncertainty_ns <= min(there + back for there, back in delays) // 2 + 1


def test_what_several_say_is_one_word():
    one = LiveCounters(1.0, 5, 3, 2, 1, 1, 0, {"ttft": 1}, 0.5)
    other = LiveCounters(1.2, 5, 4, 4, 0, 0, 2, {"ttft": 2}, None)
    assert together([one, other], planned=10) == LiveCounters(1.2, 10, 7, 6, 1, 1, 2, {"ttft": 3}, 0.5)


def can_shift_clocks():
    return shutil.which("unshare") and subprocess.run(["unshare", "--time", "true"], check=False).returncode == 0


@pytest.mark.parametrize(("concurrency", "count"), [(1, 6), (3, 9), (5, 2)])
def test_a_closed_loop_has_the_same_lanes_on_several_processes(fresh_server, tmp_path, concurrency, count):
    answer = fresh_server.answer(first_s=0.02, gap_s=0.01)
    plan = fresh_server.plan(*[answer] * count, mode="closed", concurrency=concurrency, every_s=0.0)
    result = drive(plan, tmp_path, fleet=Fleet(local=2), metadata=META)
    rows = rows_of(result)
    assert [row["error"] for row in rows] == [None] * count
    assert sum(row["t_int_ns"] == 0 for row in rows) == min(concurrency, count)


def test_more_processes_than_requests_end_all_the_same(fresh_server, tmp_path):
    result = drive(fresh_server.plan(fresh_server.answer()), tmp_path, fleet=Fleet(local=2), metadata=META)
    assert (result.workers, result.sent, result.stopped_early) == (2, 1, None)


def test_a_worker_too_many_goes_home_and_the_run_goes_on(fresh_server, tmp_path):
    port = free_port()
    argv = [AUTOTUNE, "load-worker", "--master", f"127.0.0.1:{port}", "--processes", "2", "--runs", "1"]
    helper = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    plan = fresh_server.plan(*[fresh_server.answer()] * 60)
    result = drive(plan, tmp_path, fleet=Fleet(local=1, remote=1, listen=("127.0.0.1", port)), metadata=META)
    assert (result.workers, result.sent) == (2, 60)
    assert [row["error"] for row in rows_of(result)] == [None] * 60
    said, _ = helper.communicate(timeout=30)
    assert said.splitlines()[-1] == "run 1 done"


def test_a_remote_worker_gives_no_variable_away_that_was_not_granted(fresh_server, tmp_path):
    port = free_port()
    plan = fresh_server.plan(fresh_server.answer(), api_key_env="HOME")
    argv = [AUTOTUNE, "load-worker", "--master", f"127.0.0.1:{port}", "--runs", "1"]
    helper = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    with pytest.raises(LoadGeneratorSaturated, match=r"the key in \$HOME is not granted: start `autotune load-worker"):
        drive(plan, tmp_path, fleet=Fleet(local=0, remote=1, listen=("127.0.0.1", port)), metadata=META)
    assert fresh_server.seen == {}
    helper.wait(timeout=30)


def test_an_address_that_is_taken_is_said(fresh_server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fleet = Fleet(local=1, remote=1, listen=taken.getsockname())
        with pytest.raises(LoadGeneratorSaturated, match=r"cannot listen at 127\.0\.0\.1:\d+"):
            drive(fresh_server.plan(fresh_server.answer()), tmp_path, fleet=fleet, metadata=META)


@pytest.mark.skipif(not can_shift_clocks(), reason="needs unshare --time, and the right to use it")
def test_a_worker_with_another_clock_fires_at_the_same_instants(fresh_server, tmp_path):
    """Its monotonic clock is 5000 s ahead, as if its machine had been started earlier."""
    port = free_port()
    argv = ["unshare", "--time", "--monotonic", "5000", "--fork", "--kill-child"]
    argv += [AUTOTUNE, "load-worker", "--master", f"127.0.0.1:{port}", "--runs", "1"]
    helper = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    plan = fresh_server.plan(*[fresh_server.answer()] * 20)
    result = drive(plan, tmp_path, fleet=Fleet(local=1, remote=1, listen=("127.0.0.1", port)), metadata=META)
    helper.wait(timeout=30)
    assert result.clock_offset_ms == pytest.approx(5_000_000, abs=50)
    assert 0 < result.clock_uncertainty_ms < 20
    for row in rows_of(result):
        arrived_ms = (fresh_server.seen[row["index"]].received_ns - result.t0_monotonic_ns) / 1e6
        assert arrived_ms - row["t_int_ns"] / 1e6 > -result.clock_uncertainty_ms
        assert arrived_ms - row["t_int_ns"] / 1e6 < 50


@pytest.mark.parametrize(
    ("text", "address"),
    [("a.b", ("a.b", 5557)), ("10.0.0.1:99", ("10.0.0.1", 99)), ("[::1]:99", ("::1", 99)), ("host:0", ("host", 0))],
)
def test_an_address_may_have_a_port(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":80", "host:port", "host:99999", "http://host", "user@host", "host/path"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UserError, match="must look like HOST or HOST:PORT, got"):
        parse_address(text)


def test_which_urls_mean_this_machine_only():
    assert all(is_loopback(f"http://{host}/v1") for host in ("127.0.0.1:8000", "localhost", "[::1]:80", "127.9.9.9"))
    assert not any(is_loopback(f"http://{host}/v1") for host in ("10.0.0.1:8000", "gpu-box", "[fe80::1]:80"))


def test_two_workers_make_the_same_run_as_one(fresh_server, tmp_path):
    plan = fresh_server.plan(*[fresh_server.answer(first_s=0.02, gap_s=0.01)] * 60, slo_ms={"ttft": 1.0})
    chain = {10: 3, 20: 10}
    requests = tuple(replace(r, after=chain.get(r.index), think_ns=50_000_000) for r in plan.requests)
    seen = []
    result = drive(
        replace(plan, requests=requests),
        tmp_path,
        fleet=Fleet(local=2),
        on_live=lambda c: seen.append(c) or False,
        metadata=META,
    )
    rows = rows_of(result)
    assert [row["index"] for row in rows] == list(range(60))
    assert [row["error"] for row in rows] == [None] * 60
    for row, planned in zip(rows, requests, strict=True):
        due = planned.t_int_ns if planned.after is None else rows[planned.after]["t_end_ns"] + planned.think_ns
        assert row["t_int_ns"] == due
        arrived = fresh_server.seen[row["index"]].received_ns - result.t0_monotonic_ns
        assert row["t_int_ns"] <= arrived
    assert (result.workers, result.planned, result.sent, result.stopped_early) == (2, 60, 60, None)
    assert (result.clock_offset_ms, result.clock_uncertainty_ms) == (0.0, 0.0)  # one kernel, one clock
    assert (seen[-1].planned, seen[-1].sent, seen[-1].done) == (60, 60, 60)
    assert seen[-1].misses == {"ttft": 60}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["audit.json", "requests.parquet"]


def test_misses_of_all_workers_together_end_the_run(fresh_server, tmp_path):
    targets = {"slo_ms": {"ttft": 50.0}, "stop_after_misses": {"ttft": 20}}
    plan = fresh_server.plan(*[[["hang"]]] * 300, every_s=0.01, **targets)
    result = drive(plan, tmp_path, fleet=Fleet(local=2), metadata=META)
    assert result.stopped_early == "misses"
    assert 20 <= result.sent < 200
    assert {row["error"] for row in rows_of(result)} == {"cancelled"}


def test_workers_end_when_asked(fresh_server, tmp_path):
    plan = fresh_server.plan(*[fresh_server.answer()] * 500)
    result = drive(plan, tmp_path, fleet=Fleet(local=2), on_live=lambda c: c.done >= 10, metadata=META)
    assert result.stopped_early == "asked"
    assert result.sent < 200


def test_a_lost_worker_is_our_fault_and_no_process_stays(fresh_server, tmp_path):
    plan = fresh_server.plan(*[fresh_server.answer()] * 1500)
    killed = []

    def kill_one(counters):
        if counters.sent > 5 and not killed:
            own = [p for p in psutil.Process().children() if "worker" in p.cmdline()]
            killed.append(own[0])
            own[0].send_signal(signal.SIGKILL)
        return False

    with pytest.raises(LoadGeneratorSaturated, match="the load generator lost a worker"):
        drive(plan, tmp_path, fleet=Fleet(local=2), on_live=kill_one, metadata=META)
    assert killed
    assert not [p for p in psutil.Process().children() if "locust_fleet" in " ".join(p.cmdline())]


def test_workers_that_do_not_come_are_named(fresh_server, tmp_path):
    fleet = Fleet(local=0, remote=1, muster_s=2.0)
    with pytest.raises(LoadGeneratorSaturated, match=r"has 0 of 1 workers at 127\.0\.0\.1:\d+ after 2 s: start"):
        drive(fresh_server.plan(fresh_server.answer()), tmp_path, fleet=fleet, metadata=META)


def test_a_worker_started_by_hand_serves_one_run_after_the_other(fresh_server, tmp_path):
    port = free_port()
    fleet = Fleet(local=1, remote=1, listen=("127.0.0.1", port))
    argv = [AUTOTUNE, "load-worker", "--master", f"127.0.0.1:{port}", "--runs", "2"]
    helper = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    for attempt in range(2):
        plan = fresh_server.plan(*[fresh_server.answer()] * 10)
        (folder := tmp_path / str(attempt)).mkdir()
        result = drive(plan, folder, fleet=fleet, metadata=META)
        assert (result.workers, result.sent) == (2, 10)
    said, _ = helper.communicate(timeout=30)
    assert said.splitlines()[-2:] == ["run 1 done", "run 2 done"]
