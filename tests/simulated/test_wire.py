"""HTTP as clients really send it: in pieces, one after the other, and wrong."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.engines.simulated.wire import Connection
from harness.load.sse import EventLines, EventReader


class Engine:
    """Gives the tokens that a test tells it to give."""

    served_model, context_tokens = "8b-simulated", 64

    def __init__(self):
        self.asked, self.answering, self.cancelled = [], [], []

    def submit(self, asked, answering):
        self.asked.append(asked)
        self.answering.append(answering)
        return len(self.asked) - 1

    def cancel(self, ticket):
        self.cancelled.append(ticket)

    def metrics(self):
        return "simulated_info 1\n"


class Transport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.writes, self.closed = [], False

    def write(self, data):
        self.writes.append(bytes(data))

    def close(self):
        self.closed = True

    abort = close

    def get_write_buffer_size(self):
        return 0

    @property
    def said(self):
        return b"".join(self.writes)


def connected():
    engine, transport = Engine(), Transport()
    connection = Connection(engine)
    connection.connection_made(transport)
    return engine, transport, connection


def post(path="/v1/completions", **body):
    content = json.dumps({"prompt": " a b", "max_tokens": 3, **body}).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(content), content)


STREAM = {"stream": True, "stream_options": {"include_usage": True}}


@given(st.lists(st.integers(1, 400), max_size=6))
@settings(max_examples=50)
def test_requests_may_come_in_pieces_and_together(cuts):
    engine, transport, connection = connected()
    data = post() + b"GET /health HTTP/1.1\r\n\r\n" + post(prompt=" c")
    at = 0
    for cut in sorted({min(c, len(data)) for c in cuts} | {len(data)}):
        connection.data_received(data[at:cut])
        at = cut
    assert [a.prompt for a in engine.asked] == [["a", "b"]], "the second waits for the first answer"
    engine.answering[0].give(3, last=True, cached_tokens=0)
    assert [a.prompt for a in engine.asked] == [["a", "b"], ["c"]]
    assert transport.said.count(b"HTTP/1.1 200 OK") == 2
    assert not transport.closed


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_is_one_write_a_step_and_says_all_that_was_given(path):
    engine, transport, connection = connected()
    body = {"messages": [{"role": "user", "content": " a b"}]} if "chat" in path else {}
    connection.data_received(post(path, **STREAM, **body))
    for tokens, last in ((1, False), (1, False), (3, False), (2, True)):
        engine.answering[0].give(tokens, last=last, cached_tokens=1)
    assert len(transport.writes) == 4
    head, _, chunks = transport.said.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    events = b""
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        events += rest[: int(size, 16)]
        assert rest[int(size, 16) :][:2] == b"\r\n"
        chunks = rest[int(size, 16) + 2 :]
    lines = EventLines().feed(events)
    assert lines[-1] == b"[DONE]"
    reader = EventReader()
    read = [reader.read(line) for line in lines[:-1]]
    assert sum(e.has_content for e in read) == 4
    assert [e.finish_reason for e in read if e.finish_reason] == ["length"]
    assert read[-1].output_tokens == 7
    assert read[-1].cached_tokens == 1
    assert events.count(b"simulated") >= 7


def test_whoever_goes_is_cancelled_once_and_only_while_the_answer_is_due():
    engine, _, connection = connected()
    connection.data_received(post(**STREAM))
    connection.connection_lost(None)
    assert engine.cancelled == [0]
    engine, _, connection = connected()
    connection.data_received(post())
    engine.answering[0].give(3, last=True, cached_tokens=0)
    connection.connection_lost(None)
    assert engine.cancelled == []


def test_close_is_kept():
    engine, transport, connection = connected()
    connection.data_received(post().replace(b"Host: x", b"Connection: close"))
    engine.answering[0].give(3, last=True, cached_tokens=0)
    assert transport.closed
    assert b"connection: close" in transport.said


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /nowhere HTTP/1.1\r\n\r\n", 404),
        (post(prompt=""), 400),
        (post(prompt=7), 400),
        (post(max_tokens=True), 400),
        (post(max_tokens=63), 400),
        (post(model="other"), 404),
        (post("/v1/chat/completions"), 400),
        (post("/v1/chat/completions", messages=[{"role": "user"}]), 400),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]", 400),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: 1\r\n\r\n{", 400),
    ],
)
def test_what_is_wrong_is_answered_and_the_connection_stays(data, status):
    _, transport, connection = connected()
    connection.data_received(data)
    assert transport.said.startswith(f"HTTP/1.1 {status} ".encode())
    assert not transport.closed
    connection.data_received(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert transport.said.endswith(b"simulated_info 1\n")


@pytest.mark.parametrize(
    "data",
    [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"G" * 70_000, b"\x16\x03\x01\r\n\r\n"],
)
def test_what_is_not_http_is_hung_up_on(data):
    _, transport, connection = connected()
    connection.data_received(data)
    assert transport.closed
