"""The gate on the real model: INT8 is let through, the naive INT4 is caught."""

import json
import socket
import subprocess
import sys
import time

import httpx
import pytest

from harness.engines.base import Endpoint
from harness.models import store
from harness.quality.runner import judge_quality, reference_answers
from harness.quality.tasks import load_task
from scenarios.spec import ModelRef, QualityGate, QualityTask

START_S = 20
ITEMS = 160


@pytest.fixture(scope="module")
def model():
    return store.resolve(ModelRef(name="smollm2-135m-instruct"), build=True)


@pytest.fixture
def serve(model):
    """Starts a server on a variant; it is gone after the test."""
    running = []

    def start(variant):
        stop()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        flags = {"model": model.variants[variant], "alias": "m", "host": "127.0.0.1", "port": port}
        flags |= {"parallel": 4, "ctx-size": 2048, "cache-type-k": "f16", "cache-type-v": "f16", "batch-size": 2048}
        flags |= {"ubatch-size": 512, "threads": 2, "threads-batch": 2, "threads-http": 16, "flash-attn": "auto"}
        argv = [sys.executable, "-m", "harness.engines.llamacpp_server", "--kv-unified", "--cache-prompt"]
        argv += ["--spec-type", "none", *(part for key, value in flags.items() for part in (f"--{key}", str(value)))]
        running.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        root = f"http://127.0.0.1:{port}"
        give_up = time.monotonic() + START_S
        while not _healthy(root):
            assert running[-1].poll() is None, "the server ended"
            assert time.monotonic() < give_up, "the server is not ready"
            time.sleep(0.1)
        return Endpoint(root_url=root, base_url=f"{root}/v1", served_model="m")

    def stop():
        while running:
            server = running.pop()
            server.terminate()
            server.wait()

    yield start
    stop()


def _healthy(root):
    try:
        return httpx.get(f"{root}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_int8_passes_and_naive_int4_fails(serve, tmp_path):
    path = tmp_path / "some.jsonl"
    items = load_task("cloze").items[:ITEMS]
    path.write_text("".join(json.dumps(item.model_dump(mode="json")) + "\n" for item in items))
    gate = QualityGate(tasks=(QualityTask(task=str(path), margin=0.07),), screen_items=60)
    reference = reference_answers(serve("f16"), gate)
    assert 0.4 < reference.scores[0].accuracy < 0.85

    int8 = judge_quality(serve("q8_0"), gate, reference, level="full", answers_path=tmp_path / "int8.json")
    assert (int8.level, int8.passed) == ("full", True), int8
    int4 = judge_quality(serve("q4_0"), gate, reference, level="full", answers_path=tmp_path / "int4.json")
    assert not int4.passed
    assert int4.level in ("screen", "full"), "its output is worse, but it is not broken"
    assert int4.tasks[0].difference < -0.07
