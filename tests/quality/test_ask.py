import dataclasses
import itertools
import re

import pytest

from harness.errors import EngineCrashed, EngineHung
from harness.quality.ask import run_task
from harness.quality.tasks import load_task


def test_items_are_scored_in_their_order_whatever_order_the_answers_come_in(server, make_jsonl):
    task = load_task(make_jsonl(40))
    server.answer = lambda prompt: f" answer {int(prompt[-4:])}" if int(prompt[-4:]) % 3 else " no idea"
    progress = []
    score = run_task(server.endpoint, task, task.items, concurrency=8, on_progress=lambda *args: progress.append(args))
    assert score.correct == tuple(bool(i % 3) for i in range(40))
    assert score.answers[1:3] == (" answer 1", " answer 2")
    assert score.task_digest == task.digest
    assert progress[-1] == (40, 40, "mine")


def test_decoding_is_greedy_and_bounded(server, make_jsonl):
    task = load_task(make_jsonl(1))
    run_task(server.endpoint, task, task.items)
    assert server.bodies == [
        {"model": "law", "prompt": "question 0000", "max_tokens": 4, "temperature": 0, "seed": 0, "stop": ["\n"]}
    ]


def test_prompts_with_a_common_beginning_follow_each_other(server):
    task = load_task("cloze")
    run_task(server.endpoint, task, task.items[:60], concurrency=1)
    openings = [re.sub(r"\n[^\n]*$", "", body["prompt"]) for body in server.bodies]
    changes = sum(a != b for a, b in itertools.pairwise(openings))
    assert changes == len(set(openings)) - 1


def test_the_key_is_read_from_the_environment_and_sent(server, make_jsonl, monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cret")
    task = load_task(make_jsonl(1))
    run_task(dataclasses.replace(server.endpoint, api_key_env="MY_KEY"), task, task.items)
    assert server.headers_seen[0]["Authorization"] == "Bearer s3cret"


def test_a_refusal_is_an_error_and_never_a_wrong_answer(server, make_jsonl):
    task = load_task(make_jsonl(20))
    server.answer = lambda prompt: 500 if prompt.endswith("7") else "x"
    with pytest.raises(EngineCrashed, match="HTTP 500 to quality item q7: out of slots"):
        run_task(server.endpoint, task, task.items)


def test_after_an_error_the_rest_is_not_asked(server, make_jsonl):
    task = load_task(make_jsonl(200))
    server.answer = lambda _: 500
    with pytest.raises(EngineCrashed):
        run_task(server.endpoint, task, task.items, concurrency=2)
    assert len(server.bodies) < 100


def test_silence_is_a_hang(server, make_jsonl):
    task = load_task(make_jsonl(1))
    server.delay_s = 0.5
    with pytest.raises(EngineHung, match="q0"):
        run_task(server.endpoint, task, task.items, timeout_s=0.1)


def test_a_dead_server_is_a_crash(server, make_jsonl):
    task = load_task(make_jsonl(1))
    server.shutdown()
    server.server_close()
    with pytest.raises(EngineCrashed, match="no answer to quality item q0"):
        run_task(server.endpoint, task, task.items)


def test_something_that_is_no_completion_is_refused(server, make_jsonl):
    task = load_task(make_jsonl(1))
    server.answer = lambda _: None
    with pytest.raises(EngineCrashed, match="not a completion"):
        run_task(server.endpoint, task, task.items)
