"""HTTP/1.1 and the OpenAI API over it: reads requests, writes answers, one token or several at a time.

Every token says "simulated". Knows nothing of models, of blocks or of when a token is due: `Engine` does.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from harness.engines.simulated.prompts import templated, token_ids, words

WORD = " simulated"
LARGEST_BODY_BYTES = 64 << 20
LARGEST_HEAD_BYTES = 64 << 10
MOST_UNREAD_BYTES = 8 << 20  # of an answer that its client does not read
MORE_EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class Refused(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Asked:
    """One completion. ``prompt``: its tokens."""

    prompt: list[str]
    output_tokens: int
    chat: bool
    stream: bool
    with_usage: bool


class Answering(Protocol):
    """Is told when tokens are there."""

    def give(self, tokens: int, *, last: bool, cached_tokens: int) -> None: ...


class Engine(Protocol):
    """What serves the requests that are read here."""

    served_model: str
    context_tokens: int

    def submit(self, asked: Asked, answering: Answering) -> int:
        """Takes a request and gives a ticket for it, good until the last token. Raises Refused."""

    def cancel(self, ticket: int) -> None:
        """Whoever asked has gone."""

    def metrics(self) -> str:
        """In the text format of Prometheus."""


class Connection(asyncio.Protocol):
    """One client: a request at a time, kept open in between."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._received = bytearray()
        self._answer: _Answer | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._read()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        if self._answer is not None:
            self._engine.cancel(self._answer.ticket)
            self._answer = None

    def answered(self, *, keep: bool) -> None:
        """The last byte is out."""
        self._answer = None
        assert self._transport is not None
        if not keep:
            self._transport.close()
        elif self._received:
            self._read()

    def _read(self) -> None:
        """Serves what has arrived whole, unless an answer is on its way: then it waits."""
        while self._answer is None and (found := self._next_request()) is not None:
            self._serve(*found)

    def _next_request(self) -> tuple[str, str, bytes, bool] | None:
        """Method, path, body, and whether the connection stays open."""
        assert self._transport is not None
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            if len(self._received) > LARGEST_HEAD_BYTES:
                self._transport.abort()
            return None
        line, *rest = self._received[:end].decode("latin-1").split("\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (f.partition(":") for f in rest)}
        length = fields.get("content-length", "0")
        if len(line.split(" ")) != 3 or not length.isdecimal() or int(length) > LARGEST_BODY_BYTES:
            self._transport.abort()
            return None
        whole = end + 4 + int(length)
        if len(self._received) < whole:
            return None
        body = bytes(self._received[end + 4 : whole])
        del self._received[:whole]
        method, path, version = line.split(" ")
        keep = fields.get("connection", "").lower() != "close" and version == "HTTP/1.1"
        return method, path.partition("?")[0], body, keep

    def _serve(self, method: str, path: str, body: bytes, keep: bool) -> None:
        try:
            if (method, path) in {("POST", COMPLETIONS), ("POST", CHAT)}:
                asked = self._asked(_document(body), chat=path == CHAT)
                assert self._transport is not None
                self._answer = _Answer(self, self._transport, asked, self._engine.served_model, keep)
                self._answer.ticket = self._engine.submit(asked, self._answer)
            else:
                self._say(HTTPStatus.OK, self._content(method, path, body), keep)
        except Refused as refused:
            self._answer = None
            error = {"message": str(refused), "type": "BadRequestError", "param": None, "code": refused.status.value}
            self._say(refused.status, {"error": error}, keep)

    def _content(self, method: str, path: str, body: bytes) -> str | dict[str, Any]:
        name = self._engine.served_model
        match method, path:
            case "GET", "/health":
                return ""
            case "GET", "/metrics":
                return self._engine.metrics()
            case "GET", "/v1/models":
                model = {"id": name, "object": "model", "owned_by": "simulated"}
                return {"object": "list", "data": [{**model, "max_model_len": self._engine.context_tokens}]}
            case "POST", "/tokenize":
                document = _document(body)
                tokens = templated(_messages(document)) if "messages" in document else words(_text(document))
                ids = token_ids(tokens)
                return {"count": len(ids), "max_model_len": self._engine.context_tokens, "tokens": ids}
        raise Refused(HTTPStatus.NOT_FOUND, f"{method} {path}: there is no such route")

    def _asked(self, document: Mapping[str, Any], *, chat: bool) -> Asked:
        if document.get("model") not in (None, self._engine.served_model):
            raise Refused(HTTPStatus.NOT_FOUND, f"The model `{document['model']}` does not exist.")
        prompt = templated(_messages(document)) if chat else words(_text(document))
        if not prompt:
            raise Refused(HTTPStatus.BAD_REQUEST, "The prompt cannot be empty")
        room = self._engine.context_tokens - len(prompt)
        said = (document.get("max_completion_tokens"), document.get("max_tokens"), room if chat else 16)
        most = next(number for number in said if number is not None)
        if type(most) is not int or most < 1:
            raise Refused(HTTPStatus.BAD_REQUEST, f"max_tokens must be at least 1, got {most}")
        if most > room:
            raise Refused(
                HTTPStatus.BAD_REQUEST,
                f"This model's maximum context length is {self._engine.context_tokens} tokens. However, you requested "
                f"{len(prompt) + most} tokens ({len(prompt)} in the prompt, {most} in the completion).",
            )
        options = document.get("stream_options") or {}
        with_usage = bool(options.get("include_usage")) if isinstance(options, dict) else False
        return Asked(prompt, most, chat, bool(document.get("stream")), with_usage)

    def _say(self, status: HTTPStatus, content: str | dict[str, Any], keep: bool) -> None:
        assert self._transport is not None
        kind = "text/plain; charset=utf-8" if isinstance(content, str) else "application/json"
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        self._transport.write(_head(status, kind, len(body), keep) + body)
        if not keep:
            self._transport.close()


class _Answer:
    """A completion on its way out: one write for all that a step of the engine gave."""

    __slots__ = (
        "_asked",
        "_began",
        "_connection",
        "_created",
        "_event",
        "_given",
        "_keep",
        "_model",
        "_name",
        "_transport",
        "ticket",
    )

    def __init__(
        self, connection: Connection, transport: asyncio.Transport, asked: Asked, model: str, keep: bool
    ) -> None:
        self.ticket = -1
        self._name = secrets.token_hex(8)
        self._connection = connection
        self._transport = transport
        self._asked = asked
        self._model = model
        self._keep = keep
        self._created = int(time.time())
        self._given = 0
        self._began = False
        self._event = b""  # of one token that is not the last: the same each time

    def give(self, tokens: int, *, last: bool, cached_tokens: int) -> None:
        self._given += tokens
        if not self._asked.stream:
            if last:
                self._whole(cached_tokens)
            return
        parts = [] if self._began else [MORE_EVENTS]
        if not self._began and self._asked.chat:
            parts.append(self._chunk({"role": "assistant", "content": ""}, None))
        self._began = True
        if tokens == 1 and not last:
            self._event = self._event or self._chunk(self._said(1), None)
            parts.append(self._event)
        else:
            parts.append(self._chunk(self._said(tokens), "length" if last else None))
        if last:
            if self._asked.with_usage:
                parts.append(_event({**self._envelope(), "choices": [], "usage": self._usage(cached_tokens)}))
            parts.append(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        self._transport.write(b"".join(parts))
        if last:
            self._connection.answered(keep=self._keep)
        elif self._transport.get_write_buffer_size() > MOST_UNREAD_BYTES:
            self._transport.abort()

    def _whole(self, cached_tokens: int) -> None:
        text = WORD * self._given
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self._asked.chat else {"text": text}
        )
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": "length"}
        document = {**self._envelope(), "choices": [choice], "usage": self._usage(cached_tokens)}
        body = json.dumps(document).encode()
        self._transport.write(_head(HTTPStatus.OK, "application/json", len(body), self._keep) + body)
        self._connection.answered(keep=self._keep)

    def _said(self, tokens: int) -> dict[str, str]:
        return {"content": WORD * tokens} if self._asked.chat else {"text": WORD * tokens}

    def _chunk(self, said: Mapping[str, str], finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": said} if self._asked.chat else {"index": 0, **said}
        choices = [{**choice, "logprobs": None, "finish_reason": finish_reason}]
        return _event({**self._envelope(), "choices": choices})

    def _envelope(self) -> dict[str, Any]:
        if self._asked.chat:
            kind = "chat.completion.chunk" if self._asked.stream else "chat.completion"
            return {"id": f"chatcmpl-{self._name}", "object": kind, "created": self._created, "model": self._model}
        return {
            "id": f"cmpl-{self._name}",
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
        }

    def _usage(self, cached_tokens: int) -> dict[str, Any]:
        prompt = len(self._asked.prompt)
        total = prompt + self._given
        counts = {"prompt_tokens": prompt, "completion_tokens": self._given, "total_tokens": total}
        return {**counts, "prompt_tokens_details": {"cached_tokens": cached_tokens}}


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError as err:
        raise Refused(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {err}") from err
    if not isinstance(document, dict):
        raise Refused(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
    return document


def _text(document: Mapping[str, Any]) -> str:
    prompt = document.get("prompt")
    if not isinstance(prompt, str):
        raise Refused(HTTPStatus.BAD_REQUEST, "prompt must be one text")
    return prompt


def _messages(document: Mapping[str, Any]) -> list[dict[str, str]]:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(HTTPStatus.BAD_REQUEST, "messages must be a list of at least one message")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise Refused(HTTPStatus.BAD_REQUEST, "each message must have a role and a content, both text")
    return messages


def _event(document: Mapping[str, Any]) -> bytes:
    data = b"data: %s\n\n" % json.dumps(document, separators=(",", ":")).encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def _head(status: HTTPStatus, kind: str, length: int, keep: bool) -> bytes:
    line = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n"
    return f"{line}{'' if keep else 'connection: close' + chr(13) + chr(10)}\r\n".encode()
