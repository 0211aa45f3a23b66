"""The simulated engine: knobs, words and failures of vLLM, the clock of a stated law; no GPU, nothing measured.

Knows its knobs, its flags and what the plan expects of memory; nothing of load or targets. The server is a process of
its own (server.py). What is printed from it says *simulated*.
"""

import re
import sys
from dataclasses import replace

from harness.engines import asking
from harness.engines.base import Endpoint, HostLimits, LaunchPlan, ResolvedModel
from harness.engines.simulated import flags, hardware
from harness.engines.simulated.hardware import Accelerator, ModelShape
from harness.engines.simulated.law import Law, Settings, plan_memory
from harness.engines.vllm.package import VLLMS_COUNTERS
from harness.errors import ConfigurationImpossible, FailureClass
from scenarios.space import Knob, SearchSpace, ServingConfig, Value
from scenarios.spec import EngineSpec

SERVER = "harness.engines.simulated.server"
SEQUENCES = (8, 16, 32, 64, 128, 256, 512, 1024)
BATCHED_TOKENS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
MEMORY_SHARES = (0.8, 0.85, 0.9, 0.92, 0.95, 0.97, 0.98)


class Simulated:
    name = "simulated"
    server_names = VLLMS_COUNTERS

    def version(self) -> str:
        return "simulated engine"

    def knobs(self, spec: EngineSpec, model: ResolvedModel, host: HostLimits) -> SearchSpace:  # noqa: ARG002 - the contract's shape
        device, shape, release = _device(spec), _shape(model), spec.version or flags.NEWEST
        offered = _knobs(spec, device, shape, model.ref.context_tokens)
        known, absent = [], []
        for knob in offered:
            why = {value: flags.why_unknown(release, knob.name, value) for value in knob.choices}
            absent += [(knob.name, value, f"simulated {reason}") for value, reason in why.items() if reason]
            choices = tuple(value for value, reason in why.items() if not reason)
            if choices:
                known.append(replace(knob, choices=choices))
        return SearchSpace(self.name, tuple(known), absent=tuple(absent))

    def plan(self, spec: EngineSpec, model: ResolvedModel, config: ServingConfig, host: HostLimits) -> LaunchPlan:  # noqa: ARG002 - the contract's shape
        device, shape, release = _device(spec), _shape(model), spec.version or flags.NEWEST
        for name, value in config.knobs.items():
            if why := flags.why_unknown(release, name, value):
                raise ConfigurationImpossible(f"simulated {why}")
        memory = plan_memory(_settings(spec, config), device, shape, model.ref.context_tokens)
        where = {
            "release": release,
            "accelerator": device.name,
            "accelerators": spec.accelerators or 1,
            "model": shape.name,
            "served-model-name": model.label,
            "max-model-len": model.ref.context_tokens,
            "host": "127.0.0.1",
            "port": "{port}",
        }
        argv = [*(part for name, value in where.items() for part in (f"--{name}", str(value)))]
        for name, value in config.knobs.items():
            argv += flags.arguments(name, value)
        return LaunchPlan(
            config=config,
            argv=(sys.executable, "-m", SERVER, *argv),
            deploy_argv=("python", "-m", SERVER, *argv),
            env=dict(config.env),
            base_url="http://127.0.0.1:{port}/v1",
            served_model=model.label,
            health_path="/health",
            expected_memory_bytes=None,  # of this machine, which holds no weights
            memory_explained=memory.explained,
            request_extras={"ignore_eos": True},
            simulated=True,
        )

    def classify(self, log: str, exit_code: int | None) -> FailureClass | None:  # noqa: ARG002 - the contract's shape
        if re.search(r"torch\.OutOfMemoryError|CUDA out of memory", log):
            return "out_of_memory"
        if re.search(r"simulated.*error: (unrecognized arguments|argument|the following arguments)", log):
            return "bad_flag"
        if re.search(r"cannot listen on .*[Aa]ddress already in use", log):
            return "port_taken"
        if re.search(r"failed to load model", log):
            return "bad_model"
        return "unsupported" if re.search(r"ValueError: ", log) else None

    def tokenize(self, endpoint: Endpoint, text: str) -> list[int] | None:
        return asking.tokens_of_prompt(endpoint, text, self.name)

    def metrics(self, endpoint: Endpoint) -> dict[str, float]:
        return asking.metrics(endpoint, "(?:vllm:)?")


def law(spec: EngineSpec, model: ResolvedModel, config: ServingConfig) -> Law:
    """What the server of this configuration follows. Raises ConfigurationImpossible."""
    return Law(_settings(spec, config), _device(spec), _shape(model), model.ref.context_tokens)


def _device(spec: EngineSpec) -> Accelerator:
    assert spec.accelerator is not None, "a scenario with this engine names one"
    return hardware.accelerator(spec.accelerator)


def _shape(model: ResolvedModel) -> ModelShape:
    assert model.ref.simulated is not None, "a scenario with this engine names one"
    return hardware.model(model.ref.simulated)


def _settings(spec: EngineSpec, config: ServingConfig) -> Settings:
    return Settings(accelerators=spec.accelerators or 1, **config.knobs)  # type: ignore[arg-type]  # its knobs are these


def _knobs(spec: EngineSpec, device: Accelerator, shape: ModelShape, context_tokens: int) -> tuple[Knob, ...]:
    """All that any release has, with vLLM's defaults, but for `tensor_parallel` where one device is too small."""
    base = Settings(accelerators=spec.accelerators or 1)
    fp8 = "fp8" in device.flops
    parallel = tuple(n for n in (1, 2, 4, 8) if base.accelerators % n == 0 and shape.kv_heads % n == 0)
    smallest = next((n for n in parallel if _fits(replace(base, tensor_parallel=n), device, shape, context_tokens)), 1)
    weights: tuple[Value, ...] = ("bf16", "fp8", "int4") if fp8 else ("bf16", "int4")
    return (
        Knob("weights", weights, base.weights, "precision", "Precision of the weights.", True, recompiles=True),
        Knob(
            "tensor_parallel",
            parallel,
            smallest,
            "compute",
            "Accelerators that share a request; the others serve as replicas. Default: the fewest that hold the model.",
            recompiles=True,
        ),
        Knob(
            "gpu_memory_utilization",
            MEMORY_SHARES,
            base.gpu_memory_utilization,
            "memory",
            "Share of the accelerator's memory that weights, activations and KV cache may take.",
        ),
        Knob(
            "kv_cache_dtype",
            ("auto", "fp8") if fp8 else ("auto",),
            base.kv_cache_dtype,
            "memory",
            "Precision of the KV cache; auto: that of the model.",
            affects_output=True,
            recompiles=True,
        ),
        Knob("block_size", (8, 16, 32, 64, 128), base.block_size, "memory", "Tokens in a block of the KV cache."),
        Knob(
            "enable_prefix_caching",
            (True, False),
            base.enable_prefix_caching,
            "memory",
            "Reuse the KV cache of a common beginning of prompts.",
        ),
        Knob("max_num_seqs", SEQUENCES, base.max_num_seqs, "batching", "Sequences that run together."),
        Knob(
            "max_num_batched_tokens",
            BATCHED_TOKENS,
            base.max_num_batched_tokens,
            "batching",
            "Most tokens of one step.",
            recompiles=True,
        ),
        Knob(
            "enable_chunked_prefill",
            (True, False),
            base.enable_chunked_prefill,
            "batching",
            "Prompts are read in pieces beside the answers that are being written.",
        ),
        Knob(
            "speculation",
            ("none", "ngram", "draft"),
            base.speculation,
            "speculation",
            "Tokens guessed ahead, from the text so far or by a small model, and verified together.",
            affects_output=True,
            recompiles=True,
        ),
        Knob(
            "speculative_tokens",
            (1, 2, 3, 4, 5, 6, 8),
            base.speculative_tokens,
            "speculation",
            "Tokens guessed at a time.",
            when=("speculation", ("ngram", "draft")),
        ),
        Knob(
            "enforce_eager",
            (False, True),
            base.enforce_eager,
            "compute",
            "No captured graphs: slower, with more memory left. A repair after running out of it.",
            recompiles=True,
            repair=True,
        ),
    )


def _fits(settings: Settings, device: Accelerator, shape: ModelShape, context_tokens: int) -> bool:
    try:
        return plan_memory(settings, device, shape, context_tokens).blocks > 0
    except ConfigurationImpossible:
        return False
