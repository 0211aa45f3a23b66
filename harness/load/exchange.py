"""One request on its way: what was stamped and read while it ran, and what is to be made of it once it is over.

Knows nothing of sockets, schedules or targets. Stamps are absolute monotonic nanoseconds.
"""

from array import array

from harness.load.http1 import ResponseReader
from harness.load.records import PlannedRequest
from harness.load.sse import DONE, Event, EventLines, EventReader, read_event


class Exchange:
    """From the instant at which its request is fired. ``t_end_ns`` is None until it has ended."""

    __slots__ = (
        "_body",
        "_events",
        "_lines",
        "_malformed",
        "_refused",
        "_said_all",
        "_streams",
        "bytes_received",
        "chunk_ns",
        "connect_ns",
        "connection",
        "connection_reused",
        "error",
        "finish_reason",
        "missed",
        "reader",
        "request",
        "t_end_ns",
        "t_int_ns",
        "t_send_ns",
        "usage",
    )

    def __init__(self, request: PlannedRequest, t_int_ns: int) -> None:
        self.request = request
        self.t_int_ns = t_int_ns
        self.t_send_ns: int | None = None
        self.t_end_ns: int | None = None
        self.chunk_ns = array("q")
        self.connect_ns = 0  # spent on a new connection: the server's time and the network's, not ours
        self.connection: object | None = None  # that carries it (transport.py)
        self.connection_reused = False
        self.bytes_received = 0
        self.error: str | None = None
        self.finish_reason: str | None = None
        self.reader = ResponseReader()
        self.missed: frozenset[str] = frozenset()  # targets known to be missed (live.py)
        self._lines = EventLines()
        self._events = EventReader()
        self.usage: list[int | None] = [None, None, None]  # prompt, cached, output tokens, as the server says
        self._streams: bool | None = None  # or is one document; None: not known yet
        self._body = b""  # of an answer in one piece
        self._said_all = self._malformed = self._refused = False

    @property
    def t_first_ns(self) -> int | None:
        return self.chunk_ns[0] if self.chunk_ns else None

    @property
    def lateness_ns(self) -> int:
        """How late we were, connecting left out. Only once it was sent."""
        assert self.t_send_ns is not None
        return self.t_send_ns - self.t_int_ns - self.connect_ns

    def receive(self, data: bytes, stamp_ns: int) -> None:
        """Bytes that arrived at ``stamp_ns``. Raises ProtocolError."""
        self.bytes_received += len(data)
        body = self.reader.feed(data)
        if not body:
            return
        if self._streams is None:
            self._streams = self._status_ok and not self.reader.content_type.startswith("application/json")
        if self._streams:
            for payload in self._lines.feed(body):
                self._read(payload, stamp_ns)
        else:
            self._body += body

    def end(self, stamp_ns: int, error: str | None) -> None:
        """Over, for the reason that the transport gives. What the server has said may make it better, or worse."""
        self.t_end_ns = stamp_ns
        if error is None:
            for payload in self._lines.end():
                self._read(payload, stamp_ns)
        if self._body and error is None:
            self._understand(read_event(self._body), stamp_ns)
            self._body = b""
            self._said_all = not self._malformed  # a whole document, whatever it says
        if self._refused or not self._status_ok:
            error = "http"
        elif self._said_all or (error == "truncated" and self.finish_reason):
            error = None  # all was said; how the connection ended afterwards does not matter
        elif error is None and (self._malformed or not self.finish_reason):
            error = "protocol" if self._malformed else "truncated"
        self.error = error

    def _read(self, payload: bytes, stamp_ns: int) -> None:
        if payload == DONE:
            self._said_all = True
        else:
            self._understand(self._events.read(payload), stamp_ns)

    def _understand(self, event: Event | None, stamp_ns: int) -> None:
        if event is None:
            self._malformed = True
            return
        if event.has_content:
            self.chunk_ns.append(stamp_ns)
        self._refused |= event.is_error
        self.finish_reason = event.finish_reason or self.finish_reason
        said = (event.prompt_tokens, event.cached_tokens, event.output_tokens)
        if said != (None, None, None):
            self.usage = [new if new is not None else old for new, old in zip(said, self.usage, strict=True)]

    @property
    def _status_ok(self) -> bool:
        return self.reader.status is None or 200 <= self.reader.status < 300
