"""SGLang's knobs: what each may be, under which condition, and how it is spelled on the command line.

`auto` means that nothing is said and SGLang decides: the control is SGLang as it comes. Knows nothing of memory.
"""

from collections.abc import Iterator, Mapping

from harness.engines import hugging_face
from harness.engines.base import HostLimits, ResolvedModel
from harness.engines.flags import Said
from harness.engines.memory import AUTO
from harness.models.hf_shape import HfShape
from scenarios.space import Knob, SearchSpace, Value

UNCHUNKED = -1
BY_PREFIX = ("lpm", "dfs-weight", "shortest-prefill-first")  # policies that look at cached prefixes

VALUES = {  # knobs that are one flag with a value
    "dtype": "--dtype",
    "quantization": "--quantization",
    "kv_cache_dtype": "--kv-cache-dtype",
    "mem_fraction_static": "--mem-fraction-static",
    "page_size": "--page-size",
    "max_running_requests": "--max-running-requests",
    "chunked_prefill_size": "--chunked-prefill-size",
    "max_prefill_tokens": "--max-prefill-tokens",
    "schedule_policy": "--schedule-policy",
    "schedule_conservativeness": "--schedule-conservativeness",
    "decode_steps": "--num-continuous-decode-steps",
    "cuda_graph_max_bs": "--cuda-graph-max-bs-decode",
    "attention_backend": "--attention-backend",
    "speculative_tokens": "--speculative-num-draft-tokens",
    "ngram_breadth": "--speculative-ngram-max-bfs-breadth",
    "tensor_parallel": "--tp-size",
    "data_parallel": "--dp-size",
}
SWITCHES = {  # knob and the value at which its switch is said
    ("prefix_caching", False): "--disable-radix-cache",
    ("mixed_chunk", True): "--enable-mixed-chunk",
    ("overlap_schedule", False): "--disable-overlap-schedule",
}
PLAIN = {  # what SGLang has anyhow: saying nothing is the same, and older releases need not know the flag
    "quantization": "none",
    "max_prefill_tokens": 16384,
    "schedule_policy": "fcfs",
    "schedule_conservativeness": 1.0,
    "decode_steps": 1,
    "tensor_parallel": 1,
    "data_parallel": 1,
}
SAID_IN_LOG = (  # by the names of SGLang's own arguments, which its log tells as it resolved them
    ("dtype", "dtype"),
    ("kv_cache_dtype", "kv_cache_dtype"),
    ("quantization", "quantization"),
    ("mem_fraction_static", "mem_fraction_static"),
    ("page_size", "page_size"),
    ("max_running_requests", "max_running_requests"),
    ("chunked_prefill_size", "chunked_prefill_size"),
    ("max_prefill_tokens", "max_prefill_tokens"),
    ("schedule_policy", "schedule_policy"),
    ("mixed_chunk", "enable_mixed_chunk"),
    ("attention_backend", "attention_backend"),
    ("tensor_parallel", "tp_size"),
    ("data_parallel", "dp_size"),
)


def space(engine: str, model: ResolvedModel, shape: HfShape, host: HostLimits) -> SearchSpace:
    knobs = (
        *_precision(model, shape),
        *_memory(),
        *_speculation(),
        *_batching(),
        *_compute(),
        *hugging_face.parallel(shape, host),
    )
    return SearchSpace(engine, knobs, hugging_face.unbuilt(model))


def _precision(model: ResolvedModel, shape: HfShape) -> Iterator[Knob]:
    yield hugging_face.variant(model)
    yield Knob(
        "dtype",
        (AUTO, "bfloat16", "float16"),
        AUTO,
        "precision",
        "Precision of weights and activations.",
        affects_output=True,
    )
    if shape.quantized is None:
        yield hugging_face.quantization(model, ("fp8",))
    yield Knob(
        "kv_cache_dtype",
        (AUTO, "fp8_e4m3", "fp8_e5m2"),
        AUTO,
        "memory",
        "Precision of the KV cache.",
        affects_output=True,
    )


def _memory() -> Iterator[Knob]:
    yield Knob(
        "mem_fraction_static",
        (AUTO, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93),
        AUTO,
        "memory",
        "Share of the GPU's memory for weights and KV cache; activations and graphs need the rest.",
    )
    yield Knob("page_size", (AUTO, 1, 16, 32, 64), AUTO, "memory", "Tokens of one page of the KV cache.")
    yield Knob(
        "prefix_caching",
        (True, False),
        True,
        "memory",
        "Reuse the KV cache of a common prompt prefix (RadixAttention).",
        affects_output=True,
    )


def _batching() -> Iterator[Knob]:
    yield Knob(
        "max_running_requests",
        (AUTO, 16, 32, 64, 128, 256, 512, 1024),
        AUTO,
        "batching",
        "Sequences decoded together.",
    )
    yield Knob(
        "chunked_prefill_size",
        (AUTO, UNCHUNKED, 1024, 2048, 4096, 8192, 16384),
        AUTO,
        "batching",
        "Most tokens of one chunk of a prompt; -1: prompts are not cut.",
    )
    yield Knob(
        "max_prefill_tokens",
        (4096, 8192, 16384, 32768),
        16384,
        "batching",
        "Most tokens of prompts in one batch, unless one prompt alone is longer.",
    )
    yield Knob(
        "mixed_chunk",
        (False, True),
        False,
        "batching",
        "Decode beside a chunk of a prompt, in one batch.",
        when=("speculation", ("none",)),  # beside it, SGLang switches this off
    )
    yield Knob(
        "schedule_policy",
        ("fcfs", *BY_PREFIX, "lof", "hrrn"),
        "fcfs",
        "batching",
        "Who is next: first come, longest cached prefix, along the tree of prefixes, shortest rest of a prompt, "
        "longest answer, or longest wait for its length.",
    )
    yield Knob(
        "schedule_conservativeness",
        (0.3, 0.7, 1.0, 1.3),
        1.0,
        "batching",
        "How much KV cache is kept back for answers that go on; less admits more, and retracts more.",
    )


def _compute() -> Iterator[Knob]:
    yield Knob("overlap_schedule", (True, False), True, "batching", "Schedule the next step during this one.")
    yield Knob(
        "decode_steps",
        (1, 2, 4, 8),
        1,
        "batching",
        "Decoding steps between two looks at the queue: less overhead, later first tokens.",
    )
    yield Knob(
        "cuda_graph_max_bs",
        (AUTO, 8, 32, 64, 128, 256, 512),
        AUTO,
        "compute",
        "Largest batch that decodes in a captured graph.",
    )
    yield Knob(
        "attention_backend",
        (AUTO, "flashinfer", "fa3", "triton"),
        AUTO,
        "compute",
        "Attention kernels.",
        affects_output=True,
    )


def _speculation() -> Iterator[Knob]:
    yield Knob(
        "speculation",
        ("none", "ngram"),
        "none",
        "speculation",
        "Draft tokens from the texts so far, without a second model; verified, so greedy output should stay.",
        affects_output=True,
    )
    yield Knob(
        "speculative_tokens",
        (4, 8, 12, 16),
        12,
        "speculation",
        "Tokens of one draft.",
        when=("speculation", ("ngram",)),
    )
    yield Knob(
        "ngram_breadth",
        (1, 4, 10),
        10,
        "speculation",
        "Continuations that are drafted side by side.",
        when=("speculation", ("ngram",)),
    )


def flags(k: Mapping[str, Value]) -> Iterator[Said]:
    """What is left to SGLang is not said."""
    for name, value in k.items():
        if (said := flag(name, value)) is not None:
            yield said


def flag(name: str, value: Value) -> Said | None:
    """How one knob is said; None: nothing is said, or it is no flag of its own."""
    if (name, value) == ("speculation", "ngram"):
        return "--speculative-algorithm", "NGRAM"
    if isinstance(value, bool):
        switch = SWITCHES.get((name, value))
        return None if switch is None else (switch, None)
    if name in VALUES and value != AUTO and PLAIN.get(name) != value:
        return VALUES[name], str(value)
    return None


def asked_of_log(k: Mapping[str, Value]) -> dict[str, str]:
    """What the log should say, by SGLang's own names; what was left to it is left out."""
    return {
        said: "None" if value == "none" else str(value)
        for name, said in SAID_IN_LOG
        if (value := k.get(name, AUTO)) != AUTO
    }
