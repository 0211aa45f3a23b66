"""Carries exchanges over a pool of raw sockets, each byte sent once, each arrival stamped before it is read.

Nothing here waits: an event loop calls back. Knows nothing of schedules or targets.
"""

import _socket  # the plain class: gevent puts its own in the place of socket.socket
import errno
import os
import socket
import ssl
import struct
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic_ns
from typing import Any
from urllib.parse import urlsplit

from harness.load.exchange import Exchange
from harness.load.http1 import ProtocolError, request_head
from harness.load.loop import READABLE, WRITABLE, Loop
from harness.load.records import LoadPlan
from harness.load.room import Room
from harness.load.timers import NEVER_NS
from harness.load.tls import TlsSession

# Servers drop idle connections after 5 s and more (llama.cpp, uvicorn: 5 s). One given up earlier cannot
# be dropped by the server in the instant in which we write to it.
IDLE_LIMIT_NS = 4_000_000_000
# Some servers say keep-alive and close all the same, as soon as the answer is out (llama.cpp after a stream).
# Their FIN follows the last byte by 0.1 ms, or by a time slice on a busy machine.
REST_NS = 20_000_000
SAMPLED = 16  # one connection of so many tells when the kernel received what it brings
_RECEIVE_BYTES = 65_536
_OUR_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)
_SO_TIMESTAMPNS = 35


class ClientExhausted(Exception):
    """This machine has no descriptors, ports or memory left for another connection."""


class Connection:
    """``exchange``: the one it carries now; None while it lies idle."""

    __slots__ = ("exchange", "idle_since_ns", "sampled", "sock", "tls", "unsent", "watcher", "writer")

    def __init__(self, sock: _socket.socket, tls: TlsSession | None, sampled: bool) -> None:
        self.sock = sock
        self.tls = tls
        self.sampled = sampled
        self.exchange: Exchange | None = None
        self.unsent = b""
        self.idle_since_ns = 0
        self.watcher: Any = None  # of what comes
        self.writer: Any = None  # until it is connected, and while the kernel takes no more

    def gone(self) -> bool:
        """The server closed it while it lay idle, or sent what nobody asked for. Nothing is sent to find out."""
        try:
            self.sock.recv(1, _socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def stop_writer(self) -> None:
        if self.writer is not None:
            self.writer.stop()
            self.writer.close()
            self.writer = None

    def close(self) -> None:
        self.stop_writer()
        if self.watcher is not None:
            self.watcher.stop()
            self.watcher.close()
        self.sock.close()


class Transport:
    """One server. Connections are kept open and reused after a rest, last in first out, as many as are needed.

    ``alarm_ns``: as soon as a stamp shows that it has passed, ``on_alarm`` is called, between two answers: a
    loop with much to do is late to serve its timers.
    """

    def __init__(
        self,
        plan: LoadPlan,
        loop: Loop,
        *,
        on_sent: Callable[[Exchange], object],
        on_end: Callable[[Exchange], object],
        on_alarm: Callable[[], object],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Resolves the server's name, once. Raises OSError when that fails."""
        url = urlsplit(plan.base_url.rstrip("/") + plan.path)
        assert url.hostname, plan.base_url
        tls = url.scheme == "https"
        self._tls = ssl.create_default_context() if tls else None
        self._hostname = url.hostname
        self._head = request_head(url, stream=plan.stream, api_key=environ.get(plan.api_key_env or ""))
        self._loop = loop
        self._on_sent, self._on_end, self._on_alarm = on_sent, on_end, on_alarm
        self._resting: deque[Connection] = deque()  # the server may be about to close them
        self._idle: list[Connection] = []
        self._open = 0
        self._room = Room.of_this_process()
        self.alarm_ns = NEVER_NS
        self.opened = 0
        self.stale_replaced = 0
        self.idle_dropped = 0
        self.newest_bytes_ns = 0
        self.receive_lag_ns = array("q")  # from the kernel's receipt of bytes to our stamp, of sampled connections
        self._family, self._address = self._resolve(url.port or (443 if tls else 80))

    def send(self, exchange: Exchange) -> None:
        """Fires the request. ``on_sent`` and ``on_end`` tell what becomes of it. Raises ClientExhausted."""
        body = exchange.request.body
        data = b"".join((self._head, b"%d\r\n\r\n" % len(body), body))
        connection = self._take_idle()
        if connection is not None:
            exchange.connection_reused = True
            exchange.connection = connection
            connection.exchange = exchange
            self._write(connection, data if connection.tls is None else connection.tls.encrypt(data))
            return
        self._open_connection(exchange, data)

    def cut(self, exchange: Exchange, reason: str) -> None:
        """Its time is over."""
        self._finish(exchange, monotonic_ns(), reason)

    def close(self) -> None:
        for connection in (*self._resting, *self._idle):
            self._close(connection)

    def _take_idle(self) -> Connection | None:
        now_ns = monotonic_ns()
        while self._resting and now_ns - self._resting[0].idle_since_ns >= REST_NS:
            self._idle.append(self._resting.popleft())
        while self._idle:
            connection = self._idle.pop()
            if now_ns - connection.idle_since_ns > IDLE_LIMIT_NS:
                self.idle_dropped += 1
            elif connection.gone():
                self.stale_replaced += 1
            else:
                return connection
            self._close(connection)
        return None

    def _open_connection(self, exchange: Exchange, data: bytes) -> None:
        if self._open >= self._room.connections:
            raise ClientExhausted(f"cannot open connection {self._open + 1}: {self._room.reason}")
        started_ns = monotonic_ns()
        try:
            sock = _socket.socket(self._family, _socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            sampled = self.opened % SAMPLED == 0
            if sampled:
                sock.setsockopt(_socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            code = sock.connect_ex(self._address)
        except OSError as err:
            raise self._exhausted(err.errno) from err
        tls = None if self._tls is None else TlsSession(self._tls, self._hostname)
        connection = Connection(sock, tls, sampled)
        self._open += 1
        exchange.connection = connection
        connection.exchange = exchange
        if code == 0:
            self._connected(connection, data, started_ns)
        elif code == errno.EINPROGRESS:
            connection.writer = self._loop.io(sock.fileno(), WRITABLE)
            connection.writer.start(self._connected, connection, data, started_ns)
        elif code in _OUR_LIMITS:
            raise self._exhausted(code)
        else:
            self._finish(exchange, monotonic_ns(), "connect")

    def _exhausted(self, number: int | None) -> ClientExhausted:
        why = os.strerror(number or 0)
        return ClientExhausted(f"cannot open connection {self._open + 1}: {why}; {self._room.advice(number)}")

    def _connected(self, connection: Connection, data: bytes, started_ns: int) -> None:
        exchange = connection.exchange
        assert exchange is not None
        connection.stop_writer()
        code = connection.sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if code in _OUR_LIMITS:
            raise self._exhausted(code)
        if code:
            self._finish(exchange, monotonic_ns(), "connect")
            return
        self.opened += 1
        connection.watcher = self._loop.io(connection.sock.fileno(), READABLE)
        if connection.tls is None:
            exchange.connect_ns = monotonic_ns() - started_ns
            connection.watcher.start(self._readable, connection)
            self._write(connection, data)
        else:
            connection.watcher.start(self._shake_hands, connection, data, started_ns)
            connection.tls.shake_hands()
            self._write(connection, connection.tls.outgoing())

    def _shake_hands(self, connection: Connection, data: bytes, started_ns: int) -> None:
        exchange, tls = connection.exchange, connection.tls
        assert exchange is not None
        assert tls is not None
        try:
            received = connection.sock.recv(_RECEIVE_BYTES)
            tls.decrypt(received)
        except BlockingIOError:
            return
        except OSError:  # ssl.SSLError among them
            received = b""
        if not received:
            self._finish(exchange, monotonic_ns(), "connect")
            return
        if not tls.ready:
            self._write(connection, tls.outgoing())
            return
        exchange.connect_ns = monotonic_ns() - started_ns
        connection.watcher.stop()
        connection.watcher.start(self._readable, connection)
        self._write(connection, tls.outgoing() + tls.encrypt(data))

    def _write(self, connection: Connection, data: bytes) -> None:
        """As much as the kernel takes; the rest when it takes more."""
        exchange = connection.exchange
        assert exchange is not None
        data = connection.unsent + data
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._finish(exchange, monotonic_ns(), "reset")
            return
        if sent < len(data):
            connection.unsent = data[sent:]
            if connection.writer is None:
                connection.writer = self._loop.io(connection.sock.fileno(), WRITABLE)
                connection.writer.start(self._write, connection, b"")
            return
        connection.unsent = b""
        if connection.writer is not None:
            connection.stop_writer()
        if connection.tls is None or connection.tls.ready:
            exchange.t_send_ns = monotonic_ns()
            self._on_sent(exchange)

    def _readable(self, connection: Connection) -> None:
        exchange = connection.exchange
        try:
            data = self._receive_sampled(connection) if connection.sampled else connection.sock.recv(_RECEIVE_BYTES)
            stamp_ns = monotonic_ns()
            if exchange is None:  # the server closed it while it lay idle, or says what nobody asked for
                self._forget(connection)
                return
            if data:
                self.newest_bytes_ns = stamp_ns
                if connection.tls is not None:
                    data = connection.tls.decrypt(data)
                exchange.receive(data, stamp_ns)
                if exchange.reader.done:
                    self._finish(exchange, stamp_ns, None)
            elif exchange.reader.end():
                self._finish(exchange, stamp_ns, None)
            else:
                self._finish(exchange, stamp_ns, "truncated" if exchange.bytes_received else "reset")
        except BlockingIOError:
            return
        except (ProtocolError, OSError) as err:
            stamp_ns = monotonic_ns()
            if exchange is None:
                self._forget(connection)
            else:
                self._finish(exchange, stamp_ns, "protocol" if isinstance(err, ProtocolError) else "reset")
        if stamp_ns >= self.alarm_ns:
            self._on_alarm()

    def _receive_sampled(self, connection: Connection) -> bytes:
        """Received bytes, and how long they lay in the kernel."""
        data, told, _, _ = connection.sock.recvmsg(_RECEIVE_BYTES, 64)
        now_ns = time.time_ns()
        for level, kind, stamp in told:
            if level == _socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, ns = struct.unpack("@qq", stamp)
                self.receive_lag_ns.append(now_ns - seconds * 1_000_000_000 - ns)
        return data

    def _finish(self, exchange: Exchange, stamp_ns: int, error: str | None) -> None:
        connection = exchange.connection
        exchange.connection = None
        exchange.end(stamp_ns, error)
        if isinstance(connection, Connection):
            connection.exchange = None
            if error is None and exchange.reader.keep_alive and not connection.unsent:
                connection.idle_since_ns = stamp_ns
                self._resting.append(connection)
            else:
                self._close(connection)
        self._on_end(exchange)

    def _forget(self, connection: Connection) -> None:
        self.stale_replaced += 1
        (self._resting if connection in self._resting else self._idle).remove(connection)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        connection.close()
        self._open -= 1

    def _resolve(self, port: int) -> tuple[int, tuple[str, int]]:
        """The first address that takes a connection; a name such as localhost may have several."""
        found = socket.getaddrinfo(self._hostname, port, type=socket.SOCK_STREAM)
        for family, _, _, _, address in found if len(found) > 1 else ():
            trial = socket.socket(family, socket.SOCK_STREAM)
            try:
                trial.connect(address)
            except OSError:
                continue
            finally:
                trial.close()
            return family, address  # type: ignore[return-value]
        return found[0][0], found[0][4]  # type: ignore[return-value]
