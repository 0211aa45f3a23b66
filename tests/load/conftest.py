"""A real socket server that plays what each request's own body asks for, and keeps its own clock record."""

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.load.records import LoadPlan, PlannedRequest

HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Seen:
    """What the server knows of one request: when it was whole, and when each step of its play was done."""

    received_ns: int
    connection: int
    head: str
    steps: list[int] = field(default_factory=list)


class ScriptedServer:
    """A play is a list of steps: ["send", text], ["sleep", s], ["reset"], ["close"], ["hang"]."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.seen: dict[int, Seen] = {}
        self.idle_close_s: float | None = None
        self.thaw = threading.Event()
        self.thaw.set()
        self._tls = tls
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{'localhost' if self._tls else '127.0.0.1'}:{self.port}/v1"

    def plan(self, *plays: list[list[Any]], every_s: float = 0.02, **settings: Any) -> LoadPlan:
        """One request per play, ``every_s`` apart."""
        requests = tuple(
            PlannedRequest(i, round(i * every_s * 1e9), json.dumps({"index": i, "play": play}).encode(), 5, 3)
            for i, play in enumerate(plays)
        )
        defaults: dict[str, Any] = {
            "base_url": self.url,
            "path": "/completions",
            "mode": "open",
            "api": "completions",
            "stream": True,
            "timeout_ns": 5_000_000_000,
            "drain_ns": 5_000_000_000,
            "hang_ns": 5_000_000_000,
        }
        return LoadPlan(**{**defaults, **settings}, requests=requests)

    @staticmethod
    def chunk(text: str) -> str:
        """``text`` is latin-1: one character per byte."""
        return f"{len(text):x}\r\n{text}\r\n"

    @classmethod
    def event(cls, text: str = " word", finish: str | None = None, **more: Any) -> str:
        return cls.chunk("data: " + json.dumps({"choices": [{"text": text, "finish_reason": finish}], **more}) + "\n\n")

    @classmethod
    def usage(cls, prompt: int, output: int) -> str:
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": 2}}
        return cls.chunk("data: " + json.dumps({"choices": [], "usage": usage}) + "\n\n")

    @classmethod
    def end(cls) -> str:
        return cls.chunk("data: [DONE]\n\n") + "0\r\n\r\n"

    @classmethod
    def answer(cls, first_s: float = 0.03, gap_s: float = 0.02, tokens: int = 3) -> list[list[Any]]:
        """A whole, ordinary stream."""
        play: list[list[Any]] = [["sleep", first_s], ["send", HEAD + cls.event()]]
        for i in range(1, tokens):
            play += [["sleep", gap_s], ["send", cls.event(finish="length" if i == tokens - 1 else None)]]
        return [*play, ["send", cls.usage(5, tokens) + cls.end()]]

    def close(self) -> None:
        self._over.set()
        self.thaw.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()
        for connection in self._connections:
            connection.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                return
            number = len(self._connections)
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(number,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, number: int) -> None:
        try:
            if self._tls:
                self._connections[number] = self._tls.wrap_socket(self._connections[number], server_side=True)
            connection = self._connections[number]
            while request := self._read(connection):
                head, body = request
                asked = json.loads(body)
                seen = self.seen[asked["index"]] = Seen(time.monotonic_ns(), number, head)
                if not self._play(connection, asked["play"], seen):
                    break
        except OSError:
            pass
        self._connections[number].close()

    def _read(self, connection: socket.socket) -> tuple[str, bytes] | None:
        data = b""
        connection.settimeout(self.idle_close_s)
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return None
            data += piece
        connection.settimeout(None)
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        return head.decode(), body

    def _play(self, connection: socket.socket, play: list[list[Any]], seen: Seen) -> bool:
        """Whether the connection goes on."""
        for verb, *what in play:
            self.thaw.wait()
            if verb == "send":
                seen.steps.append(time.monotonic_ns())
                connection.sendall(what[0].encode("latin-1"))
            elif verb == "sleep":
                self._over.wait(what[0])
            elif verb == "hang":
                self._over.wait(20)
                return False
            elif verb == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            else:
                assert verb == "close", verb
                return False
        return True


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def fresh_server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def tls_server() -> type[ScriptedServer]:
    return ScriptedServer
