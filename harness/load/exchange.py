"""One request on its way: what was stamped while it ran, and the record made of it once it is over.

Knows nothing of sockets, schedules or targets. Stamps are absolute monotonic nanoseconds.
"""

from array import array
from typing import Any

from harness.load.http1 import ResponseReader
from harness.load.records import PlannedRequest, Record
from harness.load.sse import DONE, EventLines, read_event


class Exchange:
    """While it runs only bytes are split; JSON waits for ``record``, but for what comes before the first token."""

    __slots__ = (
        "_body",
        "_events",
        "_lines",
        "bytes_received",
        "connect_ns",
        "connection_reused",
        "error",
        "greenlet",
        "missed",
        "reader",
        "request",
        "t_end_ns",
        "t_first_ns",
        "t_int_ns",
        "t_send_ns",
    )

    def __init__(self, request: PlannedRequest, t_int_ns: int) -> None:
        self.request = request
        self.t_int_ns = t_int_ns
        self.t_send_ns: int | None = None
        self.t_first_ns: int | None = None
        self.t_end_ns: int | None = None
        self.connect_ns = 0  # spent on a new connection: the server's time and the network's, not ours
        self.connection_reused = False
        self.bytes_received = 0
        self.error: str | None = None
        self.reader = ResponseReader()
        self.greenlet: Any = None  # who carries it; None: nobody yet
        self.missed: set[str] = set()  # targets known to be missed (live.py)
        self._lines = EventLines()
        self._events: list[tuple[int, bytes]] = []
        self._body = b""

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
        if not self._is_stream:
            self._body += body
            return
        for payload in self._lines.feed(body):
            self._events.append((stamp_ns, payload))
            if self.t_first_ns is None and (event := read_event(payload)) is not None and event.has_content:
                self.t_first_ns = stamp_ns

    def end(self, stamp_ns: int, error: str | None) -> None:
        self.t_end_ns = stamp_ns
        self.error = error
        if error is None:
            self._events.extend((stamp_ns, payload) for payload in self._lines.end())

    def record(self, t0_ns: int) -> Record:
        """The finished record, times relative to ``t0_ns``. The payloads are let go."""
        assert self.t_end_ns is not None
        stamps = array("q")
        prompt_tokens = cached_tokens = output_tokens = finish_reason = None
        done = malformed = refused = False
        events, self._events = self._events, []
        if not self._is_stream and self._body and self.error is None:
            events = [(self.t_end_ns, self._body)]
            self._body = b""
        for stamp_ns, payload in events:
            if payload == DONE:
                done = True
                continue
            event = read_event(payload)
            if event is None:
                malformed = True
                continue
            refused |= event.is_error
            if event.has_content:
                stamps.append(stamp_ns - t0_ns)
            finish_reason = event.finish_reason or finish_reason
            prompt_tokens = _newer(event.prompt_tokens, prompt_tokens)
            cached_tokens = _newer(event.cached_tokens, cached_tokens)
            output_tokens = _newer(event.output_tokens, output_tokens)
        if not self._is_stream:
            done = bool(events) and not malformed  # a whole document, whatever it says
        error = self.error
        if refused or not self._status_ok:
            error = "http"
        elif done or (error == "truncated" and finish_reason):
            error = None  # all was said; how the connection ended afterwards does not matter
        elif error is None and (malformed or not finish_reason):
            error = "protocol" if malformed else "truncated"
        return Record(
            index=self.request.index,
            t_int_ns=self.t_int_ns - t0_ns,
            t_send_ns=None if self.t_send_ns is None else self.t_send_ns - t0_ns,
            t_first_ns=stamps[0] if stamps else None,
            t_last_ns=stamps[-1] if stamps else None,
            t_end_ns=self.t_end_ns - t0_ns,
            chunk_ns=stamps,
            prompt_tokens_asked=self.request.prompt_tokens_asked,
            output_tokens_asked=self.request.output_tokens_asked,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            output_tokens=output_tokens,
            finish_reason=finish_reason,
            http_status=self.reader.status,
            error=error,
            connection_reused=self.connection_reused,
            bytes_received=self.bytes_received,
            traffic_class=self.request.traffic_class,
            session=self.request.session,
            turn=self.request.turn,
        )

    @property
    def _status_ok(self) -> bool:
        return self.reader.status is None or 200 <= self.reader.status < 300

    @property
    def _is_stream(self) -> bool:
        return self._status_ok and not self.reader.content_type.startswith("application/json")


def _newer(new: int | None, old: int | None) -> int | None:
    return old if new is None else new
