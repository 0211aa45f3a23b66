"""Hugging Face's Text Generation Inference, by `text-generation-launcher` on PATH. Legacy: upstream is archived.

Knows the last release's arguments and words, and that most arguments are variables too; nothing of load.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping

import httpx

from harness.engines import asking, hugging_face, memory, words
from harness.engines.base import Endpoint, HostLimits, LaunchPlan, ResolvedModel
from harness.engines.flags import Said
from harness.engines.memory import AUTO
from harness.errors import ConfigurationImpossible, EngineCrashed, EngineNotInstalled, FailureClass
from harness.models.hf_shape import HfShape
from scenarios.space import Knob, SearchSpace, ServingConfig, Value
from scenarios.spec import EngineSpec

LAUNCHER = "text-generation-launcher"
BASE_MODEL = "tgi"  # any other `model` in a request means an adapter of that name
WIGGLE_ROOM = 0.9  # of the memory fraction, which TGI gives to weights, activations and KV cache
USUAL_PREFILL_TOKENS = 4096
GRAPHS = 32  # largest batch with a captured graph, by default

VALUES = {
    "dtype": "--dtype",
    "quantization": "--quantize",
    "kv_cache_dtype": "--kv-cache-dtype",
    "cuda_memory_fraction": "--cuda-memory-fraction",
    "max_concurrent_requests": "--max-concurrent-requests",
    "max_batch_size": "--max-batch-size",
    "max_batch_prefill_tokens": "--max-batch-prefill-tokens",
    "waiting_served_ratio": "--waiting-served-ratio",
    "max_waiting_tokens": "--max-waiting-tokens",
    "speculative_tokens": "--speculate",
}
PLAIN = {  # what TGI has anyhow: nothing is said
    "quantization": "none",
    "cuda_memory_fraction": 1.0,
    "max_concurrent_requests": 128,
    "waiting_served_ratio": 0.3,
    "max_waiting_tokens": 20,
}
ENVIRONMENT = {"prefix_caching": "PREFIX_CACHING", "attention": "ATTENTION", "prefill_chunking": "PREFILL_CHUNKING"}
REASONS: words.Reasons = (
    ("port_taken", r"[Aa]ddress already in use|AddrInUse"),
    (
        "out_of_memory",
        r"Not enough memory to handle|OutOfMemoryError|out of memory|Cannot allocate memory|MemoryError|bad_alloc",
    ),
    ("bad_flag", r"error: (unexpected argument|invalid value|a value is required|the argument)|ArgumentValidation"),
    (
        "bad_model",
        (
            r"Download encountered an error|DownloadError|Repository Not Found|does not appear to have a file named"
            r"|No local weights found|SafetensorError|HeaderTooLarge|InvalidHeader|not a valid JSON file|gated repo"
            r"|Can't load (the configuration|tokenizer)|LocalEntryNotFoundError|Unrecognized model"
        ),
    ),
    (
        "unsupported",
        (
            r"not supported|[Uu]nsupported|NotImplementedError|NotEnoughCUDADevices|only supported with"
            r"|requires? .*(capability|CUDA|GPU)|is not available"
        ),
    ),
)
NO_REASON = re.compile(r"^\S*\d\d:\d\d\S*\s+(INFO|WARN|DEBUG)\b|\bUserWarning\b|\bFutureWarning\b")


class Tgi:
    name = "tgi"

    def version(self, spec: EngineSpec | None = None) -> str:  # noqa: ARG002 - the contract's shape
        if (launcher := shutil.which(LAUNCHER)) is None:
            raise EngineNotInstalled(
                f"TGI is not installed: put `{LAUNCHER}` on PATH, as in its image "
                "ghcr.io/huggingface/text-generation-inference; upstream is archived, vllm and sglang are its heirs"
            )
        try:
            said = subprocess.run([launcher, "--version"], capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.SubprocessError) as err:
            raise EngineNotInstalled(f"{launcher} does not say its version: {err}") from err
        return f"tgi {said.stdout.strip().split()[-1] if said.stdout.strip() else 'of unknown version'}"

    def knobs(self, spec: EngineSpec, model: ResolvedModel, host: HostLimits) -> SearchSpace:  # noqa: ARG002 - the contract's shape
        about = hugging_face.checkpoint(model, model.reference_variant).shape
        offered = (*_precision(model, about), *_memory(), *_batching(), *_compute(about, host))
        return SearchSpace(self.name, offered, hugging_face.unbuilt(model))

    def plan(self, spec: EngineSpec, model: ResolvedModel, config: ServingConfig, host: HostLimits) -> LaunchPlan:  # noqa: ARG002 - the contract's shape
        k = config.knobs
        loaded = hugging_face.checkpoint(model, str(k["variant"]))
        longest = loaded.longest_tokens
        _check(k, longest)
        prefill = USUAL_PREFILL_TOKENS if k["max_batch_prefill_tokens"] == AUTO else k["max_batch_prefill_tokens"]
        by_vllms_names = {**k, "max_num_batched_tokens": prefill, "max_num_seqs": k["max_batch_size"]}
        budget = memory.Budget(self.name, WIGGLE_ROOM * float(k["cuda_memory_fraction"]), "cuda_memory_fraction")
        planned = memory.on_gpus(loaded.shape, by_vllms_names, host, longest, budget)
        said: list[Said] = [
            ("--model-id", loaded.source),
            *loaded.revision_flag,
            ("--hostname", "127.0.0.1"),
            ("--port", "{port}"),
            ("--num-shard", str(k.get("tensor_parallel", 1))),  # its default is every GPU that there is
            ("--max-total-tokens", str(longest)),
            ("--max-input-tokens", str(longest - 1)),
            ("--usage-stats", "off"),
            *_flags(k),
        ]
        argv = (LAUNCHER, *(word for flag, value in said for word in ((flag,) if value is None else (flag, value))))
        return LaunchPlan(
            config=config,
            argv=argv,
            deploy_argv=argv,
            env={**loaded.env, **_environment(k), **config.env},
            base_url="http://127.0.0.1:{port}/v1",
            served_model=BASE_MODEL,
            health_path="/health",
            expected_memory_bytes=planned.expected_bytes,
            memory_explained=planned.explained,
        )

    def classify(self, log: str, exit_code: int | None) -> FailureClass | None:
        return words.classify(log, exit_code, REASONS, NO_REASON)

    def tokenize(self, endpoint: Endpoint, text: str) -> list[int] | None:
        """Without what it puts before every text: such tokens cover none of it."""
        try:
            answer = httpx.post(f"{endpoint.root_url}/tokenize", json={"inputs": text}, timeout=30, trust_env=False)
            answer.raise_for_status()
        except httpx.HTTPError as err:
            raise EngineCrashed(f"{self.name} does not tokenize: {err}") from err
        return asking.covering(answer.json())

    def metrics(self, endpoint: Endpoint) -> dict[str, float]:
        """Sums over labels, by name without the prefix. Counters end in `_total`, as other engines' do."""
        text = asking.metrics_text(endpoint)
        counters = set(re.findall(r"^# TYPE tgi_(\w+) counter$", text, re.MULTILINE))
        found = asking.metrics_in(text, "tgi_")
        return {f"{name}_total" if name in counters else name: value for name, value in found.items()}


def _precision(model: ResolvedModel, about: HfShape) -> Iterator[Knob]:
    yield hugging_face.variant(model)
    if about.quantized is None:
        yield hugging_face.quantization(model, ("eetq", "fp8", "bitsandbytes-nf4"))
    yield Knob(
        "dtype",
        (AUTO, "float16", "bfloat16"),
        AUTO,
        "precision",
        "Precision of weights and activations.",
        when=("quantization", ("none",)) if about.quantized is None else None,
        affects_output=True,
    )
    yield Knob(
        "kv_cache_dtype",
        (AUTO, "fp8_e4m3fn", "fp8_e5m2"),
        AUTO,
        "memory",
        "Precision of the KV cache.",
        affects_output=True,
    )


def _memory() -> Iterator[Knob]:
    yield Knob("cuda_memory_fraction", (0.8, 0.9, 1.0), 1.0, "memory", "Share of each GPU's memory that may be used.")
    yield Knob(
        "attention",
        (AUTO, "flashinfer", "flashdecoding"),
        AUTO,
        "compute",
        "Attention kernels. A third kind, paged, is for GPUs that have neither.",
        affects_output=True,
    )
    yield Knob(
        "prefix_caching",
        (AUTO, True, False),
        AUTO,
        "memory",
        "Reuse the KV cache of a common prompt prefix.",
        affects_output=True,
    )


def _batching() -> Iterator[Knob]:
    yield Knob(
        "speculation",
        ("none", "ngram"),
        "none",
        "speculation",
        "Draft tokens from the text so far, without a second model; verified, so greedy output should stay.",
        affects_output=True,
    )
    yield Knob(
        "speculative_tokens", (2, 3, 4), 2, "speculation", "Tokens of one draft.", when=("speculation", ("ngram",))
    )
    yield Knob(
        "prefill_chunking",
        (True, False),
        True,
        "batching",
        "Cut prompts that are longer than a step.",
        when=("speculation", ("none",)),  # beside it, TGI switches this off
    )
    yield Knob(
        "max_concurrent_requests",
        (64, 128, 256, 512, 1024),
        128,
        "batching",
        "Requests that are taken in; any more are refused at once.",
    )
    yield Knob("max_batch_size", (AUTO, 16, 32, 64, 128, 256), AUTO, "batching", "Sequences decoded together.")
    yield Knob(
        "max_batch_prefill_tokens",
        (AUTO, 1024, 2048, 4096, 8192, 16384),
        AUTO,
        "batching",
        "Most tokens of prompts in one step.",
    )
    yield Knob(
        "waiting_served_ratio",
        (0.1, 0.3, 0.6, 1.2),
        0.3,
        "batching",
        "How many must wait, for each that runs, before decoding pauses for prompts.",
    )
    yield Knob(
        "max_waiting_tokens",
        (5, 10, 20, 40, 80),
        20,
        "batching",
        "Decoding steps after which those who wait are let in.",
    )


def _compute(about: HfShape, host: HostLimits) -> Iterator[Knob]:
    yield Knob(
        "cuda_graph_max_bs", (0, 32, 64, 128), GRAPHS, "compute", "Largest batch that decodes in a captured graph."
    )
    split = tuple(n for n in (1, 2, 4, 8) if n <= len(host.gpu_memory_bytes) and about.attention_heads % n == 0)
    if len(split) > 1:
        yield Knob("tensor_parallel", split, 1, "compute", "GPUs that share the model.")


def _flags(k: Mapping[str, Value]) -> Iterator[Said]:
    for name, flag in VALUES.items():
        if (value := k.get(name, AUTO)) != AUTO and PLAIN.get(name) != value:
            yield flag, str(value)
    if (largest := int(k["cuda_graph_max_bs"])) != GRAPHS:
        yield "--cuda-graphs", ",".join(str(1 << i) for i in range(largest.bit_length())) or "0"


def _environment(k: Mapping[str, Value]) -> dict[str, str]:
    """What is no argument. Chunking is on by default, so only its opposite is said."""
    given = {variable: k[name] for name, variable in ENVIRONMENT.items() if k.get(name, AUTO) != AUTO}
    said = {variable: str(int(v)) if isinstance(v, bool) else str(v) for variable, v in given.items()}
    return {variable: value for variable, value in said.items() if (variable, value) != ("PREFILL_CHUNKING", "1")}


def _check(k: Mapping[str, Value], longest_tokens: int) -> None:
    """What TGI refuses at start, said before anything is launched."""
    prefill = k["max_batch_prefill_tokens"]
    if not k.get("prefill_chunking") and prefill != AUTO and int(prefill) < longest_tokens - 1:
        raise ConfigurationImpossible(
            f"without prefill_chunking, or with speculation, a step must hold the longest prompt: "
            f"max_batch_prefill_tokens must be >= {longest_tokens - 1}, got {prefill}"
        )
