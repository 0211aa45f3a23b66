"""The pieces that need no process: framing, events, timers, and the files between parent and child."""

import itertools
import json
import time
from dataclasses import asdict, fields, replace

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.load.exchange import Exchange
from harness.load.http1 import ProtocolError, ResponseReader
from harness.load.live import LiveMisses
from harness.load.records import LoadPlan, PlannedRequest, delete_plan, read_plan, write_plan
from harness.load.rows import pack_row
from harness.load.sse import EventLines, EventReader, read_event
from harness.load.tables import RECORD_SCHEMA, table_of, write_records
from harness.load.timers import TimerFd

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def cut(data, places):
    edges = [0, *sorted({p % (len(data) + 1) for p in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


def read_all(pieces):
    reader = ResponseReader()
    return reader, b"".join(reader.feed(piece) for piece in pieces)


cuts = st.lists(st.integers(0, 10_000), max_size=30)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), cuts)
def test_chunked_bodies_are_read_alike_however_they_are_cut(parts, places):
    body = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\nTrailer: x\r\n\r\n"
    reader, got = read_all(cut(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body, places))
    assert (got, reader.done, reader.keep_alive, reader.status) == (b"".join(parts), True, True, 200)


@given(st.binary(max_size=80), cuts)
def test_bodies_of_known_length_are_read_alike_however_they_are_cut(body, places):
    reader, got = read_all(cut(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body), places))
    assert (got, reader.done, reader.keep_alive) == (body, True, True)


@given(st.binary(max_size=80), cuts)
def test_bodies_without_length_end_with_the_connection(body, places):
    reader, got = read_all(cut(HEAD + b"\r\n" + body, places))
    assert (got, reader.done) == (body, False)
    assert reader.end()
    assert not reader.keep_alive


@pytest.mark.parametrize("end", range(1, len(HEAD) + 40))
def test_an_answer_cut_short_is_not_whole(end):
    data = (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")[:end]
    reader, _ = read_all([data])
    assert not reader.end()


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nleft over", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nleft over", False),
    ],
)
def test_a_connection_is_kept_only_when_nothing_speaks_against_it(head, kept):
    reader, _ = read_all([head])
    assert (reader.done, reader.keep_alive) == (True, kept)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 9_000,
        b"x" * 70_000,
    ],
)
def test_what_is_not_http_is_refused(data):
    with pytest.raises(ProtocolError):
        read_all([data])


@given(st.lists(st.text(max_size=10), max_size=6), st.sampled_from(["\n", "\r\n"]), cuts)
def test_events_are_read_alike_however_they_are_cut(texts, newline, places):
    documents = [json.dumps({"choices": [{"text": t}]}, ensure_ascii=False) for t in texts]
    stream = "".join(f": ping{newline}event: x{newline}data: {d}{newline}{newline}" for d in documents).encode()
    lines = EventLines()
    payloads = [p for piece in cut(stream, places) for p in lines.feed(piece)]
    assert payloads == [d.encode() for d in documents]


def test_a_last_line_without_its_break_is_an_event_of_a_stream_that_ended():
    lines = EventLines()
    assert lines.feed(b"data: [DONE]") == []
    assert lines.end() == [b"[DONE]"]


@pytest.mark.parametrize(
    "payload",
    [
        b'{"usage": {"completion_tokens": 12.0}}',
        b'{"usage": {"prompt_tokens": "12"}}',
        b'{"usage": {"prompt_tokens": true}}',
        b'{"usage": {"prompt_tokens": 10000000000000000000000}}',
        b'{"choices": [{"text": "a", "finish_reason": 5}]}',
        b"{",
        b"[]",
        b"5",
        b"\xff",
        b'{"choices": 5}',
        b'{"choices": [5]}',
        b'{"usage": 5}',
    ],
)
def test_what_is_not_the_apis_json_is_no_event(payload):
    assert read_event(payload) is None


plans = st.builds(
    LoadPlan,
    base_url=st.just("http://127.0.0.1:1/v1"),
    path=st.sampled_from(["/completions", "/chat/completions"]),
    mode=st.sampled_from(["open", "closed"]),
    api=st.sampled_from(["completions", "chat"]),
    stream=st.booleans(),
    timeout_ns=st.integers(1, 10**12),
    drain_ns=st.integers(0, 10**12),
    hang_ns=st.integers(1, 10**12),
    requests=st.lists(
        st.builds(
            PlannedRequest,
            st.integers(0, 10**6),
            st.integers(0, 10**12),
            st.binary(max_size=20),
            st.integers(1, 99),
            st.integers(1, 99),
            st.sampled_from(["", "chat", "code"]),
            st.none() | st.integers(0, 99),
            st.integers(0, 9),
            st.none() | st.integers(0, 99),
            st.integers(0, 10**10),
        ),
        min_size=1,
        max_size=5,
    ).map(tuple),
    slo_ms=st.dictionaries(st.sampled_from(["ttft", "tpot", "e2e"]), st.floats(0.1, 1e5)),
    stop_after_misses=st.dictionaries(st.sampled_from(["ttft", "e2e"]), st.integers(1, 99)),
    concurrency=st.none() | st.integers(1, 99),
    think_time_ns=st.integers(0, 10**10),
    api_key_env=st.none() | st.just("KEY"),
)


@given(plans)
def test_a_plan_is_read_as_it_was_written(tmp_path_factory, plan):
    folder = tmp_path_factory.mktemp("plan")
    write_plan(plan, folder)
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    read = read_plan(folder)
    assert tuple(read.requests) == plan.requests
    assert asdict(replace(plan, requests=())) == asdict(LoadPlan(**{**fields_of(read), "requests": ()}))
    write_plan(plan, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == first
    delete_plan(folder)
    assert list(folder.iterdir()) == []


def fields_of(plan):
    return {f.name: getattr(plan, f.name) for f in fields(plan)}


def ended(index=0, *, sent=1, chunks=(), tokens=None, error=None, finish="stop", end=10**9):
    """A request that was due and fired at 0."""
    exchange = Exchange(PlannedRequest(index, 0, b"", 5, 3, "chat", 7, 2), 0)
    exchange.t_send_ns, exchange.t_end_ns, exchange.error, exchange.finish_reason = sent, end, error, finish
    exchange.usage = [4, None, tokens]
    exchange.chunk_ns.extend(chunks)
    return exchange


def test_rows_become_the_table_that_the_schema_says(tmp_path):
    exchanges = [
        ended(1, chunks=(5, 7, 9), tokens=4),
        ended(0, sent=None, error="reset", finish=None),
        ended(2, chunks=(6,), finish="f" * 40, end=2**40),
    ]
    requests = sorted((e.request for e in exchanges), key=lambda r: r.index)
    path = tmp_path / "requests.parquet"
    write_records(table_of(b"".join(pack_row(e, 0) for e in exchanges), requests), {"seed": "1"}, path)
    table = pq.read_table(path)
    assert table.schema.equals(RECORD_SCHEMA)
    assert table.schema.metadata[b"seed"] == b"1"
    said = {name: table[name].to_pylist() for name in RECORD_SCHEMA.names}
    assert said["index"] == [0, 1, 2]
    assert said["chunk_ns"] == [[], [5, 7, 9], [6]]
    assert (said["t_first_ns"], said["t_last_ns"]) == ([None, 5, 6], [None, 9, 6])
    assert (said["t_send_ns"], said["t_end_ns"]) == ([None, 1, 1], [10**9, 10**9, 2**40])
    assert said["error"] == ["reset", None, None]
    assert said["finish_reason"] == [None, "stop", "f" * 32]
    assert (said["prompt_tokens"], said["cached_tokens"], said["output_tokens"]) == (
        [4] * 3,
        [None] * 3,
        [None, 4, None],
    )
    assert (said["traffic_class"], said["session"], said["turn"]) == (["chat"] * 3, [7] * 3, [2] * 3)
    assert (said["prompt_tokens_asked"], said["output_tokens_asked"]) == ([5] * 3, [3] * 3)
    assert [p.name for p in tmp_path.iterdir()] == ["requests.parquet"]


def test_no_records_is_a_file_too(tmp_path):
    write_records(table_of(b"", ()), {}, tmp_path / "requests.parquet")
    assert pq.read_table(tmp_path / "requests.parquet").schema.equals(RECORD_SCHEMA)


def test_a_request_counts_as_soon_as_it_is_too_old_and_only_once():
    misses = LiveMisses({"ttft": 100.0, "e2e": 500.0})
    exchange = ended(chunks=(150_000_000, 400_000_000))
    waiting = Exchange(exchange.request, 0)
    misses.watch(waiting)
    misses.look(99_000_000)
    assert misses.counts == {"ttft": 0, "e2e": 0}
    misses.look(101_000_000)
    assert misses.counts == {"ttft": 1, "e2e": 0}
    exchange.missed = waiting.missed
    misses.settle(exchange)
    assert misses.counts == {"ttft": 1, "e2e": 0}


def test_misses_of_the_warm_up_do_not_count():
    misses = LiveMisses({"ttft": 100.0}, from_ns=1_000)
    for index, due_ns in enumerate((0, 999, 1_000)):
        misses.watch(Exchange(PlannedRequest(index, due_ns, b"", 5, 3), due_ns))
    misses.look(500_000_000)
    assert misses.counts == {"ttft": 1}


@pytest.mark.parametrize(
    ("exchange", "counts"),
    [
        (ended(chunks=(99_000_000, 199_000_000), tokens=11), {"ttft": 0, "tpot": 0}),
        (ended(chunks=(101_000_000, 201_000_000), tokens=11), {"ttft": 1, "tpot": 0}),
        (ended(chunks=(0, 110_000_000), tokens=11), {"ttft": 0, "tpot": 1}),
        (ended(chunks=(0, 110_000_000), tokens=None), {"ttft": 0, "tpot": 0}),
        (ended(error="reset"), {"ttft": 1, "tpot": 1}),
        (ended(error="cancelled"), {"ttft": 0, "tpot": 0}),
    ],
)
def test_a_finished_request_is_judged_by_what_came(exchange, counts):
    misses = LiveMisses({"ttft": 100.0, "tpot": 10.0})
    misses.settle(exchange)
    assert misses.counts == counts


def test_a_target_of_a_class_counts_its_own_requests_only():
    misses = LiveMisses({"ttft": 100.0, "chat.ttft": 50.0, "code.ttft": 10.0, "chat.e2e": 500.0})
    late = ended(chunks=(70_000_000, 80_000_000))  # of class chat
    misses.settle(late)
    assert misses.counts == {"ttft": 0, "chat.ttft": 1, "code.ttft": 0, "chat.e2e": 0}
    for_all = Exchange(PlannedRequest(1, 0, b"", 5, 3), 0)
    misses.watch(for_all)
    misses.look(600_000_000)
    assert misses.counts == {"ttft": 1, "chat.ttft": 1, "code.ttft": 0, "chat.e2e": 0}


def test_a_target_that_nobody_can_count_is_refused():
    with pytest.raises(ValueError, match=r"chat\.nonsense"):
        LiveMisses({"chat.nonsense": 1.0})


texts = st.text(max_size=8) | st.sampled_from(['"', "\\", '\\"', "", " ", "\u00e9", "\n", '"text":"', '"content":'])


@given(
    st.lists(texts, min_size=1, max_size=8),
    st.sampled_from(["text", "content", "reasoning", "logprobs"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(", ", ": "), (",", ":")]),
)
def test_reading_events_one_after_the_other_is_reading_each(said, key, finishes, ascii_only, separators):
    """The short cut of EventReader never changes what an event means."""
    reader = EventReader()
    for i, text in enumerate(said):
        choice = {"index": 0, "finish_reason": "stop" if finishes and i == len(said) - 1 else None}
        choice |= {"text": text} if key == "text" else {"delta": {key: text}}
        if key == "logprobs":
            choice |= {"delta": {"content": text}, "logprobs": {"content": [{"token": text}]}}
        document = {"id": "x", "choices": [choice], "usage": None}
        payload = json.dumps(document, ensure_ascii=ascii_only, separators=separators).encode("utf-8", "replace")
        assert reader.read(payload) == read_event(payload)


def test_events_that_are_broken_inside_their_text_are_not_taken_for_text():
    reader = EventReader()
    whole, *others = (
        b'{"choices":[{"text":"%b"}]}' % t for t in (b"abc", b"d\ne", b"\xff\xfe", b"", b'","error":"x', b"ok")
    )
    assert reader.read(whole) == read_event(whole)
    for payload in others:
        assert reader.read(payload) == read_event(payload)


@pytest.mark.alone
def test_a_timer_expires_at_its_instant_and_not_before():
    timer = TimerFd()
    at_ns = time.monotonic_ns() + 30_000_000
    timer.set(at_ns)
    assert timer.expirations() == 0
    while not timer.expirations():
        time.sleep(0.001)
    assert time.monotonic_ns() >= at_ns
    timer.set(at_ns, every_ns=5_000_000)
    time.sleep(0.02)
    assert timer.expirations() >= 4
    timer.close()
