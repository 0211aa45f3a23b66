"""HTTP/1.1 as a load generator needs it: one request in one piece, the answer taken apart as it arrives.

Knows nothing of sockets, of clocks or of what a body means.
"""

from urllib.parse import SplitResult

_MOST_HEAD_BYTES = 65_536
_MOST_LINE_BYTES = 8_192


class ProtocolError(Exception):
    """The server does not speak HTTP/1.1."""


def request_head(url: SplitResult, *, stream: bool, api_key: str | None) -> bytes:
    """Everything before the number of Content-Length, which ends the head. The key goes nowhere else."""
    lines = [
        f"POST {url.path} HTTP/1.1",
        f"Host: {url.netloc.rpartition('@')[2]}",
        "User-Agent: autotune",
        f"Accept: {'text/event-stream' if stream else 'application/json'}",
        "Content-Type: application/json",
    ]
    if api_key:
        lines.append(f"Authorization: Bearer {api_key.strip()}")
    return ("\r\n".join(lines) + "\r\nContent-Length: ").encode("latin-1")


class ResponseReader:
    """Takes one answer apart, however it is cut into pieces. ``done``: nothing more belongs to it."""

    __slots__ = (
        "_after_chunk",
        "_chunk_left",
        "_chunked",
        "_head",
        "_in_trailers",
        "_left",
        "_line",
        "content_type",
        "done",
        "keep_alive",
        "status",
    )

    def __init__(self) -> None:
        self.status: int | None = None
        self.content_type = ""
        self.keep_alive = False
        self.done = False
        self._head = b""
        self._chunked = False
        self._left: int | None = None  # bytes of the body still to come; None: until the connection ends
        self._line = b""  # beginning of a line of the chunked coding
        self._chunk_left = 0
        self._after_chunk = False
        self._in_trailers = False

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body that are in ``data``. Raises ProtocolError."""
        if self.status is None:
            data = self._behead(data)
            if not data:
                return b""
        if self._chunked:
            return self._one_whole_chunk(data) or self._dechunk(data)
        if self._left is None:
            return data
        body = data[: self._left]
        self._left -= len(body)
        self.done = self._left == 0
        self.keep_alive &= len(body) == len(data)
        return body

    def end(self) -> bool:
        """The connection has ended: is the answer whole?"""
        self.keep_alive = False
        self.done = self.done or (self.status is not None and not self._chunked and self._left is None)
        return self.done

    def _behead(self, data: bytes) -> bytes:
        """What follows the head, once that is whole; interim answers (1xx) have one of their own."""
        self._head += data
        while b"\r\n\r\n" in self._head:
            head, _, self._head = self._head.partition(b"\r\n\r\n")
            self._read_head(head)
            if self.status is not None:
                return self._head
        if len(self._head) > _MOST_HEAD_BYTES:
            raise ProtocolError("the head of the answer does not end")
        return b""

    def _read_head(self, head: bytes) -> None:
        status_line, *lines = head.split(b"\r\n")
        version, _, rest = status_line.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise ProtocolError(f"not a status line: {status_line[:80]!r}")
        status = int(rest[:3])
        if 100 <= status < 200:
            return  # an interim answer; the real one follows
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip().lower()
        connection = headers.get(b"connection", b"")
        self.keep_alive = b"keep-alive" in connection or (version == b"HTTP/1.1" and b"close" not in connection)
        self.content_type = headers.get(b"content-type", b"").decode("latin-1")
        self._chunked = b"chunked" in headers.get(b"transfer-encoding", b"")
        length = headers.get(b"content-length")
        if length is not None and not self._chunked:
            if not length.isdigit():
                raise ProtocolError(f"not a length: {length[:80]!r}")
            self._left = int(length)
        elif status in (204, 304):
            self._left = 0
        self.done = self._left == 0 and not self._chunked
        self.status = status

    def _one_whole_chunk(self, data: bytes) -> bytes:
        """The body if ``data`` is one whole chunk, as it nearly always is; nothing if it is anything else."""
        end = data.find(b"\r\n")
        if self._line or self._chunk_left or self._after_chunk or self._in_trailers or not data[:end].isalnum():
            return b""
        try:
            size = int(data[:end], 16)
        except ValueError:
            return b""
        return data[end + 2 : -2] if size == len(data) - end - 4 and data.endswith(b"\r\n") else b""

    def _dechunk(self, data: bytes) -> bytes:
        if self._line:
            data = self._line + data
            self._line = b""
        position = 0
        pieces = []
        while position < len(data) and not self.done:
            if self._chunk_left:
                piece = data[position : position + self._chunk_left]
                pieces.append(piece)
                position += len(piece)
                self._chunk_left -= len(piece)
                self._after_chunk = self._chunk_left == 0
                continue
            end = data.find(b"\r\n", position)
            if end < 0:
                self._line = data[position:]
                if len(self._line) > _MOST_LINE_BYTES:
                    raise ProtocolError("a line of the chunked coding does not end")
                break
            self._read_line(data[position:end])
            position = end + 2
        if self.done and position < len(data):
            self.keep_alive = False  # bytes that nobody asked for
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_line(self, line: bytes) -> None:
        if self._after_chunk:
            if line:
                raise ProtocolError("a chunk is longer than it said")
            self._after_chunk = False
        elif self._in_trailers:
            self.done = not line
        else:
            try:
                self._chunk_left = int(line.partition(b";")[0], 16)
            except ValueError as err:
                raise ProtocolError(f"not the size of a chunk: {line[:80]!r}") from err
            if self._chunk_left < 0:
                raise ProtocolError(f"not the size of a chunk: {line[:80]!r}")
            self._in_trailers = self._chunk_left == 0
