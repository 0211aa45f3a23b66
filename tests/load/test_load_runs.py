"""Whole runs of the load child against a real socket server: schedule, early ends, and what is left of it."""

import _thread
import os
import re
import signal
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import asdict

import psutil
import pyarrow.parquet as pq
import pytest

from harness.errors import RunFolderUnusable
from harness.load.driver import drive
from harness.load.records import write_plan

pytestmark = pytest.mark.alone

META = {"seed": "1"}


def rows_of(result):
    return pq.read_table(result.records_path).to_pylist()


def children():
    return [p for p in psutil.Process().children(recursive=True) if "harness.load.locust_user" in " ".join(p.cmdline())]


def test_a_frozen_server_delays_no_request_and_its_freeze_is_in_the_latencies(fresh_server, tmp_path):
    server = fresh_server
    plan = server.plan(*[server.answer(first_s=0.01, gap_s=0.005) for _ in range(100)], every_s=0.02)
    frozen_ns = []

    def freeze(counters):
        if counters.elapsed_s > 0.4 and not frozen_ns:
            server.thaw.clear()
            frozen_ns.append(time.monotonic_ns())
            threading.Timer(1.0, lambda: (frozen_ns.append(time.monotonic_ns()), server.thaw.set())).start()
        return False

    result = drive(plan, tmp_path, on_live=freeze, metadata=META)
    rows = rows_of(result)
    begin, end = (ns - result.t0_monotonic_ns for ns in frozen_ns)
    stalled = [r for r in rows if begin + 50e6 < r["t_int_ns"] < end - 50e6]
    assert len(stalled) > 30
    for row in stalled:
        assert row["t_send_ns"] - row["t_int_ns"] < 100e6
        assert row["t_first_ns"] - row["t_int_ns"] >= end - row["t_int_ns"]
    assert result.sent == 100
    assert all(row["error"] is None for row in rows)
    assert [row["t_int_ns"] for row in rows] == [r.t_int_ns for r in plan.requests]


def test_ends_when_enough_targets_are_missed(fresh_server, tmp_path):
    server = fresh_server
    plan = server.plan(
        *[[["hang"]]] * 200,
        every_s=0.01,
        slo_ms={"ttft": 50.0, "e2e": 10_000.0, "tpot": 20.0},
        stop_after_misses={"ttft": 10},
    )
    seen = []
    result = drive(plan, tmp_path, on_live=lambda c: seen.append(c) or False, metadata=META)
    assert result.stopped_early == "misses"
    assert result.elapsed_s < 1.5
    assert 10 <= seen[-1].misses["ttft"] < 200
    assert seen[-1].misses["e2e"] == seen[-1].misses["tpot"] == 0
    rows = rows_of(result)
    assert {row["error"] for row in rows} == {"cancelled"}
    assert len(rows) - 1 <= result.sent <= len(rows) < result.planned == 200  # one may be connecting


def test_missed_targets_are_counted_once_each_and_failures_miss_all(fresh_server, tmp_path):
    server = fresh_server
    slow_first, slow_tokens = server.answer(first_s=0.3, gap_s=0.005), server.answer(first_s=0.0, gap_s=0.1)
    plan = server.plan(
        slow_first, slow_tokens, server.answer(), [["close"]], slo_ms={"ttft": 200.0, "tpot": 50.0, "e2e": 250.0}
    )
    seen = []
    drive(plan, tmp_path, on_live=lambda c: seen.append(c) or False, metadata=META)
    assert seen[-1].misses == {"ttft": 2, "tpot": 2, "e2e": 2}
    assert (seen[-1].planned, seen[-1].sent, seen[-1].done, seen[-1].failed) == (4, 4, 4, 1)
    assert seen[-1].newest_token_age_s is None


def test_ends_when_asked_and_keeps_what_is_known(fresh_server, tmp_path):
    server = fresh_server
    plan = server.plan(*[server.answer()] * 3, *[server.answer(gap_s=30)] * 300)
    result = drive(plan, tmp_path, on_live=lambda c: c.done >= 3, metadata=META)
    assert result.stopped_early == "asked"
    rows = rows_of(result)
    assert [row["error"] for row in rows[:3]] == [None] * 3
    assert "cancelled" in {row["error"] for row in rows[3:]}
    assert len(rows) < 100


def test_silence_with_work_in_flight_is_a_hang(fresh_server, tmp_path):
    server = fresh_server
    plan = server.plan(server.answer(), *[[["hang"]]] * 5, hang_ns=600_000_000)
    result = drive(plan, tmp_path, metadata=META)
    assert result.stopped_early == "hung"
    assert 0.6 < result.elapsed_s < 2


def test_a_pause_with_nothing_in_flight_is_not_a_hang(fresh_server, tmp_path):
    server = fresh_server
    plan = server.plan(server.answer(), server.answer(), every_s=1.0, hang_ns=500_000_000)
    result = drive(plan, tmp_path, metadata=META)
    assert result.stopped_early is None
    assert [row["error"] for row in rows_of(result)] == [None, None]


def test_what_is_unfinished_after_the_drain_is_cancelled(fresh_server, tmp_path):
    server = fresh_server
    plan = server.plan(server.answer(first_s=0.0, gap_s=2.0), server.answer(), drain_ns=300_000_000)
    result = drive(plan, tmp_path, metadata=META)
    cut, whole = rows_of(result)
    assert result.stopped_early is None
    assert (cut["error"], len(cut["chunk_ns"]), whole["error"]) == ("cancelled", 1, None)


def test_closed_loop_keeps_its_lanes_busy_and_thinks_between(fresh_server, tmp_path):
    server = fresh_server
    plan = server.plan(*[server.answer()] * 9, mode="closed", concurrency=3, think_time_ns=100_000_000, every_s=0.0)
    rows = rows_of(drive(plan, tmp_path, metadata=META))
    assert [row["error"] for row in rows] == [None] * 9
    events = sorted([(r["t_int_ns"], 1) for r in rows] + [(r["t_end_ns"], -1) for r in rows])
    in_flight = [sum(step for _, step in events[: i + 1]) for i in range(len(events))]
    assert max(in_flight) == 3
    ends = {row["t_end_ns"] for row in rows}
    assert [row["t_int_ns"] for row in rows[:3]] == [0, 0, 0]
    assert all(row["t_int_ns"] - 100_000_000 in ends for row in rows[3:])


def test_closed_loop_goes_on_after_failures_and_stops_when_asked(fresh_server, tmp_path):
    server = fresh_server
    plan = server.plan(
        *[[["close"]], [["hang"]], *[server.answer()] * 400], mode="closed", concurrency=2, timeout_ns=200_000_000
    )
    result = drive(plan, tmp_path, on_live=lambda c: c.done >= 6, metadata=META)
    errors = [row["error"] for row in rows_of(result)]
    assert result.stopped_early == "asked"
    assert errors[:4] == ["reset", "timeout", None, None]


def test_a_connection_the_server_closed_while_idle_is_replaced_before_anything_is_sent(fresh_server, tmp_path):
    server = fresh_server
    server.idle_close_s = 0.1
    result = drive(server.plan(*[server.answer()] * 3, every_s=0.5), tmp_path, metadata=META)
    rows = rows_of(result)
    assert [(row["error"], row["connection_reused"]) for row in rows] == [(None, False)] * 3
    assert (result.stale_connections_replaced, result.connections_opened) == (2, 3)


def test_nobody_listening_is_a_connect_error_per_request(fresh_server, tmp_path):
    plan = fresh_server.plan([["close"]], [["close"]], base_url="http://127.0.0.1:1/v1")
    result = drive(plan, tmp_path, metadata=META)
    assert [(row["error"], row["t_send_ns"]) for row in rows_of(result)] == [("connect", None)] * 2
    assert result.sent == 0


def test_tls(tls_server, tmp_path, monkeypatch):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost"]
    argv += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(argv, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = tls_server(context)
    try:
        rows = rows_of(drive(server.plan(*[server.answer()] * 3, every_s=0.3), tmp_path, metadata=META))
    finally:
        server.close()
    assert [(row["error"], row["connection_reused"]) for row in rows] == [(None, False), (None, True), (None, True)]


@pytest.mark.parametrize("written", ["rows.bin", "requests.partial"])
def test_a_full_disk_is_said_and_nothing_half_made_is_left(fresh_server, tmp_path, written):
    (tmp_path / written).symlink_to("/dev/full")
    with pytest.raises(RunFolderUnusable, match=r"requests\.parquet: cannot write: the disk is full"):
        drive(fresh_server.plan(fresh_server.answer()), tmp_path, metadata=META)
    assert list(tmp_path.iterdir()) == []
    assert children() == []


def test_a_folder_that_cannot_be_written_is_said_before_anything_starts(fresh_server, tmp_path):
    (tmp_path / "requests.bin").symlink_to("/dev/full")
    with pytest.raises(RunFolderUnusable, match="the disk is full"):
        drive(fresh_server.plan(fresh_server.answer()), tmp_path, metadata=META)
    assert fresh_server.seen == {}


def test_a_bug_in_the_child_is_a_bug_with_its_own_words(fresh_server, tmp_path):
    plan = fresh_server.plan(fresh_server.answer(), slo_ms={"nonsense": 1.0})
    with pytest.raises(RuntimeError, match="cannot be counted while running: nonsense"):
        drive(plan, tmp_path, metadata=META)
    assert children() == []


def test_ctrl_c_ends_the_child_at_once(fresh_server, tmp_path):
    plan = fresh_server.plan(*[fresh_server.answer()] * 500)
    pressed = []

    def press(counters):
        pressed.append(time.monotonic())
        _thread.interrupt_main()
        return False

    with pytest.raises(KeyboardInterrupt):
        drive(plan, tmp_path, on_live=press, metadata=META)
    assert time.monotonic() - pressed[0] < 1
    assert children() == []
    assert list(tmp_path.iterdir()) == []


def test_the_child_dies_with_its_parent(fresh_server, tmp_path):
    plan = fresh_server.plan(*[fresh_server.answer()] * 50, every_s=0.5)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, repr(asdict(plan)), str(tmp_path)],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout.readline() == b"running\n"
    (child,) = psutil.Process(parent.pid).children()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


PARENT = textwrap.dedent("""
    import sys
    from pathlib import Path
    from harness.load.driver import drive
    from harness.load.records import LoadPlan, PlannedRequest
    settings = eval(sys.argv[1])
    requests = tuple(PlannedRequest(**r) for r in settings.pop("requests"))
    drive(LoadPlan(**settings, requests=requests), Path(sys.argv[2]), metadata={},
          on_live=lambda counters: print("running", flush=True))
""")


def test_a_closed_loop_waits_for_answers_that_are_slower_than_its_drain(fresh_server, tmp_path):
    """The drain begins when nothing more is to be sent, not when all lanes are waiting."""
    slow = fresh_server.answer(first_s=0.5, gap_s=0.01)
    plan = fresh_server.plan(*[slow] * 4, mode="closed", concurrency=2, every_s=0.0, drain_ns=200_000_000)
    rows = rows_of(drive(plan, tmp_path, metadata=META))
    assert [row["error"] for row in rows] == [None, None, "cancelled", "cancelled"]


def test_a_server_that_closes_after_every_answer_costs_connections_not_requests(fresh_server, tmp_path):
    """It says keep-alive, and its FIN comes a moment after the answer, as llama.cpp's does after a stream."""
    play = [*fresh_server.answer(first_s=0.005, gap_s=0.001), ["sleep", 0.005], ["close"]]
    plan = fresh_server.plan(*[play] * 30, mode="closed", concurrency=2, every_s=0.0)
    result = drive(plan, tmp_path, metadata=META)
    assert [row["error"] for row in rows_of(result)] == [None] * 30
    assert result.connections_opened == 30
    assert result.stale_connections_replaced >= 28


def test_locusts_own_statistics_have_every_request(fresh_server, tmp_path):
    """Its web UI and CSV would be right; no verdict reads them."""
    write_plan(fresh_server.plan(fresh_server.answer(), fresh_server.answer(), [["close"]]), tmp_path)
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from harness.load.locust_user import run
        from harness.load.records import read_plan
        load_run, environment = run(read_plan(Path(sys.argv[1])))
        load_run.read_all()
        total = environment.stats.total
        print(total.num_requests, total.num_failures, total.min_response_time >= 50, len(environment.user_classes))
    """)
    read, write = os.pipe()
    with os.fdopen(read) as stdin, os.fdopen(write, "w"):
        said = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], stdin=stdin, capture_output=True, text=True, check=True
        )
    assert said.stdout.split() == ["3", "1", "False", "1"]
    assert said.stderr == ""


def test_out_of_descriptors_is_our_fault_not_the_servers(fresh_server, tmp_path):
    """Raised deep in a callback of the loop: nothing that goes wrong there is swallowed."""
    program = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from harness.errors import LoadGeneratorSaturated
        from harness.load.driver import drive
        from harness.load.records import LoadPlan, PlannedRequest
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        settings = eval(sys.argv[1])
        requests = tuple(PlannedRequest(**r) for r in settings.pop("requests"))
        try:
            drive(LoadPlan(**settings, requests=requests), Path(sys.argv[2]), metadata={})
        except LoadGeneratorSaturated as err:
            print(err)
    """)
    plan = fresh_server.plan(*[[["hang"]]] * 60, every_s=0.005)
    argv = [sys.executable, "-c", program, repr(asdict(plan)), str(tmp_path)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert re.match(
        r"the load generator cannot open connection \d+: this process may open 40 files: raise", said.stdout
    )


def test_first_in_line_is_what_it_says_and_is_given_back():
    program = textwrap.dedent("""
        import os, sys
        from harness.load.priority import first_in_line
        if sys.argv[1:]:
            os.setuid(65534)
        policy, nice = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
        with first_in_line() as granted:
            assert (os.sched_getscheduler(0) == os.SCHED_RR) == (granted == "realtime")
            assert (os.getpriority(os.PRIO_PROCESS, 0) < nice) == (granted == "nice")
        assert os.sched_getscheduler(0) == policy
        print(granted)
    """)
    for unprivileged in ([], ["unprivileged"]) if os.geteuid() == 0 else ([],):
        argv = [sys.executable, "-c", program, *unprivileged]
        granted = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
        assert granted in ("realtime", "nice", "short slice", "none")
        assert not unprivileged or granted in ("short slice", "none")
