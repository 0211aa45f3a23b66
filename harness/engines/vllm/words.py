"""What vLLM's log says: why it ended, and what it really runs with.

Knows nothing of processes. The words are those of releases 0.20 to 0.32; lines that only inform or warn are no reasons.
"""

import re
from collections.abc import Iterator, Mapping

from harness.engines import words
from harness.errors import FailureClass

REASONS: tuple[tuple[FailureClass, str], ...] = (
    ("port_taken", r"address already in use|\[Errno 98\]"),
    (
        "out_of_memory",
        (
            r"larger than the available KV cache memory|No available memory for the cache blocks"
            r"|OutOfMemoryError|CUDA out of memory|out of memory|DefaultCPUAllocator: can't allocate memory"
            r"|Cannot allocate memory|Free memory on device .* is less than desired|MemoryError|std::bad_alloc"
            r"|[Nn]ot enough (available )?memory|Available memory on node .* less than"
        ),
    ),
    ("bad_flag", r"error: (unrecognized arguments|argument |the following arguments)|Unexpected keyword argument"),
    (
        "bad_model",
        (
            r"Invalid repository ID or local directory|is not a (valid|local) (model|folder)|Repository Not Found"
            r"|does not appear to have a file named|SafetensorError|HeaderTooLarge|InvalidHeader|IncompleteBuffer"
            r"|Cannot find any model weights|not a valid JSON file|should have a `model_type`|no safetensors"
            r"|Can't load (the configuration|tokenizer)|gated repo|LocalEntryNotFoundError|Unrecognized model"
        ),
    ),
    (
        "unsupported",
        (
            r"not supported|unsupported|Unknown quantization method|requires? .*(AVX|avx|AMX|capability|CUDA|GPU)"
            r"|minimum capability|not compatible|No module named|is not available|not implemented"
            r"|'_OpNamespace' .* has no attribute"  # a kernel that is not built for this processor
        ),
    ),
)
NO_REASON = re.compile(
    r"\b(INFO|WARNING|DEBUG)\b\s+\d\d-\d\d|^\s*(INFO|WARNING|DEBUG):|\bUserWarning\b|\bFutureWarning\b"
)

ENGINE_LINE = re.compile(r"Initializing a V1 LLM engine \(v(?P<version>[^)]*)\) with config: (?P<config>.*)")
BATCHED_LINE = re.compile(r"Chunked prefill is enabled with max_num_batched_tokens=(\d+)")
KV_LINE = re.compile(r"KV cache size: ([\d,]+) tokens")
ASYNC_LINE = re.compile(r"Asynchronous scheduling is (enabled|disabled)")
FIELDS = (
    "dtype",
    "max_seq_len",
    "tensor_parallel_size",
    "data_parallel_size",
    "quantization",
    "enforce_eager",
    "kv_cache_dtype",
    "enable_prefix_caching",
    "enable_chunked_prefill",
)


def classify(log: str, exit_code: int | None) -> FailureClass | None:
    return words.classify(log, exit_code, REASONS, NO_REASON)


def resolved(log: str) -> dict[str, str]:
    """What the running engine says that it runs with, by the names of its own configuration."""
    found: dict[str, str] = {}
    if line := ENGINE_LINE.search(log):
        found["version"] = line["version"]
        for name in FIELDS:
            if value := re.search(rf"\b{name}=([^,)\s]+)", line["config"]):
                found[name] = value[1].removeprefix("torch.")
        if spoken := re.search(r"speculative_config=(None|SpeculativeConfig\(method='?([\w-]+))", line["config"]):
            found["speculation"] = spoken[2] or "none"
    for name, pattern in (("max_num_batched_tokens", BATCHED_LINE), ("kv_cache_tokens", KV_LINE)):
        if value := pattern.search(log):
            found[name] = value[1].replace(",", "")
    if value := ASYNC_LINE.search(log):
        found["async_scheduling"] = str(value[1] == "enabled")
    return found


def disagreements(asked: Mapping[str, str], log: str) -> Iterator[str]:
    return words.disagreements(asked, resolved(log), "vLLM")
