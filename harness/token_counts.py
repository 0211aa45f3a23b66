"""How many tokens a server makes of a prompt: by its tokenizer, and by what it says after reading one.

Knows nothing of schedules: they are told how many tokens the server's template adds (`Words`).
"""

import os
from collections.abc import Sequence
from dataclasses import replace

import httpx
import numpy as np

from harness.engines.base import Endpoint, Engine
from harness.errors import EngineCrashed
from harness.load.payload import encode, path
from scenarios.traffic import Workload
from scenarios.words import Words, candidates

TRIAL_TURNS = ((5,), (23,), (7, 5, 9), (3, 11, 2, 6, 17))  # words of question, answer, …, question


def words_for(engine: Engine, endpoint: Endpoint, workload: Workload) -> Words:
    """What prompts are made of: words that the server sees as one token each, and what its template adds."""
    if engine.tokenize(endpoint, " the") is None:
        return Words.build(candidates(), None)
    words = Words.build(candidates(), lambda text: len(engine.tokenize(endpoint, text) or ()))
    return with_template(words, endpoint, workload) if words.exact else words


def with_template(words: Words, endpoint: Endpoint, workload: Workload) -> Words:
    """``words`` with the tokens that are not theirs: of a first prompt, and of each further turn.

    Inexact where the server does not say how many tokens it has read, or adds more to some prompts than to others.
    """
    rng = np.random.default_rng(0)
    extra: list[int] = []
    for sizes in TRIAL_TURNS:
        read = prompt_tokens(endpoint, workload, [words.draw(rng, size) for size in sizes])
        if read is None:
            return replace(words, exact=False)
        extra.append(read - sum(sizes))
    short, long, two_turns, three_turns = extra
    first, turn = short, two_turns - short
    regular = short == long and three_turns == first + 2 * turn
    return replace(words, exact=regular, first_extra_tokens=max(0, first), turn_extra_tokens=max(0, turn))


def prompt_tokens(endpoint: Endpoint, workload: Workload, messages: Sequence[str]) -> int | None:
    """Tokens that the server says it has read of these messages; None where it does not say.

    Raises EngineCrashed when it does not answer.
    """
    whole = workload.model_copy(update={"stream": False})
    body = encode(whole, messages, 1, model=endpoint.served_model, extras=endpoint.request_extras)
    key = os.environ.get(endpoint.api_key_env or "")
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    url = f"{endpoint.base_url}{path(workload)}"
    try:
        answer = httpx.post(url, content=body, headers=headers, timeout=workload.timeout_s, trust_env=False)
        answer.raise_for_status()
        usage = answer.json().get("usage") or {}
    except (httpx.HTTPError, ValueError) as err:
        raise EngineCrashed(f"the engine does not answer a prompt of {len(messages)} messages: {err}") from err
    read = usage.get("prompt_tokens")
    return read if isinstance(read, int) else None
