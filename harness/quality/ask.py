"""Asks a running endpoint the items of a task, greedily, a few at a time. Knows nothing of verdicts.

A request that fails is an error of the engine and never a wrong answer.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

import httpx

from harness.engines.base import Endpoint
from harness.errors import EngineCrashed, EngineHung
from harness.measurement import TaskScore
from harness.progress import Progress, silent
from harness.quality.scoring import is_correct
from harness.quality.tasks import Item, Task

CONCURRENCY = 4
TIMEOUT_S = 60.0


def run_task(
    endpoint: Endpoint,
    task: Task,
    items: Sequence[Item],
    *,
    concurrency: int = CONCURRENCY,
    timeout_s: float = TIMEOUT_S,
    on_progress: Progress = silent,
) -> TaskScore:
    """Scores ``items`` of ``task``, in their order. Raises EngineCrashed or EngineHung when one is not answered."""
    answers = complete(
        endpoint, items, concurrency=concurrency, timeout_s=timeout_s, on_progress=on_progress, what=task.name
    )
    return TaskScore(
        task=task.name,
        task_digest=task.digest,
        item_ids=tuple(item.id for item in items),
        correct=tuple(is_correct(item, answer) for item, answer in zip(items, answers, strict=True)),
        answers=answers,
    )


def complete(
    endpoint: Endpoint,
    items: Sequence[Item],
    *,
    concurrency: int = CONCURRENCY,
    timeout_s: float = TIMEOUT_S,
    on_progress: Progress = silent,
    what: str,
) -> tuple[str, ...]:
    """The greedy continuation of every prompt.

    Asked in the order of the prompts' text, so that prompts with a common beginning follow each other and a
    prefix cache serves them. No connection is used twice: servers may drop idle ones, and a repeat would hide it.
    """
    answers: dict[int, str] = {}
    order = sorted(range(len(items)), key=lambda index: items[index].prompt)
    limits = httpx.Limits(max_keepalive_connections=0)
    with (
        httpx.Client(timeout=timeout_s, limits=limits, headers=_headers(endpoint), trust_env=False) as client,
        ThreadPoolExecutor(concurrency) as pool,
    ):
        asked: dict[Future[str], int] = {pool.submit(_ask, client, endpoint, items[i]): i for i in order}
        try:
            for done, future in enumerate(as_completed(asked), start=1):
                answers[asked[future]] = future.result()
                on_progress(done, len(items), what)
        finally:
            for future in asked:
                future.cancel()
    return tuple(answers[index] for index in range(len(items)))


def _headers(endpoint: Endpoint) -> dict[str, str]:
    key = os.environ.get(endpoint.api_key_env) if endpoint.api_key_env else None
    return {"Authorization": f"Bearer {key}"} if key else {}


def _ask(client: httpx.Client, endpoint: Endpoint, item: Item) -> str:
    body = {
        "model": endpoint.served_model,
        "prompt": item.prompt,
        "max_tokens": item.max_tokens,
        "temperature": 0,
        "seed": 0,
    }
    if item.stop:
        body["stop"] = list(item.stop)
    url = f"{endpoint.base_url}/completions"
    try:
        response = client.post(url, json=body)
    except httpx.TimeoutException as err:
        raise EngineHung(f"{url}: no answer to quality item {item.id} within {client.timeout.read:.0f} s") from err
    except httpx.TransportError as err:
        raise EngineCrashed(f"{url}: no answer to quality item {item.id}: {err or type(err).__name__}") from err
    if response.status_code != httpx.codes.OK:
        raise EngineCrashed(f"{url}: HTTP {response.status_code} to quality item {item.id}: {response.text[:200]}")
    try:
        text = response.json()["choices"][0]["text"]
    except (ValueError, KeyError, IndexError, TypeError) as err:
        raise EngineCrashed(f"{url}: not a completion: {response.text[:200]}") from err
    if not isinstance(text, str):
        raise EngineCrashed(f"{url}: not a completion: {response.text[:200]}")
    return text
