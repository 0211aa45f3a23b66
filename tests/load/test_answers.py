"""Every way a server can answer, played by a real socket server to a real load child: records and stamps."""

import json

import pyarrow.parquet as pq
import pytest

from harness.load.driver import drive
from harness.load.tables import RECORD_SCHEMA

pytestmark = pytest.mark.alone

STREAM = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = STREAM + "Transfer-Encoding: chunked\r\n\r\n"
BOUND_NS = 20_000_000  # this machine may be busy; the stamps themselves are exact


def whole(status, body, content_type="application/json"):
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n{body}"


def pieces(text, size=1):
    return [["send", text[i : i + size]] for i in range(0, len(text), size)]


def delta(server, **fields):
    return server.chunk("data: " + json.dumps({"choices": [{"delta": fields, "finish_reason": None}]}) + "\n\n")


def plays(server):
    event, chunk, usage, end = server.event, server.chunk, server.usage, server.end
    stop = event("", finish="stop")
    accent = chunk('data: {"choices": [{"text": "\xc3\xa9\xe2\x82\xac", "finish_reason": "stop"}]}\n\n')
    crlf = 'data: {"choices": [{"text": "a", "finish_reason": "stop"}]}\r\n\r\ndata: [DONE]\r\n\r\n'
    completion = json.dumps(
        {
            "choices": [{"text": "abc", "finish_reason": "length"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3},
        }
    )
    chat = json.dumps({"choices": [{"message": {"content": "abc"}, "finish_reason": "stop"}]})
    return {
        "ordinary": server.answer(),
        "one_chunk_each": server.answer(first_s=0.1, gap_s=0.05, tokens=5),
        "crlf": [["send", STREAM + "Connection: close\r\n\r\n" + crlf], ["close"]],
        "comments": [
            ["send", CHUNKED + chunk(": ping\n\n")],
            ["sleep", 0.1],
            ["send", event() + chunk(": ping\n\n") + stop + end()],
        ],
        "trickle": pieces(CHUNKED + event("x") + accent + usage(1, 2) + end(), 1),
        "cut_everywhere": pieces(CHUNKED + event("x") + accent + usage(1, 2) + end(), 7),
        "several_per_packet": [["send", CHUNKED + event() + event() + event() + stop + usage(5, 3) + end()]],
        "no_usage": [["send", CHUNKED + event() + stop + end()]],
        "no_done": [["send", CHUNKED + event() + stop + usage(5, 1) + "0\r\n\r\n"]],
        "empty_chunks_first": [["send", CHUNKED + event("")], ["sleep", 0.1], ["send", event("x") + stop + end()]],
        "chat": [
            ["send", CHUNKED + delta(server, role="assistant", content="")],
            ["sleep", 0.1],
            ["send", delta(server, content="x") + stop + end()],
        ],
        "reasoning": [["send", CHUNKED + delta(server, reasoning="hm")], ["sleep", 0.1], ["send", stop + end()]],
        "tool": [["send", CHUNKED + delta(server, tool_calls=[{"index": 0}])], ["sleep", 0.1], ["send", stop + end()]],
        "interim": [["send", "HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + event() + stop + end()]],
        "not_streamed": [["sleep", 0.05], ["send", whole("200 OK", completion)]],
        "not_streamed_chat": pieces(whole("200 OK", chat), 20),
        "reset_mid_stream": [["send", CHUNKED + event()], ["sleep", 0.05], ["reset"]],
        "reset_mid_head": [["send", CHUNKED[:30]], ["sleep", 0.05], ["reset"]],
        "closed_mid_head": [["send", CHUNKED[:30]], ["close"]],
        "closed_unanswered": [["close"]],
        "closed_mid_stream": [["send", CHUNKED + event() + event()], ["close"]],
        "closed_after_done": [["send", CHUNKED + event() + stop + chunk("data: [DONE]\n\n")], ["close"]],
        "ended_unfinished": [["send", CHUNKED + event() + "0\r\n\r\n"]],
        "busy": [["send", whole("503 Service Unavailable", '{"error": {"message": "Loading model"}}')]],
        "too_many": [["send", whole("429 Too Many Requests\r\nRetry-After: 1", "slow down", "text/plain")]],
        "error_event": [["send", CHUNKED + event() + chunk('data: {"error": {"message": "oom"}}\n\n') + end()]],
        "not_http": [["send", "SSH-2.0-OpenSSH_9.6\r\n\r\n"], ["close"]],
        "bad_chunk": [["send", CHUNKED + "zz\r\n"]],
        "bad_json": [["send", CHUNKED + event() + chunk("data: {nonsense\n\n") + stop + "0\r\n\r\n"]],
        "never_answers": [["hang"]],
        "never_ends": [["send", CHUNKED + event()], *[["sleep", 0.05], ["send", event()]] * 40],
    }  # fmt: skip


@pytest.fixture(scope="module")
def outcome(server, tmp_path_factory):
    """Name of the play -> its record, and the server's own; one run of the load child for all."""
    folder = tmp_path_factory.mktemp("answers")
    named = plays(server)
    plan = server.plan(*named.values(), timeout_ns=1_500_000_000, api_key_env="LOAD_TEST_KEY")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOAD_TEST_KEY", "sk-secret-42")
        result = drive(plan, folder, metadata={"seed": "7"})
    rows = pq.read_table(result.records_path).to_pylist()
    assert [row["index"] for row in rows] == list(range(len(named)))
    return (
        dict(zip(named, rows, strict=True)),
        dict(zip(named, (server.seen[r["index"]] for r in rows), strict=True)),
        result,
        folder,
    )


SUCCESSES = {
    "ordinary": 3,
    "one_chunk_each": 5,
    "crlf": 1,
    "comments": 1,
    "trickle": 2,
    "cut_everywhere": 2,
    "several_per_packet": 3,
    "no_usage": 1,
    "no_done": 1,
    "empty_chunks_first": 1,
    "chat": 1,
    "reasoning": 1,
    "tool": 1,
    "interim": 1,
    "not_streamed": 1,
    "not_streamed_chat": 1,
    "closed_after_done": 1,
}
FAILURES = {
    "reset_mid_stream": ("reset", 200, 1),
    "reset_mid_head": ("reset", None, 0),
    "closed_mid_head": ("truncated", None, 0),
    "closed_unanswered": ("reset", None, 0),
    "closed_mid_stream": ("truncated", 200, 2),
    "ended_unfinished": ("truncated", 200, 1),
    "busy": ("http", 503, 0),
    "too_many": ("http", 429, 0),
    "error_event": ("http", 200, 1),
    "not_http": ("protocol", None, 0),
    "bad_chunk": ("protocol", 200, 0),
    "bad_json": ("protocol", 200, 1),
    "never_answers": ("timeout", None, 0),
}


@pytest.mark.parametrize("name", SUCCESSES)
def test_a_whole_answer_is_a_success_with_every_chunk_of_content(outcome, name):
    row = outcome[0][name]
    assert row["error"] is None
    assert row["http_status"] == 200
    assert len(row["chunk_ns"]) == SUCCESSES[name]
    assert row["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_named_and_keeps_the_chunks_so_far(outcome, name):
    row = outcome[0][name]
    assert (row["error"], row["http_status"], len(row["chunk_ns"])) == FAILURES[name]


def test_every_play_is_judged(outcome):
    assert {*SUCCESSES, *FAILURES, "never_ends"} == set(outcome[0])


def test_a_stream_that_never_ends_is_a_timeout_with_its_chunks(outcome):
    row = outcome[0]["never_ends"]
    assert row["error"] == "timeout"
    assert len(row["chunk_ns"]) > 5
    assert 1.5e9 <= row["t_end_ns"] - row["t_int_ns"] < 1.7e9


def test_stamps_are_in_order(outcome):
    for row in outcome[0].values():
        times = [row[k] for k in ("t_int_ns", "t_send_ns", "t_first_ns", "t_last_ns", "t_end_ns")]
        known = [t for t in times if t is not None]
        assert known == sorted(known)
        assert row["chunk_ns"] == sorted(row["chunk_ns"])
        if row["chunk_ns"]:
            assert (row["t_first_ns"], row["t_last_ns"]) == (row["chunk_ns"][0], row["chunk_ns"][-1])


def test_stamps_agree_with_the_servers_own(outcome):
    rows, seen, result, _ = outcome
    for name in ("ordinary", "one_chunk_each"):
        arrived = seen[name].received_ns - result.t0_monotonic_ns
        assert 0 <= arrived - rows[name]["t_int_ns"] < BOUND_NS
        for sent_ns, stamp_ns in zip(seen[name].steps, rows[name]["chunk_ns"], strict=False):
            assert 0 < stamp_ns + result.t0_monotonic_ns - sent_ns < BOUND_NS


@pytest.mark.parametrize("name", ["comments", "empty_chunks_first", "chat"])
def test_the_first_token_is_the_first_content(outcome, name):
    rows, seen, result, _ = outcome
    early, late = seen[name].steps
    first = rows[name]["t_first_ns"] + result.t0_monotonic_ns
    assert first > late > early
    assert first - late < BOUND_NS


@pytest.mark.parametrize("name", ["reasoning", "tool"])
def test_reasoning_and_tool_calls_are_content(outcome, name):
    rows, seen, result, _ = outcome
    early, late = seen[name].steps
    assert early < rows[name]["t_first_ns"] + result.t0_monotonic_ns < late


def test_events_of_one_packet_share_its_stamp(outcome):
    row = outcome[0]["several_per_packet"]
    assert len(set(row["chunk_ns"])) == 1


def test_usage_is_the_servers_word_or_nothing(outcome):
    rows = outcome[0]
    assert [rows["ordinary"][k] for k in ("prompt_tokens", "cached_tokens", "output_tokens")] == [5, 2, 3]
    assert [rows["not_streamed"][k] for k in ("prompt_tokens", "cached_tokens", "output_tokens")] == [7, None, 3]
    assert [rows["no_usage"][k] for k in ("prompt_tokens", "cached_tokens", "output_tokens")] == [None] * 3
    assert rows["no_usage"]["output_tokens_asked"] == 3


def test_an_answer_in_one_piece_arrives_when_it_ends(outcome):
    row = outcome[0]["not_streamed"]
    assert row["t_first_ns"] == row["t_last_ns"] == row["t_end_ns"]


def test_the_file_has_the_schema_and_says_where_it_comes_from(outcome):
    _, _, result, _ = outcome
    schema = pq.read_schema(result.records_path)
    assert schema.equals(RECORD_SCHEMA)
    assert schema.metadata[b"seed"] == b"7"
    assert int(schema.metadata[b"t0_monotonic_ns"]) == result.t0_monotonic_ns
    assert schema.metadata[b"t0_wall_iso"].decode() == result.t0_wall_iso


def test_only_records_and_audit_are_left(outcome):
    rows, _, result, folder = outcome
    assert sorted(p.name for p in folder.iterdir()) == ["audit.json", "requests.parquet"]
    assert json.loads((folder / "audit.json").read_text()) == result.to_dict()
    assert (result.planned, result.sent, result.stopped_early) == (len(rows), len(rows), None)


def test_the_key_is_sent_and_written_nowhere(outcome):
    _, seen, _, folder = outcome
    assert all("Authorization: Bearer sk-secret-42" in request.head for request in seen.values())
    assert not [p for p in folder.iterdir() if b"sk-secret-42" in p.read_bytes()]


def test_a_connection_is_reused_only_after_a_whole_answer(outcome):
    rows, seen, result, _ = outcome
    after_failure = {"reset_mid_stream", "never_answers", "bad_chunk", "closed_mid_stream", "crlf", "closed_after_done"}
    last_on = {}
    for name, request in seen.items():
        assert rows[name]["connection_reused"] == (request.connection in last_on)
        assert last_on.get(request.connection) not in after_failure
        last_on[request.connection] = name
    assert result.connections_opened == len(last_on)
    assert any(row["connection_reused"] for row in rows.values())


def test_a_refusal_with_a_time_to_come_back_is_a_failure_and_nothing_is_sent_twice(outcome):
    rows, seen, _, _ = outcome
    assert rows["too_many"]["error"] == "http"
    assert len(seen) == len(rows)  # the server saw each request once: indices are theirs


def test_a_connection_that_breaks_at_any_byte_is_a_failure_until_all_is_said(server, tmp_path):
    answer = CHUNKED + server.event("x") + server.event("", finish="stop") + server.usage(5, 1) + server.end()
    said_all = answer.index("data: [DONE]\n") + len("data: [DONE]\n")
    cuts = [*range(1, len(answer), 9), said_all - 1, said_all, len(answer)]
    plays = [[["send", answer[:cut]], ["sleep", 0.05], ["reset"]] for cut in cuts]
    result = drive(server.plan(*plays, every_s=0.005), tmp_path, metadata={"seed": "7"})
    rows = pq.read_table(result.records_path).to_pylist()
    first = answer.index("\n\n") + 2
    for cut, row in zip(cuts, rows, strict=True):
        assert (row["error"] is None) == (cut >= said_all), (cut, row["error"])
        assert row["error"] in (None, "reset")
        assert len(row["chunk_ns"]) == (cut >= first)
