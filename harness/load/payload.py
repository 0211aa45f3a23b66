"""The exact bytes of a request's body, in the words of the OpenAI API: the same request, the same bytes.

Knows nothing of when or how they are sent.
"""

import json
from collections.abc import Mapping, Sequence

from scenarios.traffic import Workload

ROLES = ("user", "assistant")


def encode(
    workload: Workload,
    messages: Sequence[str],
    output_tokens: int,
    *,
    model: str,
    extras: Mapping[str, object],
    traffic_class: str = "",
) -> bytes:
    """JSON, UTF-8. ``messages``: question, answer, …, question; without a chat they are one text."""
    if workload.api == "chat":
        said = [{"role": ROLES[i % 2], "content": message} for i, message in enumerate(messages)]
        content: dict[str, object] = {"messages": said}
    else:
        content = {"prompt": "".join(messages)}
    stream = {"stream": True, "stream_options": {"include_usage": True}} if workload.stream else {"stream": False}
    return json.dumps(
        {
            "model": model,
            **content,
            "max_tokens": output_tokens,
            "temperature": workload.temperature_of(traffic_class),
            **stream,
            **extras,
        },
        ensure_ascii=False,
    ).encode()


def path(workload: Workload) -> str:
    """Below the base URL."""
    return "/chat/completions" if workload.api == "chat" else "/completions"
