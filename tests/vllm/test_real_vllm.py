"""The real vLLM server without a GPU: readiness, metrics, what it runs with, and the ways in which it fails."""

import os
import shutil
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from harness.engines import installed
from harness.engines.base import HostLimits
from harness.engines.vllm import knobs, words
from harness.engines.vllm.adapter import VllmCpu
from harness.engines.vllm.package import VLLM
from harness.errors import EngineCrashed, EngineOutOfMemory, EngineStartError, TrialInfeasible
from harness.host import limits, processor_flags
from harness.supervise import launch
from scenarios.spec import EngineSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
import engine_suite

SPEC = EngineSpec(name="vllm-cpu", start_timeout_s=600)


def planned(engine, model, **chosen):
    config = engine.knobs(SPEC, model, limits()).complete(chosen)
    return engine.plan(SPEC, model, config, limits())


def with_argv(plan, *words_added, **replaced):
    argv = list(plan.argv)
    for flag, value in replaced.items():
        argv[argv.index(f"--{flag.replace('_', '-')}") + 1] = value
    return replace(plan, argv=(*argv, *words_added))


class TestContract(engine_suite.EngineSuite):
    engine = VllmCpu()
    spec = SPEC

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, smollm):
        return smollm

    def test_its_log_says_what_was_asked(self, running):
        log = running.log_path.read_text()
        said = words.resolved(log)
        assert {"dtype", "enable_prefix_caching", "enable_chunked_prefill", "max_seq_len"} <= set(said)
        assert self.engine.disagreements(running.plan, log) == ()

    def test_metrics_count_what_is_served(self, running):
        before = self.engine.metrics(running.endpoint)
        assert {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"} <= set(before)
        body = {"model": running.endpoint.served_model, "prompt": "One, two,", "max_tokens": 5, "ignore_eos": True}
        httpx.post(f"{running.endpoint.base_url}/completions", json=body, timeout=60).raise_for_status()
        after = self.engine.metrics(running.endpoint)
        assert after["generation_tokens_total"] - before["generation_tokens_total"] == 5
        assert after["prompt_tokens_total"] > before["prompt_tokens_total"]


def test_the_installed_parser_knows_every_flag_that_is_tuned(python):
    flags = installed.flags(VLLM, python)
    tuned = [*knobs.VALUES.values(), *(f"--{name}" for name in knobs.SWITCHES.values()), "--speculative-config"]
    tuned.append("--load-format")
    assert [flag for flag in tuned if flag not in flags] == []


class TestFailures:
    """Each is recognised by vLLM's own words."""

    def failure(self, engine, plan, tmp_path, spec=SPEC):
        with pytest.raises(TrialInfeasible) as caught, launch(engine, spec, plan, tmp_path / "log"):
            pass
        assert caught.value.log_lines
        return caught.value

    def test_an_unknown_flag(self, engine, smollm, tmp_path):
        error = self.failure(engine, with_argv(planned(engine, smollm), "--no-such-flag"), tmp_path)
        assert (type(error), error.failure) == (EngineStartError, "bad_flag")

    def test_a_folder_without_a_model(self, engine, smollm, tmp_path):
        plan = planned(engine, smollm)
        argv = tuple(str(tmp_path) if word == str(smollm.variants["published"]) else word for word in plan.argv)
        assert self.failure(engine, replace(plan, argv=argv), tmp_path).failure == "bad_model"

    def test_truncated_weights(self, engine, smollm, tmp_path):
        folder = tmp_path / "model"
        shutil.copytree(smollm.variants["published"], folder)
        weights = folder / "model.safetensors"
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size // 2)
        plan = planned(engine, smollm, enforce_eager=True)
        argv = tuple(str(folder) if word == str(smollm.variants["published"]) else word for word in plan.argv)
        assert self.failure(engine, replace(plan, argv=argv), tmp_path).failure == "bad_model"

    def test_a_quantisation_that_nobody_knows(self, engine, smollm, tmp_path):
        error = self.failure(engine, with_argv(planned(engine, smollm), "--quantization", "int3"), tmp_path)
        assert error.failure in ("bad_flag", "unsupported")

    @pytest.mark.skipif("avx512f" in processor_flags(), reason="this CPU has AVX-512")
    def test_an_fp8_cache_needs_avx512(self, engine, smollm, tmp_path):
        plan = planned(engine, smollm, kv_cache_dtype="fp8", enforce_eager=True)
        assert self.failure(engine, plan, tmp_path).failure == "unsupported"

    def test_a_kv_space_beyond_the_machine(self, engine, smollm, tmp_path):
        plan = with_argv(planned(engine, smollm, enforce_eager=True), kv_cache_memory_bytes=str(4000 << 30))
        error = self.failure(engine, plan, tmp_path)
        assert (type(error), error.failure) == (EngineOutOfMemory, "out_of_memory")

    def test_a_kv_space_too_small_for_one_sequence(self, engine, smollm, tmp_path):
        plan = with_argv(planned(engine, smollm, enforce_eager=True), kv_cache_memory_bytes=str(1 << 20))
        assert self.failure(engine, plan, tmp_path).failure == "out_of_memory"

    def test_a_port_that_is_taken(self, engine, smollm, tmp_path):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            spec = SPEC.model_copy(update={"port": taken.getsockname()[1], "start_timeout_s": 120.0})
            error = self.failure(engine, planned(engine, smollm, enforce_eager=True), tmp_path, spec)
        assert error.failure == "port_taken"

    def test_killed_while_it_serves_and_nothing_is_left(self, engine, smollm, tmp_path):
        with launch(engine, SPEC, planned(engine, smollm, enforce_eager=True), tmp_path / "log") as running:
            tree = running.tree()
            assert tree
            for process in tree:
                process.send_signal(signal.SIGKILL)
            running.process.wait(30)
            with pytest.raises((EngineCrashed, EngineOutOfMemory)):
                running.check()
        assert not any(process.is_running() and process.status() != "zombie" for process in tree)

    def test_stopped_still_it_does_not_answer_and_leaves_with_us(self, engine, smollm, tmp_path):
        with launch(engine, SPEC, planned(engine, smollm, enforce_eager=True), tmp_path / "log") as running:
            tree = running.tree()
            for process in tree:
                os.kill(process.pid, signal.SIGSTOP)
            body = {"model": running.endpoint.served_model, "prompt": "One", "max_tokens": 1}
            with pytest.raises(httpx.TimeoutException):
                httpx.post(f"{running.endpoint.base_url}/completions", json=body, timeout=2)
        assert not any(process.is_running() and process.status() != "zombie" for process in tree)


def test_a_machine_too_small_for_the_kv_space_is_told_by_the_plan(engine, smollm):
    from harness.errors import ConfigurationImpossible

    config = engine.knobs(SPEC, smollm, HostLimits(2, 64 << 30)).complete({"kv_cache_gib": 32})
    with pytest.raises(ConfigurationImpossible, match="is more than 90%"):
        engine.plan(SPEC, smollm, config, HostLimits(2, 16 << 30))
