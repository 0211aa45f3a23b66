"""Carries exchanges over a pool of raw sockets, each byte sent once, each arrival stamped before it is read.

Knows nothing of schedules or gevent: it blocks, and is patched to switch instead in the load child.
"""

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Mapping
from time import monotonic_ns
from urllib.parse import urlsplit

from harness.load.exchange import Exchange
from harness.load.http1 import ProtocolError, request_head
from harness.load.records import LoadPlan

# Servers drop idle connections after 5 s and more (llama.cpp, uvicorn: 5 s). One given up earlier cannot
# be dropped by the server in the instant in which we write to it.
IDLE_LIMIT_NS = 4_000_000_000
_RECEIVE_BYTES = 65_536
_OUR_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)


class Cut(Exception):
    """Thrown into an exchange from outside: its time is over. ``reason``: the error to record."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class ClientExhausted(Exception):
    """This machine has no descriptors, ports or memory left for another connection."""


class Connection:
    __slots__ = ("idle_since_ns", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.idle_since_ns = 0

    def gone(self) -> bool:
        """The server closed it while it lay idle, or sent what nobody asked for. Nothing is sent to find out."""
        self.sock.settimeout(0)
        try:
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            self.sock.settimeout(None)
            return False
        except OSError:
            return True
        return True


class Transport:
    """One server. Connections are kept open and reused, last in first out, as many as are needed."""

    def __init__(self, plan: LoadPlan, environ: Mapping[str, str] = os.environ) -> None:
        """Resolves the server's name, once. Raises OSError when that fails."""
        url = urlsplit(plan.base_url.rstrip("/") + plan.path)
        assert url.hostname, plan.base_url
        tls = url.scheme == "https"
        self._tls = ssl.create_default_context() if tls else None
        self._hostname = url.hostname
        self._head = request_head(url, stream=plan.stream, api_key=environ.get(plan.api_key_env or ""))
        self._idle: list[Connection] = []
        self.opened = 0
        self.stale_replaced = 0
        self.idle_dropped = 0
        self.newest_bytes_ns = 0
        self._family, self._address = self._resolve(url.port or (443 if tls else 80))

    def send(self, exchange: Exchange) -> Connection | None:
        """The connection to receive the answer from; None: it could not be sent, and the exchange has ended.

        Raises ClientExhausted.
        """
        connection = None
        body = exchange.request.body
        try:
            connection = self._take(exchange)
            connection.sock.sendall(b"".join((self._head, b"%d\r\n\r\n" % len(body), body)))
            exchange.t_send_ns = monotonic_ns()
        except (Cut, OSError) as err:
            if isinstance(err, OSError) and err.errno in _OUR_LIMITS:
                raise ClientExhausted(f"cannot open connection {self.opened + 1}: {err.strerror}") from err
            broken = "connect" if connection is None else "reset"
            exchange.end(monotonic_ns(), err.reason if isinstance(err, Cut) else broken)
            if connection is not None:
                connection.sock.close()
            return None
        return connection

    def receive(self, exchange: Exchange, connection: Connection) -> None:
        """Everything up to the end of the exchange. The connection is kept if the answer allows it."""
        reader = exchange.reader
        receive = connection.sock.recv
        stamp_ns = 0
        error = None
        try:
            while not reader.done:
                data = receive(_RECEIVE_BYTES)
                stamp_ns = self.newest_bytes_ns = monotonic_ns()
                if data:
                    exchange.receive(data, stamp_ns)
                elif not reader.end():
                    error = "truncated" if exchange.bytes_received else "reset"
                    break
        except (Cut, ProtocolError, OSError) as err:
            stamp_ns = monotonic_ns()
            broken = "protocol" if isinstance(err, ProtocolError) else "reset"
            error = err.reason if isinstance(err, Cut) else broken
        exchange.end(stamp_ns, error)
        if error is None and reader.keep_alive:
            connection.idle_since_ns = stamp_ns
            self._idle.append(connection)
        else:
            connection.sock.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().sock.close()

    def _take(self, exchange: Exchange) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if monotonic_ns() - connection.idle_since_ns > IDLE_LIMIT_NS:
                self.idle_dropped += 1
            elif connection.gone():
                self.stale_replaced += 1
            else:
                exchange.connection_reused = True
                return connection
            connection.sock.close()
        started_ns = monotonic_ns()
        connection = Connection(self._connect(self._family, self._address))
        exchange.connect_ns = monotonic_ns() - started_ns
        return connection

    def _connect(self, family: int, address: tuple[str, int]) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        with contextlib.ExitStack() as unless_connected:
            unless_connected.callback(sock.close)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._hostname)
            unless_connected.pop_all()
        self.opened += 1
        return sock

    def _resolve(self, port: int) -> tuple[int, tuple[str, int]]:
        """The first address that takes a connection; a name such as localhost may have several."""
        found = socket.getaddrinfo(self._hostname, port, type=socket.SOCK_STREAM)
        for family, _, _, _, address in found if len(found) > 1 else ():
            try:
                self._connect(family, address).close()  # type: ignore[arg-type]
            except OSError:
                continue
            return family, address  # type: ignore[return-value]
        return found[0][0], found[0][4]  # type: ignore[return-value]
