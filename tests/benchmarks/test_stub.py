"""The stub keeps the law it promises: otherwise the benchmark measures the stub."""

import http.client
import json
import math
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "load"))

from stub import Stub

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(shutil.which("cc") is None, reason="the stub is built with a C compiler"),
]

CHAT = {"model": "stub", "messages": [{"role": "user", "content": "a  b\nc"}]}


def post(stub, body, path="/v1/completions", connection=None, headers=()):
    """The answer's status, whole body, and the monotonic time of its first token."""
    link = connection or http.client.HTTPConnection("127.0.0.1", stub.port, timeout=20)
    link.request("POST", path, json.dumps(body), dict(headers))
    answer = link.getresponse()
    first = b"" if body.get("stream") is not True else answer.readline()
    first_ns = time.monotonic_ns()
    text = (first + answer.read()).decode()
    if connection is None:
        link.close()
    return answer, text, first_ns


def events(text):
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_a_stream_of_chat_is_one_token_an_event_and_then_the_usage_that_was_asked_for():
    body = {**CHAT, "stream": True, "max_tokens": 5, "stream_options": {"include_usage": True}}
    with Stub(ttft_ms=1, gap_ms=1) as stub:
        answer, text, _ = post(stub, body, "/v1/chat/completions")
    assert answer.headers["transfer-encoding"] == "chunked"
    *tokens, usage = events(text)
    assert [chunk["choices"][0]["finish_reason"] for chunk in tokens] == [None] * 4 + ["length"]
    assert all(chunk["choices"][0]["delta"]["content"].startswith(" w") for chunk in tokens)
    assert {chunk["object"] for chunk in tokens} == {"chat.completion.chunk"}
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def test_a_stream_of_completions_has_no_usage_unless_asked():
    with Stub(ttft_ms=1, gap_ms=1) as stub:
        _, text, _ = post(stub, {"prompt": "a", "stream": True})
    chunks = events(text)
    assert len(chunks) == 16
    assert all(chunk["choices"][0]["text"] and "usage" not in chunk for chunk in chunks)


def test_a_whole_document_comes_after_its_last_token():
    with Stub(ttft_ms=20, gap_ms=5) as stub:
        began_ns = time.monotonic_ns()
        _, text, _ = post(stub, {**CHAT, "max_tokens": 7}, "/v1/chat/completions")
        took_ms = (time.monotonic_ns() - began_ns) / 1e6
    document = json.loads(text)
    assert len(document["choices"][0]["message"]["content"].split()) == 7
    assert document["usage"]["completion_tokens"] == 7
    assert 50 <= took_ms < 500


def test_one_connection_carries_request_after_request():
    with Stub(ttft_ms=1, gap_ms=1) as stub:
        link = http.client.HTTPConnection("127.0.0.1", stub.port, timeout=20)
        for k in range(3):
            post(stub, {"prompt": f"{k}", "stream": True, "max_tokens": 2}, connection=link)
        link.close()
        record = stub.record()
    assert record["turn"].tolist() == [0, 1, 2]
    assert len(set(record["connection"].tolist())) == 1
    assert len(set(record.body_fnv1a)) == 3


def test_tokens_are_due_at_fixed_distances_from_the_kernels_stamp_and_never_written_before():
    with Stub(ttft_ms=20, gap_ms=5) as stub:
        sent_ns = time.monotonic_ns()
        _, _, first_ns = post(stub, {"prompt": "a", "stream": True, "max_tokens": 4}, headers=[("X-Request-Id", "me")])
        record = stub.record()
    kernel_ns, written_ns = record["kernel_ns"][0], record["first_ns"][0]
    assert record.client_id == ["me"]
    assert sent_ns < kernel_ns < record["received_ns"][0]
    assert record["due_ns"][0] == kernel_ns + 20_000_000
    assert record["due_ns"][0] <= written_ns < first_ns
    assert record["last_ns"][0] >= kernel_ns + 20_000_000 + 3 * 5_000_000
    assert record["complete"][0] == 1


def test_a_frozen_engine_stops_its_timers_while_requests_arrive_in_the_kernel():
    with Stub(ttft_ms=20, gap_ms=5) as stub, ThreadPoolExecutor(2) as pool:
        stub.freeze(400, at_request=1)
        before = pool.submit(post, stub, {"prompt": "a", "stream": True, "max_tokens": 2})
        time.sleep(0.15)
        during = pool.submit(post, stub, {"prompt": "b", "stream": True, "max_tokens": 2})
        before.result()
        during.result()
        record, [[frozen_ns, thawed_ns]] = stub.record(), stub.status()["freezes"]
    assert thawed_ns - frozen_ns >= 400_000_000
    assert frozen_ns < record["kernel_ns"][1] < thawed_ns < record["received_ns"][1]
    left_ns = 20_000_000 - (frozen_ns - record["kernel_ns"][0])
    assert record["first_ns"][0] >= thawed_ns + left_ns - 1_000
    assert record["first_ns"][1] >= thawed_ns + 20_000_000 - 1_000


def test_a_client_that_leaves_is_recorded_as_incomplete_and_the_next_one_is_served():
    with Stub(ttft_ms=50, gap_ms=5) as stub:
        link = http.client.HTTPConnection("127.0.0.1", stub.port, timeout=20)
        link.request("POST", "/v1/completions", json.dumps({"prompt": "a", "stream": True}))
        link.close()
        time.sleep(0.1)
        post(stub, {"prompt": "b", "stream": True, "max_tokens": 2})
        record, status = stub.record(), stub.status()
    assert record["complete"].tolist() == [0, 1]
    assert status["in_flight"] == 0


def test_one_server_serves_one_after_another():
    with Stub(ttft_ms=30, gap_ms=10, servers=1) as stub, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: post(stub, {"prompt": f"{k}", "stream": True, "max_tokens": 2}), range(4)))
        record = stub.record()
    assert np.diff(np.sort(record["due_ns"])).tolist() == [40_000_000] * 3


def test_noise_is_lognormal_with_mean_one_and_follows_its_seed():
    def factors(seed, count):
        with Stub(ttft_ms=0.2, gap_ms=0, noise=0.5, seed=seed) as stub:
            link = http.client.HTTPConnection("127.0.0.1", stub.port, timeout=20)
            for _ in range(count):
                post(stub, {"prompt": "a", "stream": True, "max_tokens": 1}, connection=link)
            link.close()
            record = stub.record()
        return (record["due_ns"] - record["kernel_ns"]) / 0.2e6

    drawn = factors(7, 1000)
    assert np.allclose(drawn[:50], factors(7, 50), rtol=1e-4)
    assert not np.allclose(drawn[:50], factors(8, 50), rtol=1e-4)
    logs = np.log(drawn)
    z = 4 / math.sqrt(1000)  # four standard errors; the seed is fixed, so this never flickers
    assert abs(logs.mean() + 0.125) < 0.5 * z
    assert abs(logs.std() / 0.5 - 1) < z


def test_it_ends_by_itself():
    with Stub(max_seconds=0.3) as stub:
        ended = threading.Event()
        threading.Thread(target=lambda: (stub._process.wait(), ended.set()), daemon=True).start()
        assert ended.wait(5)
