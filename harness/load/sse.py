"""Server-sent events, and what the OpenAI-compatible JSON in them means.

Knows nothing of HTTP, of clocks or of when anything arrived.
"""

import json
from typing import Any, NamedTuple

DONE = b"[DONE]"

_CONTENT_KEYS = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")


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
            finish_reason = choice.get("finish_reason") or finish_reason
        usage = document.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        return Event(
            has_content,
            finish_reason,
            False,
            usage.get("prompt_tokens"),
            details.get("cached_tokens"),
            usage.get("completion_tokens"),
        )
    except (ValueError, AttributeError, TypeError):
        return None
