"""A schedule as the exact bytes to be sent, in the words of the OpenAI API: the same request, the same bytes.

Knows nothing of when or how they are sent.
"""

import json
from collections.abc import Mapping, Sequence

from harness.load.records import PlannedRequest
from scenarios.traffic import Workload
from scenarios.workload import Schedule

ROLES = ("user", "assistant")


def planned(
    workload: Workload, schedule: Schedule, model: str, extras: Mapping[str, object]
) -> tuple[PlannedRequest, ...]:
    """Every request of the schedule with its body, in the schedule's order."""
    return tuple(
        PlannedRequest(
            index=r.index,
            t_int_ns=r.t_int_ns,
            body=encode(
                workload, r.messages, r.output_tokens, model=model, extras=extras, traffic_class=r.traffic_class
            ),
            prompt_tokens_asked=r.prompt_tokens,
            output_tokens_asked=r.output_tokens,
            traffic_class=r.traffic_class,
            session=r.session,
            turn=r.turn,
            after=r.after,
            think_ns=r.think_ns,
        )
        for r in schedule.requests
    )


def encode(
    workload: Workload,
    messages: Sequence[str],
    output_tokens: int,
    *,
    model: str,
    extras: Mapping[str, object],
    traffic_class: str = "",
) -> bytes:
    """JSON, UTF-8. ``messages``: question, answer, …, question; without a chat they are one text.

    ``extras``: keys beside, or in place of, the usual ones; None leaves a key out.
    """
    if workload.api == "chat":
        said = [{"role": ROLES[i % 2], "content": message} for i, message in enumerate(messages)]
        content: dict[str, object] = {"messages": said}
    else:
        content = {"prompt": "".join(messages)}
    stream = {"stream": True, "stream_options": {"include_usage": True}} if workload.stream else {"stream": False}
    document = {
        "model": model,
        **content,
        "max_tokens": output_tokens,
        "temperature": workload.temperature_of(traffic_class),
        **stream,
        **extras,
    }
    return json.dumps({k: v for k, v in document.items() if v is not None}, ensure_ascii=False).encode()


def path(workload: Workload) -> str:
    """Below the base URL."""
    return "/chat/completions" if workload.api == "chat" else "/completions"
