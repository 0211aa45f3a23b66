"""vLLM's knobs: which there are on which device, what each may be, and how it is spelled on the command line.

`auto` means that nothing is said and vLLM decides: the control is vLLM as it comes. Knows nothing of memory.
"""

import json
from collections.abc import Iterator, Mapping

from harness.engines import hugging_face
from harness.engines.base import HostLimits, ResolvedModel
from harness.engines.memory import AUTO, GIB
from harness.models.hf_shape import HfShape
from scenarios.space import Knob, SearchSpace, Value

DRAFTED = ("ngram", "suffix")  # without weights
KV_BYTES_FLAG = "--kv-cache-memory-bytes"
USUAL_KV_GIB = 4
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
KV_SHARE = 0.6  # of the host's memory: larger KV spaces are not offered
UTILISATION_FLAG = "--gpu-memory-utilization"

VALUES = {  # knobs that are one flag with a value
    "dtype": "--dtype",
    "quantization": "--quantization",
    "kv_cache_dtype": "--kv-cache-dtype",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "block_size": "--block-size",
    "long_prefill_token_threshold": "--long-prefill-token-threshold",
    "scheduling_policy": "--scheduling-policy",
    "stream_interval": "--stream-interval",
    "performance_mode": "--performance-mode",
    "gpu_memory_utilization": UTILISATION_FLAG,
    "tensor_parallel": "--tensor-parallel-size",
    "data_parallel": "--data-parallel-size",
}
SWITCHES = {  # knobs that are a flag or its `--no-` twin
    "prefix_caching": "enable-prefix-caching",
    "chunked_prefill": "enable-chunked-prefill",
    "async_scheduling": "async-scheduling",
    "enforce_eager": "enforce-eager",
}
ENVIRONMENT = {"thread_binding": BINDING}
SAID_IN_LOG = {  # knob -> the name under which vLLM's log tells its value
    "dtype": "dtype",
    "quantization": "quantization",
    "kv_cache_dtype": "kv_cache_dtype",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "tensor_parallel": "tensor_parallel_size",
    "data_parallel": "data_parallel_size",
    "prefix_caching": "enable_prefix_caching",
    "chunked_prefill": "enable_chunked_prefill",
    "async_scheduling": "async_scheduling",
    "enforce_eager": "enforce_eager",
    "speculation": "speculation",
}


def space(engine: str, model: ResolvedModel, shape: HfShape, host: HostLimits, *, cuda: bool) -> SearchSpace:
    method = model.ref.draft.method if model.ref.draft else None
    all_of_it = (
        *_precision(model, shape, cuda=cuda),
        *_memory(host, cuda=cuda),
        *_work(cuda=cuda),
        *_speculation(method),
        *hugging_face.parallel(shape, host, recompiles=True),
    )
    offered = SearchSpace(engine, all_of_it, hugging_face.unbuilt(model))
    return offered.without(_not_with_dummies) if model.ref.weights == "dummy" else offered


def _not_with_dummies(knob: Knob, value: Value) -> str | None:
    if knob.name == "speculation":
        return "how many drafts random weights accept says nothing of the real ones"
    return "it reads the weights that it quantises, and dummies are not read" if value == "bitsandbytes" else None


def _precision(model: ResolvedModel, shape: HfShape, *, cuda: bool) -> Iterator[Knob]:
    yield hugging_face.variant(model, recompiles=True)
    yield Knob(
        "dtype",
        (AUTO, "bfloat16", "float16" if cuda else "float32"),
        AUTO,
        "precision",
        "Precision of weights and activations.",
        affects_output=True,
        recompiles=True,
    )
    if cuda and shape.quantized is None:
        yield hugging_face.quantization(model, ("fp8", "bitsandbytes"), recompiles=True)
    yield Knob(
        "kv_cache_dtype",
        (AUTO, "fp8"),
        AUTO,
        "memory",
        "Precision of the KV cache. On a CPU, fp8 needs AVX-512.",
        affects_output=True,
        recompiles=True,
    )


def _memory(host: HostLimits, *, cuda: bool) -> Iterator[Knob]:
    if cuda:
        yield Knob(
            "gpu_memory_utilization",
            (AUTO, 0.8, 0.85, 0.9, 0.92, 0.95),
            AUTO,
            "memory",
            "Share of the GPU's memory for weights, activations and KV cache together.",
        )
    else:
        sizes = tuple(s for s in (1, 2, 4, 8, 16, 32, 64, 128) if s * GIB <= KV_SHARE * host.memory_bytes) or (1,)
        usual = max(s for s in sizes if s <= USUAL_KV_GIB)
        # vLLM's own default is nearly all of the host's memory: it would not start beside anything else.
        yield Knob("kv_cache_gib", sizes, usual, "memory", "Memory of the KV cache.")
        yield Knob("thread_binding", (AUTO, "nobind"), AUTO, "compute", "Pin compute threads to cores, or leave them.")
    yield Knob("block_size", (AUTO, 16, 32, 64, 128), AUTO, "memory", "Tokens of one block of the KV cache.")
    yield Knob(
        "prefix_caching",
        (True, False),
        True,
        "memory",
        "Reuse the KV cache of a common prompt prefix.",
        affects_output=True,
    )


def _work(*, cuda: bool) -> Iterator[Knob]:
    yield Knob(
        "max_num_seqs", (AUTO, 4, 8, 16, 32, 64, 128, 256, 512, 1024), AUTO, "batching", "Sequences decoded together."
    )
    yield Knob(
        "max_num_batched_tokens",
        (AUTO, 512, 1024, 2048, 4096, 8192, 16384, 32768),
        AUTO,
        "batching",
        "Most tokens of one scheduling step.",
        recompiles=True,
    )
    yield Knob(
        "chunked_prefill", (True, False), True, "batching", "Cut long prompts, so that decoding goes on beside them."
    )
    yield Knob(
        "long_prefill_token_threshold",
        (0, 256, 512, 1024, 2048),
        0,
        "batching",
        "Most tokens of one prompt in one step; 0: no limit.",
        when=("chunked_prefill", (True,)),
    )
    yield Knob(
        "scheduling_policy", ("fcfs", "priority"), "fcfs", "batching", "First come, or by the priority of a request."
    )
    yield Knob(
        "stream_interval",
        (1, 2, 4, 8),
        1,
        "batching",
        "Tokens that are sent together; the first is always sent at once.",
        spoils=("tpot",),
    )
    if cuda:  # without a GPU there is none
        yield Knob("async_scheduling", (AUTO, True, False), AUTO, "batching", "Schedule the next step during this one.")
    yield Knob(
        "performance_mode",
        ("balanced", "interactivity", "throughput"),
        "balanced",
        "compute",
        "What defaults and kernels are chosen for.",
        recompiles=True,
    )
    yield Knob(
        "enforce_eager",
        (False, True),
        False,
        "compute",
        "No compilation: starts sooner, runs slower.",
        recompiles=True,
        repair=True,
    )


def _speculation(method: str | None) -> Iterator[Knob]:
    """``method``: of the weights that the scenario names; None: it names none."""
    drafted = DRAFTED if method is None else (*DRAFTED, method)
    yield Knob(
        "speculation",
        ("none", *drafted),
        "none",
        "speculation",
        "Draft tokens, from the text so far or by the scenario's model.draft; verified, so greedy output should stay.",
        affects_output=True,
        recompiles=True,
    )
    yield Knob(
        "speculative_tokens", (2, 3, 4, 6, 8), 3, "speculation", "Tokens of one draft.", when=("speculation", drafted)
    )
    yield Knob(
        "prompt_lookup_max",
        (2, 3, 4, 6),
        4,
        "speculation",
        "Longest n-gram that is looked up in the text so far.",
        when=("speculation", ("ngram",)),
    )


def flags(k: Mapping[str, Value], draft: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Flag and value; None: a switch. What is left to vLLM is not said. ``draft``: where the weights are that draft."""
    for name in ("kv_cache_gib", *VALUES, *SWITCHES):
        if name in k and (said := flag(name, k[name])) is not None:
            yield said
    if (method := k.get("speculation", "none")) != "none":
        drafting: dict[str, Value] = {"method": method, **draft, "num_speculative_tokens": k["speculative_tokens"]}
        if method == "ngram":
            drafting["prompt_lookup_max"] = k["prompt_lookup_max"]
        yield "--speculative-config", json.dumps(drafting, separators=(",", ":"))


def flag(name: str, value: Value) -> tuple[str, str | None] | None:
    """How one knob is said; None: nothing is said, or it is no flag of its own."""
    if name == "kv_cache_gib":
        return KV_BYTES_FLAG, str(int(value) * GIB)
    if name in VALUES and value not in (AUTO, "none") and not _plain(name, value):
        return VALUES[name], str(value)
    if name in SWITCHES and value != AUTO and not (name == "enforce_eager" and not value):
        return f"--{SWITCHES[name]}" if value else f"--no-{SWITCHES[name]}", None
    return None


def _plain(name: str, value: Value) -> bool:
    """The value that vLLM has anyhow, of a flag that older releases do not have: saying nothing is the same."""
    return (name, value) in {
        ("performance_mode", "balanced"),
        ("long_prefill_token_threshold", 0),
        ("scheduling_policy", "fcfs"),
        ("stream_interval", 1),
        ("tensor_parallel", 1),
        ("data_parallel", 1),
    }


def environment(k: Mapping[str, Value]) -> dict[str, str]:
    return {variable: str(k[name]) for name, variable in ENVIRONMENT.items() if k.get(name, AUTO) != AUTO}


def asked_of_log(k: Mapping[str, Value]) -> dict[str, str]:
    """What the log should say, by its own names; what was left to vLLM is left out."""
    said = {SAID_IN_LOG[name]: str(value) for name, value in k.items() if name in SAID_IN_LOG and value != AUTO}
    return {name: "None" if (name, value) == ("quantization", "none") else value for name, value in said.items()}
