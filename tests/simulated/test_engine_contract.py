"""The simulated engine keeps the contract on its real process, and fails as it says."""

import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from harness.engines.base import ResolvedModel
from harness.engines.simulated import flags
from harness.engines.simulated.adapter import Simulated, law
from harness.errors import ConfigurationImpossible, EngineOutOfMemory, EngineStartError
from harness.host import limits
from harness.supervise import launch
from scenarios.errors import UserError
from scenarios.load import load
from scenarios.spec import EngineSpec, ModelRef

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
import engine_suite

H100 = EngineSpec(name="simulated", accelerator="h100")
TWO = EngineSpec(name="simulated", accelerator="h100", accelerators=2)


def shape(name="8b", context_tokens=2048) -> ResolvedModel:
    ref = ModelRef(simulated=name, context_tokens=context_tokens)
    return ResolvedModel(ref, ref.label, reference_variant="")


def space(spec=H100, model=None):
    return Simulated().knobs(spec, model or shape(), limits())


def plan(knobs, spec=H100, model=None):
    model = model or shape()
    return Simulated().plan(spec, model, space(spec, model).complete(knobs), limits())


class TestSimulated(engine_suite.EngineSuite):
    engine = Simulated()
    spec = TWO

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        return shape()

    def test_it_says_simulated_wherever_it_speaks(self, running):
        body = {"model": running.endpoint.served_model, "prompt": " a", "max_tokens": 3}
        answer = httpx.post(f"{running.endpoint.base_url}/completions", json=body, timeout=60)
        assert answer.json()["choices"][0]["text"] == " simulated simulated simulated"
        assert running.plan.simulated
        assert "simulated" in self.engine.version()
        assert "simulated" in running.plan.memory_explained
        assert "simulated_info{" in httpx.get(f"{running.endpoint.root_url}/metrics").text
        assert all(line.startswith("[simulated]") for line in running.log_path.read_text().splitlines())

    def test_a_chat_counts_its_template_evenly(self, running):
        def read(*messages):
            said = [{"role": ("user", "assistant")[i % 2], "content": m} for i, m in enumerate(messages)]
            body = {"model": running.endpoint.served_model, "messages": said, "max_tokens": 1}
            answer = httpx.post(f"{running.endpoint.base_url}/chat/completions", json=body, timeout=60).json()
            counted = httpx.post(f"{running.endpoint.root_url}/tokenize", json={"messages": said}).json()
            assert counted["count"] == len(counted["tokens"]) == answer["usage"]["prompt_tokens"]
            return answer["usage"]["prompt_tokens"] - sum(len(m.split()) for m in messages)

        first = read(" a b c")
        assert read(" a" * 50) == first
        turn = read(" a", " b b", " c") - first
        assert read(" a", " b b", " c", " d", " e e") == first + 2 * turn

    def test_prefixes_are_found_in_the_prompts_like_a_tree(self, running):
        """A second question is behind the first, and another conversation behind the same instructions."""

        def cached(text):
            body = {"model": running.endpoint.served_model, "prompt": text, "max_tokens": 1}
            both = [httpx.post(f"{running.endpoint.base_url}/completions", json=body, timeout=60) for _ in range(2)]
            return [b.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for b in both]

        # Two replicas take turns: each sees every prompt once. A prompt's last token is always computed.
        rules, first, other = " rule" * 160, " first" * 160, " other" * 160
        assert cached(rules + first) == [0, 0]
        assert cached(rules + other) == [160, 160]
        assert cached(rules + first + " answer" * 64 + " more") == [320, 320]
        assert cached(rules + other + " tail" * 40) == [320, 320]

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ({"prompt": ""}, 400, "cannot be empty"),
            ({"prompt": " a", "max_tokens": 0}, 400, "at least 1"),
            ({"prompt": " a", "max_tokens": -1}, 400, "at least 1"),
            ({"prompt": " a" * 2000, "max_tokens": 200}, 400, "maximum context length is 2048"),
            ({"prompt": [1, 2]}, 400, "must be one text"),
            ({"prompt": " a", "model": "gpt"}, 404, "does not exist"),
        ],
    )
    def test_what_it_cannot_answer_it_refuses(self, running, body, status, words):
        answer = httpx.post(f"{running.endpoint.base_url}/completions", json=body, timeout=60)
        assert answer.status_code == status
        assert words in answer.json()["error"]["message"]

    def test_a_client_that_goes_leaves_nothing_behind(self, running):
        import time

        body = {"model": running.endpoint.served_model, "prompt": " a" * 100, "max_tokens": 1900, "stream": True}
        url = f"{running.endpoint.base_url}/completions"
        with httpx.Client() as client, client.stream("POST", url, json=body) as answer:
            lines = answer.iter_lines()  # ends the answer when it goes
            next(lines)
            assert self.engine.metrics(running.endpoint)["num_requests_running"] == 1
        deadline = time.monotonic() + 2
        while (left := self.engine.metrics(running.endpoint)["num_requests_running"]) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left == 0
        assert self.engine.metrics(running.endpoint)["kv_cache_usage_perc"] == 0


class TestFailures:
    """On the real process: its exit status, its words, and what the harness makes of them."""

    def fails(self, plan, tmp_path, spec=H100):
        with (
            pytest.raises((EngineStartError, EngineOutOfMemory)) as caught,
            launch(Simulated(), spec, plan, tmp_path / "log"),
        ):
            pass
        assert any("simulated" in line for line in caught.value.log_lines)
        return caught.value

    def test_out_of_memory_at_launch(self, tmp_path):
        """The planner lets it through: it cannot know what fragments."""
        model = shape("8b", 16384)
        knobs = {"gpu_memory_utilization": 0.98, "max_num_batched_tokens": 32768}
        assert not law(H100, model, space(H100, model).complete(knobs)).memory.starts
        error = self.fails(plan(knobs, model=model), tmp_path)
        assert isinstance(error, EngineOutOfMemory)
        assert "CUDA out of memory" in str(error)

    def test_a_flag_that_no_release_has(self, tmp_path):
        good = plan({})
        assert self.fails(replace(good, argv=(*good.argv, "--no-such-flag")), tmp_path).failure == "bad_flag"

    @pytest.mark.parametrize("knobs", [{"kv_cache_dtype": "fp8"}, {"speculation": "draft"}])
    def test_a_flag_of_a_later_release(self, tmp_path, knobs):
        """The plan of release 2, given to release 1."""
        later = plan(knobs)
        argv = tuple(
            "1" if before == "--release" else part for before, part in zip(("", *later.argv), later.argv, strict=False)
        )
        assert self.fails(replace(later, argv=argv), tmp_path).failure == "bad_flag"

    def test_a_model_that_does_not_exist(self, tmp_path):
        good = plan({})
        argv = tuple("9t" if part == "8b" else part for part in good.argv)
        assert self.fails(replace(good, argv=argv), tmp_path).failure == "bad_model"

    def test_a_port_that_is_taken(self, tmp_path):
        import socket

        with socket.create_server(("127.0.0.1", 0)) as taken:
            spec = H100.model_copy(update={"port": taken.getsockname()[1]})
            assert self.fails(plan({}), tmp_path, spec).failure == "port_taken"

    def test_what_the_planner_knows_is_refused_by_the_server_too(self, tmp_path):
        good = plan({})
        argv = (*good.argv, "--no-enable-chunked-prefill", "--max-num-batched-tokens", "512")
        error = self.fails(replace(good, argv=argv), tmp_path)
        assert error.failure == "unsupported"
        assert "without chunked prefill" in str(error)


class TestReleases:
    OLD = EngineSpec(name="simulated", accelerator="h100", version="1")

    def test_the_older_release_knows_less_and_its_space_says_so(self):
        old = space(self.OLD)
        assert "kv_cache_dtype" not in {k.name for k in old.knobs}
        assert old["speculation"].choices == ("none", "ngram")
        narrow = old.narrowed({"kv_cache_dtype": ("auto", "fp8"), "speculation": ("none", "draft")})
        assert narrow["speculation"].choices == ("none",)
        assert narrow.notices == (
            "kv_cache_dtype=auto is left out: simulated release 1 has no --kv-cache-dtype",
            "kv_cache_dtype=fp8 is left out: simulated release 1 has no --kv-cache-dtype",
            "speculation=draft is left out: simulated release 1 has no --speculation draft",
        )

    def test_what_it_does_not_know_is_never_passed(self):
        argv = plan({}, self.OLD).argv
        assert "--kv-cache-dtype" not in argv
        with pytest.raises(ConfigurationImpossible, match="release 1 has no --speculation draft"):
            Simulated().plan(self.OLD, shape(), space(self.OLD).default().with_knobs(speculation="draft"), limits())

    def test_the_older_release_starts_with_its_own_plan(self, tmp_path):
        with launch(Simulated(), self.OLD, plan({}, self.OLD), tmp_path / "log") as running:
            assert "release 1" in running.log_path.read_text()

    @pytest.mark.parametrize("release", flags.RELEASES)
    def test_every_flag_that_is_planned_is_parsed_back(self, release):
        spec = H100.model_copy(update={"version": release})
        for config in list(space(spec).narrowed(load("simulated-h100-chat").search.knobs).enumerate())[::97]:
            try:
                argv = Simulated().plan(spec, shape(), config, limits()).argv
            except ConfigurationImpossible:
                continue
            settings = flags.settings(flags.parser(release).parse_args([a.format(port=1) for a in argv[3:]]))
            assert {name: getattr(settings, name) for name in config.knobs} == dict(config.knobs)


class TestKnobs:
    def test_what_recompiles_is_what_the_law_compiles_anew(self):
        whole = space(TWO)
        key = law(TWO, shape(), whole.default()).compile_key
        for knob in whole.knobs:
            if knob.when is not None:
                continue
            changed = (whole.complete({knob.name: v}) for v in knob.choices if v != knob.default)
            keys = []
            for config in changed:
                try:
                    keys.append(law(TWO, shape(), config).compile_key)
                except ConfigurationImpossible:
                    continue
            assert keys or len(knob.choices) == 1, knob.name
            assert all((other != key) is knob.recompiles for other in keys), knob.name

    def test_eager_is_a_repair(self):
        assert "enforce_eager" not in {k.name for k in space().narrowed({}).free}
        assert "enforce_eager" in {k.name for k in space().narrowed({"enforce_eager": (True, False)}).free}

    def test_drafted_tokens_mean_something_only_with_speculation(self):
        assert "speculative_tokens" not in space().default().knobs
        assert "speculative_tokens" in space().complete({"speculation": "ngram"}).knobs

    def test_an_accelerator_without_fp8_offers_none(self):
        a100 = space(EngineSpec(name="simulated", accelerator="a100"))
        assert a100["weights"].choices == ("bf16", "int4")
        assert a100["kv_cache_dtype"].choices == ("auto",)

    def test_a_model_too_large_for_one_accelerator_is_shared_by_default(self):
        four = EngineSpec(name="simulated", accelerator="h100", accelerators=4)
        assert space(four, shape("70b", 8192))["tensor_parallel"].default == 2
        assert space(four, shape("8b"))["tensor_parallel"].default == 1

    @pytest.mark.parametrize(("accelerator", "name"), [("h1000", "8b"), ("h100", "9b")])
    def test_unknown_names_are_answered_with_those_there_are(self, accelerator, name):
        with pytest.raises(UserError, match=r"h100|8b"):
            space(EngineSpec(name="simulated", accelerator=accelerator), shape(name))

    def test_what_does_not_fit_is_explained_with_its_arithmetic(self):
        with pytest.raises(ConfigurationImpossible, match=r"not enough memory for one sequence: .* GiB of weights"):
            plan({}, EngineSpec(name="simulated", accelerator="rtx4090"), shape("70b", 2048))
