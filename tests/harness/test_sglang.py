"""SGLang's adapter without SGLang: the space, the command line, the memory plan, the words of its log.

data/sglang-0.5.23-flags.json is what the parser of that release's wheel says when it is asked as
`harness.engines.installed` asks it.
"""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.engines import installed
from harness.engines.asking import metrics_in
from harness.engines.base import HostLimits, SaysWhatItRuns
from harness.engines.environments import interpreter
from harness.engines.flags import Flag
from harness.engines.sglang import words
from harness.engines.sglang.adapter import Sglang
from harness.errors import ConfigurationImpossible, EngineNotInstalled
from harness.host import limits
from harness.models.store import resolve
from scenarios.spec import EngineSpec, ModelRef

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
import engine_suite

GIB = 1 << 30
H100 = HostLimits(32, 256 * GIB, (80 * GIB,))
FOUR_H100 = HostLimits(32, 256 * GIB, (80 * GIB,) * 4)
SPEC = EngineSpec(name="sglang")
TOLD = json.loads((Path(__file__).parent / "data" / "sglang-0.5.23-flags.json").read_text("utf-8"))
RELEASE = {name: Flag(f["default"], tuple(f["choices"]) if f["choices"] else None) for name, f in TOLD.items()}


@pytest.fixture
def llama(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_MODELS", str(tmp_path / "models"))
    return resolve(ModelRef(name="llama-3.1-8b-instruct", context_tokens=8192), build=False)


@pytest.fixture(autouse=True)
def nothing_is_installed(tmp_path, monkeypatch, request):
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setenv("AUTOTUNE_ENGINES", str(tmp_path / "engines"))


@pytest.fixture
def its_release(monkeypatch):
    """As if that release were installed."""
    known = dict(RELEASE)
    monkeypatch.setattr(installed, "python_of", lambda *_: "/its/python")
    monkeypatch.setattr(installed, "flags", lambda *_: known)
    return known


def plan(model, host, **chosen):
    config = Sglang().knobs(SPEC, model, host).complete(chosen)
    return Sglang().plan(SPEC, model, config, host)


def value_of(argv, flag):
    return argv[argv.index(flag) + 1]


class TestCommandLine:
    def test_the_control_says_as_little_as_can_be(self, llama):
        planned = plan(llama, H100)
        assert planned.deploy_argv[:4] == ("sglang", "serve", "--model-path", "meta-llama/Llama-3.1-8B-Instruct")
        assert planned.deploy_argv[4] == "--revision"
        assert planned.deploy_argv[6:] == (
            "--served-model-name", "llama-3.1-8b-instruct", "--host", "127.0.0.1", "--port", "{port}",
            "--context-length", "8448", "--enable-metrics", "--log-level-http", "warning",
        )  # fmt: skip
        assert planned.argv[1:3] == ("-m", "sglang.launch_server")
        assert planned.argv[3:] == planned.deploy_argv[2:]
        assert "trust" not in " ".join(planned.argv)

    def test_every_value_of_every_knob_is_known_to_the_release(self, llama, its_release):
        space = Sglang().knobs(SPEC, llama, FOUR_H100)
        assert {name for name, _, _ in space.absent} == {"variant"}  # no flag and no value is unknown
        rng = random.Random(5)
        planned = 0
        for _ in range(400):
            config = space.complete({k.name: rng.choice(k.choices) for k in space.knobs})
            try:
                made = Sglang().plan(SPEC, llama, config, FOUR_H100)
            except ConfigurationImpossible:
                continue
            planned += 1
            assert made.notices == ()
            assert {word for word in made.deploy_argv if word.startswith("--")} <= RELEASE.keys()
        assert planned > 50

    def test_what_is_taken_for_the_default_is_the_default(self):
        from harness.engines.sglang.knobs import PLAIN, VALUES

        for name, value in PLAIN.items():
            default = RELEASE[VALUES[name]].default
            assert value == ("none" if default is None else default)
        for flag in ("--disable-radix-cache", "--enable-mixed-chunk", "--disable-overlap-schedule"):
            assert RELEASE[flag].default is False

    def test_every_value_of_every_knob_reaches_the_command_line(self, llama):
        space = Sglang().knobs(SPEC, llama, FOUR_H100)
        plans = {}
        for knob in space.knobs:
            for value in knob.choices:
                needed = {knob.when[0]: knob.when[1][0]} if knob.when else {}
                config = space.complete({**needed, knob.name: value})
                try:
                    made = Sglang().plan(SPEC, llama, config, FOUR_H100)
                except ConfigurationImpossible:
                    continue
                plans.setdefault(made.argv, set()).add(config.digest)
        assert len(plans) > 50
        assert all(len(digests) == 1 for digests in plans.values())

    def test_speculation_has_its_numbers_and_no_others(self, llama):
        planned = plan(llama, H100, speculation="ngram", speculative_tokens=8, ngram_breadth=4)
        assert value_of(planned.argv, "--speculative-algorithm") == "NGRAM"
        assert value_of(planned.argv, "--speculative-num-draft-tokens") == "8"
        assert value_of(planned.argv, "--speculative-ngram-max-bfs-breadth") == "4"
        assert "speculative_tokens" not in plan(llama, H100).config.knobs

    def test_beside_speculation_there_is_no_mixed_chunk(self, llama):
        assert "mixed_chunk" not in plan(llama, H100, speculation="ngram", mixed_chunk=True).config.knobs
        assert "--enable-mixed-chunk" in plan(llama, H100, mixed_chunk=True).argv

    @pytest.mark.parametrize(
        ("knobs", "reason"),
        [
            ({"chunked_prefill_size": -1, "mixed_chunk": True}, "chunked_prefill_size must not be -1"),
            ({"schedule_policy": "lpm", "prefix_caching": False}, "prefix_caching must be true"),
            ({"speculation": "ngram", "page_size": 16, "attention_backend": "triton"}, "need page_size 1 or"),
            ({"mem_fraction_static": 0.93, "chunked_prefill_size": -1, "max_prefill_tokens": 32768}, "do not fit"),
        ],
    )
    def test_what_cannot_work_is_said_before_a_launch(self, llama, knobs, reason):
        host = HostLimits(32, 256 * GIB, (48 * GIB,))
        with pytest.raises(ConfigurationImpossible, match=reason):
            plan(llama, host, **knobs)

    def test_a_name_with_a_colon_is_refused(self, llama):
        from dataclasses import replace

        with pytest.raises(ConfigurationImpossible, match="no name with a colon, got a:b"):
            plan(replace(llama, label="a:b"), H100)

    def test_not_installed_is_said_with_the_command(self):
        with pytest.raises(EngineNotInstalled, match="autotune engines install sglang"):
            Sglang().version()


class TestOlderReleases:
    def test_a_renamed_flag_gets_its_older_name(self, llama, its_release):
        its_release["--cuda-graph-max-bs"] = its_release.pop("--cuda-graph-max-bs-decode")
        planned = plan(llama, H100, cuda_graph_max_bs=64)
        assert value_of(planned.argv, "--cuda-graph-max-bs") == "64"
        assert planned.notices == ()

    def test_what_the_release_does_not_have_leaves_the_space_with_its_reason(self, llama, its_release):
        del its_release["--schedule-conservativeness"]
        its_release["--schedule-policy"] = Flag("fcfs", ("lpm", "fcfs"))
        space = Sglang().knobs(SPEC, llama, H100)
        assert {(name, value) for name, value, _ in space.absent if name != "variant"} == {
            *(("schedule_conservativeness", value) for value in (0.3, 0.7, 1.3)),
            *(("schedule_policy", value) for value in ("dfs-weight", "shortest-prefill-first", "lof", "hrrn")),
        }
        assert "the installed SGLang has no --schedule-conservativeness" in {why for _, _, why in space.absent}


class TestMemory:
    def test_the_arithmetic_of_one_gpu(self, llama):
        """SGLang's own formula for what it leaves: 512 MiB, 1.5 MiB a token of a chunk, 2 MiB a request in a graph."""
        planned = plan(llama, H100)
        rest = (512 + 1.5 * 8192 + 2 * 256 + 128) * (1 << 20)
        usable = 80 * GIB - int(rest)
        tokens = int((usable - 8_030_261_248 * 2) / 131072)
        assert planned.expected_memory_bytes == pytest.approx(usable)
        assert f"({tokens:,} tokens" in planned.memory_explained
        assert ", beside it activations" in planned.memory_explained

    def test_ten_gib_are_left_on_a_large_gpu(self, llama):
        planned = plan(llama, H100, chunked_prefill_size=2048, max_running_requests=16)
        assert planned.expected_memory_bytes == pytest.approx(70 * GIB)

    def test_fp8_halves_the_weights(self, llama):
        small = HostLimits(32, 64 * GIB, (16 * GIB,))
        with pytest.raises(ConfigurationImpossible, match="not enough memory for one sequence"):
            plan(llama, small)
        assert plan(llama, small, quantization="fp8").expected_memory_bytes < 16 * GIB

    def test_without_a_gpu_it_is_refused_in_words(self, llama):
        with pytest.raises(ConfigurationImpossible, match="sglang needs a GPU and there is none"):
            plan(llama, HostLimits(8, 64 * GIB))


class TestWords:
    @pytest.mark.parametrize(
        ("line", "failure"),
        [
            ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "out_of_memory"),
            ("ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction", "out_of_memory"),
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB", "out_of_memory"),
            ("RuntimeError: Decode out of memory. Try to lower your batch size.", "out_of_memory"),
            ("sglang serve: error: unrecognized arguments: --no-such-flag", "bad_flag"),
            ("sglang serve: error: argument --dtype: invalid choice: 'int3'", "bad_flag"),
            ("OSError: /m does not appear to have a file named config.json", "bad_model"),
            ("safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge", "bad_model"),
            ("ValueError: Unknown quantization method: int3. Must be one of ['fp8']", "unsupported"),
            ("RuntimeError: --kv-cache-dtype=nvfp4 requires Blackwell SM100 or SM120.", "unsupported"),
            ("ValueError: nccl_port at 30333 is not available in 30 seconds. port in use", "port_taken"),
            ("ERROR:    [Errno 98] error while attempting to bind on address: address already in use", "port_taken"),
            ("RuntimeError: something nobody has seen", "start_failed"),
        ],
    )
    def test_reasons(self, line, failure):
        noise = (
            "[2026-11-20 10:00:00] \x1b[1;33m'--x' is not supported and will be removed\x1b[0m\n"
            "[2026-11-20 10:00:01] server_args={'disable_x': True, 'why': 'unsupported'}\n"
        )
        assert words.classify(noise + line, 1) == failure

    LOG = (
        "[2026-11-20 10:00:01] server_args={'model_path': 'm', 'dtype': 'auto', 'kv_cache_dtype': 'fp8_e4m3', "
        "'mem_fraction_static': 0.835, 'max_running_requests': 4096, 'page_size': 1, 'tp_size': 1, 'dp_size': 1, "
        "'quantization': None, 'schedule_policy': 'fcfs', 'attention_backend': 'fa3', 'enable_mixed_chunk': False}\n"
        "[2026-11-20 10:00:09] max_total_num_tokens=411332, chunked_prefill_size=8192, max_prefill_tokens=16384, "
        "max_running_requests=2048, context_len=8448, available_gpu_mem=11.20 GB\n"
        "[2026-11-20 10:00:20] The server is fired up and ready to roll!\n"
    )

    def test_what_it_runs_with_is_read_from_its_log(self):
        said = words.resolved(self.LOG)
        assert said["kv_cache_tokens"] == "411332"
        assert said["max_running_requests"] == "2048"
        assert said["attention_backend"] == "fa3"
        assert words.classify(self.LOG, 0) is None

    def test_a_setting_that_became_another_is_named(self, llama):
        engine = Sglang()
        assert isinstance(engine, SaysWhatItRuns)
        asked = plan(llama, H100, kv_cache_dtype="fp8_e4m3", chunked_prefill_size=4096, attention_backend="flashinfer")
        assert set(engine.disagreements(asked, self.LOG)) == {
            "asked for chunked_prefill_size=4096, SGLang runs with 8192",
            "asked for attention_backend=flashinfer, SGLang runs with fa3",
        }
        assert engine.disagreements(plan(llama, H100), self.LOG) == ()


def test_its_own_kill_after_a_child_failed_is_no_lack_of_memory():
    log = "RuntimeError: nobody has seen this\nReceived sigquit from a child process. It failed.\n"
    assert words.classify(log, 137) == "start_failed"
    assert words.classify("Loading weights\n", 137) == "out_of_memory"


def test_a_checkpoint_that_is_not_built_is_left_out_with_the_command_that_builds_it(llama):
    space = Sglang().knobs(SPEC, llama, H100).narrowed({"variant": ("published", "w8a8-int8")})
    assert space["variant"].choices == ("published",)
    assert "autotune models build llama-3.1-8b-instruct --scheme w8a8-int8" in space.notices[0]


def test_what_is_quantised_already_is_not_quantised_again(llama):
    built = replace(llama, variants={**llama.variants, "w8a8-int8": llama.variants["published"]})
    config = Sglang().knobs(SPEC, built, H100).complete({"variant": "w8a8-int8", "quantization": "fp8"})
    assert "quantization" not in config.knobs


def test_of_a_share_the_fullest_rank_counts():
    text = 'sglang:token_usage{tp_rank="0"} 0.8\nsglang:token_usage{tp_rank="1"} 0.7\n'
    assert metrics_in(text, "sglang:") == {"token_usage": 0.8}


def test_metrics_are_summed_over_ranks_by_short_name():
    text = (
        "# TYPE sglang:num_running_reqs gauge\n"
        'sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0"} 3.0\n'
        'sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="1"} 2.0\n'
        'sglang:prompt_tokens_total{model_name="m"} 1.5e+03\n'
        'sglang:time_to_first_token_seconds_bucket{le="0.3",model_name="m"} 7.0\n'
    )
    assert metrics_in(text, "sglang:") == {"num_running_reqs": 5.0, "prompt_tokens_total": 1500.0}


def needs_sglang():
    if not limits().gpu_memory_bytes:
        pytest.skip("SGLang needs a CUDA device and there is none")
    if interpreter("sglang") is None:
        pytest.skip("SGLang is not installed: autotune engines install sglang")


@pytest.mark.gpu
@pytest.mark.timeout(1200)
class TestOnAGpu(engine_suite.EngineSuite):
    """The contract, on a real SGLang: `autotune engines install sglang` first."""

    engine = Sglang()
    spec = EngineSpec(name="sglang", start_timeout_s=900)

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        needs_sglang()
        return resolve(ModelRef(name="smollm2-135m-instruct-hf", context_tokens=512), build=True)

    def test_it_has_a_name_and_a_version(self):
        needs_sglang()
        super().test_it_has_a_name_and_a_version()
