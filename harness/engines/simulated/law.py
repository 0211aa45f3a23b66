"""The law of the simulated engine: settings, a device and a model become memory, seconds per step and a cold start.

Knows nothing of queues or requests. Formulas, units and what is left out: docs/simulated.md.
"""

from dataclasses import dataclass
from typing import Literal

from harness.engines.simulated.core import Limits
from harness.engines.simulated.hardware import Accelerator, ModelShape
from harness.engines.simulated.steps import StepLaw, graph_size
from harness.errors import ConfigurationImpossible

Weights = Literal["bf16", "fp8", "int4"]
KvCacheDtype = Literal["auto", "fp8"]
Speculation = Literal["none", "ngram", "draft"]

GIB = 2**30
WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "int4": 0.53}  # int4: with a 16-bit scale for every 128 and a zero point
INT4_ARITHMETIC = 0.75  # share of bf16 speed left when weights are unpacked on the way (chosen)
LOGIT_BYTES = 10  # bf16, FP32 and its softmax, per entry of the vocabulary
LARGEST_GRAPH = 512  # tokens: vLLM's `max_cudagraph_capture_size`
GRAPH_BYTES_PER_LAYER = 320_000  # of one captured size (chosen)
EXCHANGES_PER_LAYER = 2  # after attention and after the feed-forward part (Shoeybi et al. 2019, Megatron-LM)

# What launching really takes, as a multiple of what `plan_memory` expects: allocators fragment, warming up takes more
# than a step, libraries keep workspaces. So a plan can be wrong, as plans are: by 1 % of an H100's memory with the
# default settings, by up to 5 % with large batches; by 5 and 9 % of an RTX 4090's (chosen).
REAL_ACTIVATIONS = 2.0
REAL_GRAPHS = 1.15

SEQUENCE_S = 4e-6  # sampling one token and streaming it, on the host (chosen)
ACCEPTANCE = {"none": 0.0, "ngram": 0.45, "draft": 0.75}  # Leviathan et al. 2023, table 3: 0.5 to 0.9 for drafts
ACCEPTANCE_DROP = 0.4  # share lost in an endless batch (chosen; docs/simulated.md says why it falls)
ACCEPTANCE_HALF = 32.0  # batch at which half of that is lost (chosen)
NGRAM_ROUND_S = 1e-5  # looking one token up in the prompt (chosen)

PROCESS_S = 6.0  # interpreter, imports, context (chosen)
COMPILE_S = 8.0  # chosen, as the three below: some 25 s for 8B, 50 s for 70B
COMPILE_S_PER_LAYER = 0.5
CAPTURE_S_PER_LAYER = 0.004  # and captured size
PROFILE_S = 2.0  # the step that finds out how much is left for the cache


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be set, in vLLM's words. ``accelerators`` of the box: the rest of them serve as replicas."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    gpu_memory_utilization: float = 0.90
    block_size: int = 16
    weights: Weights = "bf16"
    kv_cache_dtype: KvCacheDtype = "auto"
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    tensor_parallel: int = 1
    accelerators: int = 1
    speculation: Speculation = "none"
    speculative_tokens: int = 3
    enforce_eager: bool = False


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on one device. ``explained``: one sentence for a person.

    ``starts``: whether a launch survives. Only the engine may read it: a planner cannot know.
    """

    weights_bytes: int
    activations_bytes: int
    graphs_bytes: int
    kv_cache_bytes: int
    block_bytes: int
    blocks: int
    expected_bytes: int  # all of it, with what the driver keeps
    explained: str
    starts: bool


def plan_memory(settings: Settings, device: Accelerator, shape: ModelShape, context_tokens: int) -> MemoryPlan:
    """What fits where. Raises ConfigurationImpossible with the arithmetic if not one sequence does."""
    _check(settings, device, shape, context_tokens)
    share = settings.gpu_memory_utilization * device.memory_bytes
    weights = (_weights_bytes(settings, shape) + _draft_bytes(settings, shape)) / settings.tensor_parallel
    activations = _activations_bytes(settings, shape)
    graphs = _graph_sizes(settings, device) * shape.layers * GRAPH_BYTES_PER_LAYER
    token = _kv_bytes_per_token(settings, shape) / settings.tensor_parallel
    block = token * settings.block_size
    cache = share - weights - activations
    blocks = max(0, int(cache // block))
    needed = -(-context_tokens // settings.block_size)
    sizes = (
        f"{settings.gpu_memory_utilization:g} of {device.memory_bytes / GIB:.1f} GiB on {device.name}: "
        f"{weights / GIB:.1f} GiB of weights, {activations / GIB:.1f} of activations, {max(cache, 0) / GIB:.1f} "
        f"left for the KV cache at {token / 1024:.0f} KiB a token"
    )
    if blocks < needed:
        raise ConfigurationImpossible(
            f"not enough memory for one sequence: {context_tokens} tokens need {needed * block / GIB:.1f} GiB of "
            f"KV cache ({sizes}). Raise gpu_memory_utilization or tensor_parallel, lower max_num_batched_tokens or the "
            "longest context, or take weights or a KV cache of fewer bytes."
        )
    expected = share + graphs + device.reserved_bytes
    if expected > device.memory_bytes:
        raise ConfigurationImpossible(
            f"gpu_memory_utilization {settings.gpu_memory_utilization:g} leaves too little beside it on {device.name}: "
            f"{graphs / GIB:.1f} GiB of graphs and {device.reserved_bytes / GIB:.1f} of the driver are more than "
            f"{(device.memory_bytes - share) / GIB:.1f} GiB. Lower it, or max_num_seqs, which decides how many graphs."
        )
    real = share + (REAL_ACTIVATIONS - 1) * activations + REAL_GRAPHS * graphs + device.reserved_bytes
    return MemoryPlan(
        weights_bytes=round(weights),
        activations_bytes=round(activations),
        graphs_bytes=graphs,
        kv_cache_bytes=round(blocks * block),
        block_bytes=round(block),
        blocks=blocks,
        expected_bytes=round(expected),
        explained=f"{sizes}, room for {blocks * settings.block_size} tokens (simulated)",
        starts=real <= device.memory_bytes,
    )


def _check(settings: Settings, device: Accelerator, shape: ModelShape, context_tokens: int) -> None:
    parallel = settings.tensor_parallel
    if settings.accelerators % parallel:
        raise ConfigurationImpossible(
            f"tensor_parallel {parallel} does not divide the {settings.accelerators} accelerators of this box"
        )
    if shape.kv_heads % parallel:
        raise ConfigurationImpossible(f"tensor_parallel {parallel} does not divide {shape.kv_heads} key-value heads")
    if context_tokens > shape.max_context_tokens:
        raise ConfigurationImpossible(
            f"a context of {context_tokens} tokens: {shape.name} was made for {shape.max_context_tokens}"
        )
    for knob, value in (("weights", settings.weights), ("kv_cache_dtype", settings.kv_cache_dtype)):
        if value == "fp8" and "fp8" not in device.flops:
            raise ConfigurationImpossible(f"{knob} fp8: {device.name} has no FP8 units; take another {knob}")
    if settings.max_num_batched_tokens < settings.max_num_seqs:
        raise ConfigurationImpossible(
            f"max_num_batched_tokens {settings.max_num_batched_tokens} must be at least max_num_seqs "
            f"{settings.max_num_seqs}: every running sequence gets a token in every step"
        )
    if not settings.enable_chunked_prefill and settings.max_num_batched_tokens < context_tokens:
        raise ConfigurationImpossible(
            f"without chunked prefill max_num_batched_tokens {settings.max_num_batched_tokens} must be at least the "
            f"longest context, {context_tokens}: a prompt is taken whole"
        )


def _weights_bytes(settings: Settings, shape: ModelShape) -> float:
    """Embedding and head stay in 16 bits, as checkpoints have them."""
    kept = shape.parameters - shape.layer_parameters
    return shape.layer_parameters * WEIGHT_BYTES[settings.weights] + kept * 2


def _draft_bytes(settings: Settings, shape: ModelShape) -> float:
    return shape.draft_parameters * 2.0 if settings.speculation == "draft" else 0.0


def _kv_bytes_per_token(settings: Settings, shape: ModelShape) -> float:
    number = 1 if settings.kv_cache_dtype == "fp8" else 2
    layers = shape.layers + (shape.draft_layers if settings.speculation == "draft" else 0)
    return shape.kv_bytes_per_token(number) * layers / shape.layers


def _activations_bytes(settings: Settings, shape: ModelShape) -> float:
    """Of the largest step: gated feed-forward and residual stream of every token, logits of every sequence."""
    drafted = 0 if settings.speculation == "none" else settings.speculative_tokens
    step = settings.max_num_batched_tokens * 2 * (2 * shape.intermediate / settings.tensor_parallel + 4 * shape.hidden)
    logits = settings.max_num_seqs * (1 + drafted) * shape.vocabulary * LOGIT_BYTES / settings.tensor_parallel
    return step + logits


def _largest_graph(settings: Settings, device: Accelerator) -> int:
    if settings.enforce_eager or not device.graphs:
        return 0
    drafted = 0 if settings.speculation == "none" else settings.speculative_tokens
    return min(LARGEST_GRAPH, graph_size(settings.max_num_seqs * (1 + drafted) * 2), settings.max_num_batched_tokens)


def _graph_sizes(settings: Settings, device: Accelerator) -> int:
    """How many sizes are captured."""
    largest = _largest_graph(settings, device)
    return len({graph_size(tokens) for tokens in range(1, largest + 1)})


class Law:
    """One engine with these settings: what its scheduler must keep to, and how long its steps and its start take.

    ``context_tokens``: the longest prompt and answer together that it must serve. Raises ConfigurationImpossible.
    """

    def __init__(self, settings: Settings, device: Accelerator, shape: ModelShape, context_tokens: int) -> None:
        self.settings = settings
        self.device = device
        self.shape = shape
        self.context_tokens = context_tokens
        self.memory = plan_memory(settings, device, shape, context_tokens)
        self.limits = _limits(settings, self.memory, context_tokens)
        self.steps = _steps(settings, device, shape)

    @property
    def replicas(self) -> int:
        """Engines side by side; requests go to them in turn."""
        return self.settings.accelerators // self.settings.tensor_parallel

    @property
    def compile_key(self) -> tuple[object, ...]:
        """Launches with equal keys share compiled code; the first of them makes it."""
        s = self.settings
        return (
            self.device.name,
            self.shape.name,
            self.context_tokens,
            s.weights,
            s.kv_cache_dtype,
            s.tensor_parallel,
            s.max_num_batched_tokens,
            s.speculation,
            s.enforce_eager,
        )

    @property
    def compile_s(self) -> float:
        if self.settings.enforce_eager or not self.device.graphs:
            return 0.0
        return COMPILE_S + COMPILE_S_PER_LAYER * self.shape.layers

    @property
    def cold_start_s(self) -> float:
        """Of a launch that finds nothing compiled: process, weights, compilation, profile, graphs."""
        return self.start_s(already_compiled=False)

    def start_s(self, *, already_compiled: bool) -> float:
        """Of a launch; ``already_compiled``: an earlier one had an equal `compile_key`."""
        stored = _weights_bytes(self.settings, self.shape) + _draft_bytes(self.settings, self.shape)
        capture = _graph_sizes(self.settings, self.device) * self.shape.layers * CAPTURE_S_PER_LAYER
        known = 0.0 if already_compiled else self.compile_s
        return PROCESS_S + stored / self.device.load_bytes_per_s + known + PROFILE_S + capture


def _limits(settings: Settings, memory: MemoryPlan, context_tokens: int) -> Limits:
    return Limits(
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        blocks=memory.blocks,
        block_tokens=settings.block_size,
        context_tokens=context_tokens,
        chunked_prefill=settings.enable_chunked_prefill,
        prefix_caching=settings.enable_prefix_caching,
        draft_tokens=0 if settings.speculation == "none" else settings.speculative_tokens,
    )


def _steps(settings: Settings, device: Accelerator, shape: ModelShape) -> StepLaw:
    parallel = settings.tensor_parallel
    bytes_per_s = device.memory_bytes_per_s * device.memory_efficiency * parallel
    bf16 = device.flops["bf16"] * device.compute_efficiency * parallel
    layers_flops = {
        "bf16": bf16,
        "fp8": device.flops.get("fp8", 0.0) * device.compute_efficiency * parallel,
        "int4": bf16 * INT4_ARITHMETIC,
    }[settings.weights]
    exchanges = 0 if parallel == 1 else EXCHANGES_PER_LAYER * shape.layers
    ring = 2 * (parallel - 1) / parallel  # each byte's way in a ring all-reduce (Patarasuk and Yuan 2009)
    draft_bytes = _draft_bytes(settings, shape)
    return StepLaw(
        overhead_s=device.step_overhead_s,
        sequence_s=SEQUENCE_S,
        launch_s=device.launch_s_per_layer * shape.layers,
        largest_graph=_largest_graph(settings, device),
        weights_s=shape.layer_parameters * WEIGHT_BYTES[settings.weights] / bytes_per_s,
        token_s=2 * shape.layer_parameters / layers_flops,
        head_weights_s=2 * shape.head_parameters / bytes_per_s,
        head_token_s=2 * shape.head_parameters / bf16,
        context_s=_kv_bytes_per_token(settings, shape) / bytes_per_s,
        pair_s=4 * shape.layers * shape.attention_heads * shape.head_dim / bf16,
        exchange_s=exchanges * device.link_latency_s,
        exchange_token_s=exchanges * ring * shape.hidden * 2 / device.link_bytes_per_s,
        draft_s=NGRAM_ROUND_S if settings.speculation == "ngram" else draft_bytes / bytes_per_s + _launch(device),
        draft_token_s=draft_bytes / bf16,
        acceptance=ACCEPTANCE[settings.speculation],
        acceptance_drop=ACCEPTANCE_DROP,
        acceptance_half=ACCEPTANCE_HALF,
    )


def _launch(device: Accelerator) -> float:
    """Of one layer that is in no graph: a draft is one."""
    return device.launch_s_per_layer
