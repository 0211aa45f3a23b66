"""Conversations: a turn waits for the answer before it, thinks, and comes whatever became of that answer."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from harness.load.driver import drive

pytestmark = pytest.mark.alone

META = {"seed": "1"}
THINK_NS = 80_000_000


def chained(plan, chains, think_ns=THINK_NS):
    """The plan with its requests tied into sessions, each a list of positions."""
    requests = list(plan.requests)
    for session, chain in enumerate(chains):
        for turn, at in enumerate(chain):
            after = chain[turn - 1] if turn else None
            requests[at] = replace(requests[at], session=session, turn=turn, after=after, think_ns=think_ns)
    return replace(plan, requests=tuple(requests))


def rows_of(result):
    return {row["index"]: row for row in pq.read_table(result.records_path).to_pylist()}


def test_a_turn_is_due_when_its_user_has_read_the_answer_and_thought(fresh_server, tmp_path):
    answer = fresh_server.answer(first_s=0.02, gap_s=0.01)
    plan = chained(fresh_server.plan(*[answer] * 5, every_s=0.01), [[0, 2, 4], [1, 3]])
    result = drive(plan, tmp_path, metadata=META)
    rows = rows_of(result)
    assert [rows[i]["error"] for i in range(5)] == [None] * 5
    for before, after in ((0, 2), (2, 4), (1, 3)):
        assert rows[after]["t_int_ns"] == rows[before]["t_end_ns"] + THINK_NS
    assert [(rows[i]["session"], rows[i]["turn"]) for i in range(5)] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    assert [rows[i]["t_int_ns"] for i in (0, 1)] == [0, 10_000_000]
    assert result.send_lateness_p99_ms < 50
    assert result.never_due == 0


def test_a_failed_turn_does_not_spare_the_server_the_next_one(fresh_server, tmp_path):
    answer = fresh_server.answer(first_s=0.01, gap_s=0.01)
    plan = chained(fresh_server.plan([["close"]], answer, [["close"]], answer), [[0, 1, 2, 3]])
    rows = rows_of(drive(plan, tmp_path, metadata=META))
    assert [rows[i]["error"] for i in range(4)] == ["reset", None, "reset", None]


def test_turns_that_fall_due_after_the_end_are_not_sent_and_are_counted(fresh_server, tmp_path):
    slow = fresh_server.answer(first_s=0.2, gap_s=0.01)
    plan = chained(fresh_server.plan(*[slow] * 4, until_ns=400_000_000), [[0, 1, 2, 3]])
    result = drive(plan, tmp_path, metadata=META)
    assert sorted(rows_of(result)) == [0, 1]
    assert (result.planned, result.sent, result.never_due, result.stopped_early) == (4, 2, 2, None)


def test_the_drain_does_not_cut_a_session_that_has_turns_to_come(fresh_server, tmp_path):
    slow, quick = fresh_server.answer(first_s=0.6, gap_s=0.01), fresh_server.answer(first_s=0.01, gap_s=0.01)
    plan = chained(fresh_server.plan(slow, quick, drain_ns=200_000_000), [[0, 1]])
    rows = rows_of(drive(plan, tmp_path, metadata=META))
    assert [rows[i]["error"] for i in (0, 1)] == [None, None]


def test_a_lane_of_the_closed_loop_finishes_its_session_before_it_takes_another(fresh_server, tmp_path):
    answer = fresh_server.answer(first_s=0.02, gap_s=0.01)
    settings = {"mode": "closed", "concurrency": 2, "every_s": 0.0, "think_time_ns": 10_000_000}
    plan = chained(fresh_server.plan(*[answer] * 8, **settings), [[0, 1], [2, 3], [4, 5], [6, 7]])
    rows = rows_of(drive(plan, tmp_path, metadata=META))
    assert [rows[i]["error"] for i in range(8)] == [None] * 8
    assert sorted(i for i in rows if rows[i]["t_int_ns"] == 0) == [0, 2]
    for first in (0, 2, 4, 6):
        assert rows[first + 1]["t_int_ns"] == rows[first]["t_end_ns"] + THINK_NS
    ends = {rows[i]["t_end_ns"] + 10_000_000 for i in (1, 3)}
    assert {rows[4]["t_int_ns"], rows[6]["t_int_ns"]} == ends


def test_targets_of_a_class_are_counted_for_its_requests(fresh_server, tmp_path):
    slow = fresh_server.answer(first_s=0.3, gap_s=0.005)
    plan = fresh_server.plan(*[slow] * 6, slo_ms={"chat.ttft": 100.0, "code.ttft": 100.0, "ttft": 1000.0})
    requests = tuple(replace(r, traffic_class="chat" if r.index < 4 else "code") for r in plan.requests)
    seen = []
    result = drive(replace(plan, requests=requests), tmp_path, on_live=lambda c: seen.append(c) or False, metadata=META)
    assert seen[-1].misses == {"chat.ttft": 4, "code.ttft": 2, "ttft": 0}
    assert [row["traffic_class"] for row in rows_of(result).values()] == ["chat"] * 4 + ["code"] * 2


def test_the_kernels_stamp_tells_how_long_bytes_lay_there(fresh_server, tmp_path):
    """The first connection is always sampled."""
    result = drive(fresh_server.plan(*[fresh_server.answer()] * 5), tmp_path, metadata=META)
    assert 0 < result.receive_lag_p50_ms <= result.receive_lag_p99_ms < 50
    assert json.loads((tmp_path / "audit.json").read_text())["receive_lag_p50_ms"] == result.receive_lag_p50_ms
