"""Starting, failing, ending: with real processes that are told how to behave."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from harness.engines.base import LaunchPlan
from harness.errors import EngineCrashed, EngineOutOfMemory, EngineStartError
from harness.supervise import launch
from scenarios.space import ServingConfig
from scenarios.spec import EngineSpec

SCRIPT = Path(__file__).with_name("scripted_engine.py")


class Scripted:
    name = "scripted"

    def classify(self, log, exit_code):
        return None


def plan(behaviour: str) -> LaunchPlan:
    return LaunchPlan(
        config=ServingConfig("scripted", {}),
        argv=(sys.executable, "-S", str(SCRIPT), behaviour, "{port}"),
        env={},
        base_url="http://127.0.0.1:{port}/v1",
        served_model="m",
        health_path="/health",
        expected_memory_bytes=None,
        memory_explained="",
    )


def start(behaviour, folder, **spec):
    return launch(Scripted(), EngineSpec(name="llamacpp", **spec), plan(behaviour), folder / "engine.log")


def processes_of(behaviour: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(SCRIPT) in process.cmdline() and behaviour in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_ready_means_that_it_completed_something_and_leaving_ends_it(tmp_path):
    with start("ok", tmp_path) as running:
        assert running.endpoint.base_url.startswith("http://127.0.0.1:")
        assert running.cold_start_s > 0
        running.check()
        assert [p.pid for p in running.tree()]
    assert processes_of("ok") == []


@pytest.mark.parametrize(
    ("behaviour", "error", "failure", "words"),
    [
        ("out-of-memory", EngineOutOfMemory, "out_of_memory", "failed to allocate buffer"),
        ("bad-flag", EngineStartError, "bad_flag", "unrecognized arguments: --no-such-flag"),
        ("bad-model", EngineStartError, "bad_model", "failed to load model"),
        ("killed", EngineOutOfMemory, "out_of_memory", "killed by signal 9"),
        ("cannot-complete", EngineStartError, "start_failed", "cannot complete a prompt"),
        ("lacks-a-kernel", EngineStartError, "unsupported", "int4 is not supported on this processor"),
        ("killed-by-a-prompt", EngineOutOfMemory, "out_of_memory", "killed by signal 9"),
    ],
)
def test_a_failed_start_has_its_class_and_the_logs_own_words(tmp_path, behaviour, error, failure, words):
    with pytest.raises(error) as caught, start(behaviour, tmp_path):
        pass
    assert caught.value.failure == failure
    assert words in str(caught.value)
    assert processes_of(behaviour) == []


@pytest.mark.parametrize("behaviour", ["never-ready", "never-completes"])
def test_an_engine_that_is_never_ready_is_given_up_and_ended(tmp_path, behaviour):
    with pytest.raises(EngineStartError) as caught, start(behaviour, tmp_path, start_timeout_s=0.5):
        pass
    assert caught.value.failure == "start_timeout"
    assert processes_of(behaviour) == []


def test_a_taken_port_is_named_as_such(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineStartError) as caught, start("ok", tmp_path, port=port, start_timeout_s=5):
            pass
    assert caught.value.failure == "port_taken"
    assert "Address already in use" in str(caught.value)


def test_an_engine_that_ends_by_itself_is_a_crash_with_its_last_words(tmp_path):
    with start("dies-after-start", tmp_path) as running:
        running.process.wait(5)
        with pytest.raises(EngineCrashed, match="illegal instruction"):
            running.check()


def test_children_that_ignore_sigterm_and_left_the_group_end_too(tmp_path):
    with start("grandchildren", tmp_path) as running:
        tree = running.tree()
        assert len(tree) == 3
    assert [p for p in tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_a_stopped_engine_ends_as_well(tmp_path):
    with start("ok", tmp_path) as running:
        tree = running.tree()
        tree[0].suspend()
    assert processes_of("ok") == []


def test_nothing_survives_a_sigkill_of_the_parent(tmp_path):
    """The parent holds an engine with grandchildren and is killed without a chance to clean up."""
    parent = textwrap.dedent(
        f"""
        import sys, time
        sys.path.insert(0, {str(SCRIPT.parent)!r})
        from pathlib import Path
        import test_supervise as t
        with t.start("grandchildren", Path({str(tmp_path)!r})) as running:
            print(*(p.pid for p in running.tree()), flush=True)
            time.sleep(600)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    with process.stdout:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid in pids):
        time.sleep(0.05)
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
