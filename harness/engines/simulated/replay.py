"""A schedule of requests as virtual time takes it: the same arrivals, lengths and shared beginnings, without texts.

Knows nothing of laws. What is left out: a turn is due at its place in the schedule, not some time after an answer; and
a conversation shares its own past, but not its first words with other conversations.
"""

import numpy as np

from harness.engines.simulated.prompts import HEAD, templated
from harness.engines.simulated.virtual import Requests
from scenarios.traffic import Traffic, Workload
from scenarios.workload import Schedule, ScheduledRequest

NS_PER_S = 1e9


def requests_of(schedule: Schedule, workload: Workload) -> Requests:
    """In order of arrival, each with the tokens of the chat template where there is one.

    Texts are compared where prefixes come from a pool.
    """
    traffic = {part.name: part.traffic for part in workload.mix}
    chat = workload.api == "chat"
    numbers: dict[object, int] = {}
    prompts = [r.prompt_tokens + (_marks(r) if chat else 0) for r in schedule.requests]
    shared = [
        _shared(r, traffic[r.traffic_class], prompt, len(HEAD) if chat else 0)
        for r, prompt in zip(schedule.requests, prompts, strict=True)
    ]
    return Requests(
        arrival_s=np.array([r.t_int_ns / NS_PER_S for r in schedule.requests]),
        prompt_tokens=np.array(prompts, np.int64),
        output_tokens=np.array([r.output_tokens for r in schedule.requests], np.int64),
        prefix=np.array([numbers.setdefault(what, len(numbers)) for what, _ in shared], np.int64),
        prefix_tokens=np.array([n for _, n in shared], np.int64),
    )


def _marks(request: ScheduledRequest) -> int:
    """Tokens of the template around what is said; who says it makes no difference to their number."""
    return len(templated([{"role": "user", "content": ""}] * len(request.messages)))


def _shared(request: ScheduledRequest, traffic: Traffic, prompt_tokens: int, head_tokens: int) -> tuple[object, int]:
    """What the request has in common with others, and how many of its first tokens that are."""
    if request.session is not None:
        return ("session", request.session), prompt_tokens
    if traffic.prefix is not None:
        n = traffic.prefix.tokens
        return ("prefix", hash(tuple(request.prompt.split(" ", n + 1)[1 : n + 1]))), head_tokens + n
    return ("alone", request.index), prompt_tokens  # found again after a preemption
