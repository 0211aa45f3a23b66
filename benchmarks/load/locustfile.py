"""Locust as its documentation shows it: FastHttpUser, paced by constant_throughput, streaming by iter_lines.

Run by Locust in an environment of its own. Leaves one line of JSON per request in $ANSWERS.
"""

import json
import os
import random
import time
from typing import Any

import gevent
from locust import FastHttpUser, constant_throughput, events, task

PER_USER_RPS = 2.0
_BODY = {
    "model": "stub",
    "max_tokens": int(os.environ["TOKENS"]),
    "stream": True,
    "stream_options": {"include_usage": True},
}
_rows: list[tuple[str, int, int, float]] = []
_words = random.Random(int(os.environ["SEED"]))


class PlainUser(FastHttpUser):  # type: ignore[misc]
    wait_time = constant_throughput(PER_USER_RPS)

    def on_start(self) -> None:
        gevent.sleep(_words.uniform(0, 1 / PER_USER_RPS))  # else all users ask in the same instant

    @task  # type: ignore[untyped-decorator]
    def complete(self) -> None:
        prompt = " ".join(f"w{_words.randrange(1000)}" for _ in range(8))
        body = {**_BODY, "messages": [{"role": "user", "content": prompt}]}
        started = time.perf_counter_ns()
        first = last = tokens = 0
        name = ""
        for line in self.client.iter_lines("/v1/chat/completions", method="POST", json=body):
            stamp = time.perf_counter_ns()
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                first = first or stamp
                last = stamp
                tokens += 1
                name = event["id"]
        if tokens > 1:
            _rows.append((name, started, first - started, (last - first) / (tokens - 1)))


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def write(environment: Any, **_: object) -> None:
    failures = environment.stats.total.num_failures
    with open(os.environ["ANSWERS"], "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump({"rows": _rows, "failures": failures}, file)
