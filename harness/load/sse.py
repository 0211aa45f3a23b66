"""Server-sent events, and what the OpenAI-compatible JSON in them means.

Knows nothing of HTTP, of clocks or of when anything arrived.
"""

import json
from typing import Any, NamedTuple, TypeVar

DONE = b"[DONE]"

_CONTENT_KEYS = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")
_TEXT_KEYS = (b'"text":', b'"content":')
_MOST = 1 << 62
_Kind = TypeVar("_Kind", int, str)


class EventLines:
    """Splits a stream of bytes into the payloads of its ``data:`` lines, however it was cut.

    Every server of this API sends one JSON document per line, so a line is an event; comments, blank
    lines and other fields carry nothing. Works on bytes: a cut inside a character does no harm.
    """

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads whose line ends in ``data``, LF or CRLF."""
        if not self._begun and data.startswith(b"data:") and data.endswith(b"\n\n") and data.count(b"\n") == 2:
            return [data[5:].strip()]  # one whole event, as it nearly always is
        *lines, self._begun = (self._begun + data).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]

    def end(self) -> list[bytes]:
        """The last line of a stream that ended properly may lack its line break."""
        return self.feed(b"\n")


class Event(NamedTuple):
    """What one JSON document says: a chunk of a stream, or a whole answer."""

    has_content: bool
    finish_reason: str | None
    is_error: bool
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None


SAID_MORE = Event(True, None, False, None, None, None)  # more text, and nothing else


class EventReader:
    """`read_event` for the events of one answer, at a twentieth of the cost for all that say only more text.

    Such events differ in their text alone: once one was read, another with the same bytes before and after
    its text needs no parsing to be understood. Text with an escape or an unprintable character, and events
    that differ elsewhere, are parsed.
    """

    __slots__ = ("_after", "_around", "_before")

    def __init__(self) -> None:
        self._before = self._after = b""
        self._around = 0

    def read(self, payload: bytes) -> Event | None:
        """None: not a JSON object of this API."""
        before, after = self._before, self._after
        if before and payload.startswith(before) and payload.endswith(after) and len(payload) > self._around:
            try:
                text = payload[len(before) : -len(after)].decode()
            except UnicodeDecodeError:
                text = ""
            if text.isprintable() and '"' not in text and "\\" not in text and text:
                return SAID_MORE
        event = read_event(payload)
        if event == SAID_MORE:
            self._learn(payload)
        return event

    def _learn(self, payload: bytes) -> None:
        """Where the text is: after the only key that can hold it, up to the next quote, as long as it has no escape."""
        for key in _TEXT_KEYS:
            _, found, tail = payload.partition(key)
            text = tail.lstrip(b" ")
            if not found or key in tail or not text.startswith(b'"'):
                continue
            begin = len(payload) - len(text) + 1
            end = payload.index(b'"', begin)
            if end > begin and b"\\" not in payload[begin:end]:
                self._before, self._after = payload[:begin], payload[end:]
                self._around = begin + len(payload) - end
            return


def read_event(payload: bytes) -> Event | None:
    """None: not a JSON object of this API."""
    try:
        document: Any = json.loads(payload)
        if document.get("error"):
            return Event(False, None, True, None, None, None)
        has_content = False
        finish_reason = None
        for choice in document.get("choices") or ():
            said = choice.get("delta") or choice.get("message") or choice
            has_content |= bool(choice.get("text")) or any(said.get(key) for key in _CONTENT_KEYS)
            finish_reason = _a(str, choice.get("finish_reason")) or finish_reason
        usage = document.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        return Event(
            has_content,
            finish_reason,
            False,
            _a(int, usage.get("prompt_tokens")),
            _a(int, details.get("cached_tokens")),
            _a(int, usage.get("completion_tokens")),
        )
    except (ValueError, AttributeError, TypeError):
        return None


def _a(kind: type[_Kind], value: object) -> _Kind | None:
    """Raises TypeError for what is neither one of that kind, and of a size that can be kept, nor nothing."""
    if value is None:
        return None
    if type(value) is not kind or (isinstance(value, int) and not 0 <= value < _MOST):
        raise TypeError(value)
    return value
