"""How much memory a configuration takes, and whether one request of the longest kind fits.

An estimate: what activations and graphs take is bounded, not known. Starts nothing. Settings go by vLLM's names; other
engines' adapters translate theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.engines.base import HostLimits
from harness.errors import ConfigurationImpossible
from harness.models.hf_shape import BYTES, HfShape

AUTO = "auto"  # nothing is said: the engine decides
GIB = 1 << 30
GRAPHS_BYTES = 1 << 30  # CUDA context, captured graphs, allocator slack: what is commonly seen on one GPU
DEFAULT_BATCHED_TOKENS = 8192
DEFAULT_SEQS = 256
MEMORY_SHARE = 0.9  # of the host's memory that a plan on a CPU may expect to use
WEIGHT_SHARE = {"none": 1.0, "fp8": 0.5, "eetq": 0.5, "bitsandbytes": 0.28, "bitsandbytes-nf4": 0.28}  # of 16 bits


@dataclass(frozen=True, slots=True)
class Budget:
    """``share``: of each GPU's memory, for weights and KV cache. ``knob``: what raises it.

    ``rest_apart``: activations and graphs take what is left of the GPU, not a part of the share.
    """

    engine: str
    share: float
    knob: str
    rest_apart: bool = False
    without_gpu: str = ""  # what to do where there is none


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """``kv_tokens``: what the KV cache holds, all requests together."""

    expected_bytes: int
    kv_tokens: int
    explained: str


def on_gpus(shape: HfShape, k: Mapping[str, Any], host: HostLimits, longest_tokens: int, budget: Budget) -> MemoryPlan:
    """Raises ConfigurationImpossible with the arithmetic and what to change."""
    if not host.gpu_memory_bytes:
        advice = f"; {budget.without_gpu}" if budget.without_gpu else ""
        raise ConfigurationImpossible(f"{budget.engine} needs a GPU and there is none{advice}")
    tensor, data = int(k.get("tensor_parallel", 1)), int(k.get("data_parallel", 1))
    if tensor * data > len(host.gpu_memory_bytes):
        raise ConfigurationImpossible(
            f"tensor_parallel={tensor} × data_parallel={data} needs {tensor * data} GPUs, "
            f"there are {len(host.gpu_memory_bytes)}"
        )
    gpu_bytes = min(host.gpu_memory_bytes)
    usable = budget.share * gpu_bytes
    weights = _weights(shape, k) / tensor
    activations = _activations(shape, k) / tensor + _logits(shape, k)
    rest = activations + GRAPHS_BYTES
    told_rest = f"activations {activations / GIB:.2f} + graphs {GRAPHS_BYTES / GIB:.2f}"
    if budget.rest_apart and rest > gpu_bytes - usable:
        raise ConfigurationImpossible(
            f"{told_rest} GiB do not fit beside {usable / GIB:.1f} of {gpu_bytes / GIB:.1f} GiB of each GPU; "
            f"lower {budget.knob}, or the tokens of one step"
        )
    kv = usable - weights - (0 if budget.rest_apart else rest)
    inside = "" if budget.rest_apart else f"{told_rest} + "
    beside = f", beside it {told_rest}" if budget.rest_apart else ""
    told = (
        f"{usable / GIB:.1f} of {gpu_bytes / GIB:.1f} GiB of each GPU = {_loaded(shape)} {weights / GIB:.2f} + "
        f"{inside}KV cache {max(0.0, kv) / GIB:.2f}{beside}"
    )
    per_token = _kv_per_token(shape, k, tensor)
    tokens = _fits(kv, per_token, longest_tokens, told, f"raise {budget.knob} or tensor_parallel")
    copies = f", {data} copies" if data > 1 else ""
    room = f"{told} ({tokens:,} tokens, {tokens / longest_tokens:.1f} of the longest requests){copies}"
    return MemoryPlan(round(usable * tensor * data), tokens * data, room)


def on_cpu(shape: HfShape, k: Mapping[str, Any], host: HostLimits, longest_tokens: int) -> MemoryPlan:
    """Raises ConfigurationImpossible with the arithmetic and what to change."""
    kv = int(k["kv_cache_gib"]) * GIB
    weights = _weights(shape, k)
    activations = _activations(shape, k) + _logits(shape, k)
    total = weights + kv + activations
    told = (
        f"{total / GIB:.2f} GiB = {_loaded(shape)} {weights / GIB:.2f} + activations {activations / GIB:.2f} + "
        f"KV cache {kv / GIB:.2f}"
    )
    if total > MEMORY_SHARE * host.memory_bytes:
        raise ConfigurationImpossible(
            f"{told} is more than {MEMORY_SHARE:.0%} of this host's {host.memory_bytes / GIB:.1f} GiB; "
            "lower kv_cache_gib"
        )
    tokens = _fits(kv, _kv_per_token(shape, k), longest_tokens, told, "raise kv_cache_gib")
    return MemoryPlan(round(total), tokens, f"{told} ({tokens:,} tokens)")


def _fits(kv: float, per_token: float, longest_tokens: int, told: str, advice: str) -> int:
    tokens = int(max(0.0, kv) / per_token)
    if tokens < longest_tokens:
        raise ConfigurationImpossible(
            f"not enough memory for one sequence: {longest_tokens:,} tokens need "
            f"{longest_tokens * per_token / GIB:.2f} GiB of KV cache, got {told}; "
            f"{advice}, lower model.context_tokens, or choose fewer bytes (quantization, kv_cache_dtype)"
        )
    return tokens


def _weights(shape: HfShape, k: Mapping[str, Any]) -> float:
    widened = k.get("dtype") == "float32" and shape.quantized is None
    wider = BYTES["float32"] / BYTES.get(shape.dtype, 2) if widened else 1.0
    own = shape.weight_bytes * wider * WEIGHT_SHARE[str(k.get("quantization", "none"))]
    return own + (shape.draft.weight_bytes if shape.draft else 0)  # drafts are not quantised while they are loaded


def _loaded(shape: HfShape) -> str:
    return "weights and draft" if shape.draft else "weights"


def _kv_per_token(shape: HfShape, k: Mapping[str, Any], tensor: int = 1) -> float:
    """On one of ``tensor`` GPUs, with what the weights that draft keep of the token."""
    wide = BYTES["float32"] if k.get("dtype") == "float32" else BYTES.get(shape.dtype, 2)
    own = shape.kv_bytes_per_token(1 if str(k.get("kv_cache_dtype", AUTO)).startswith("fp8") else wide)
    return own / min(tensor, shape.kv_heads) + (_kv_per_token(shape.draft, k, tensor) if shape.draft else 0)


def _activations(shape: HfShape, k: Mapping[str, Any]) -> float:
    """The widest moment of one layer, for every token of a step: gate, up and their product, and the residual."""
    tokens = _number(k.get("max_num_batched_tokens", AUTO), DEFAULT_BATCHED_TOKENS)
    return tokens * (3 * shape.intermediate + 4 * shape.hidden) * 2.0


def _logits(shape: HfShape, k: Mapping[str, Any]) -> float:
    return _number(k.get("max_num_seqs", AUTO), DEFAULT_SEQS) * shape.vocabulary * 4.0


def _number(value: Any, otherwise: int) -> int:
    return otherwise if value == AUTO else int(value)
