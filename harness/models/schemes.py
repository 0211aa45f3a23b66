"""The precisions in which a model in Hugging Face format can be built: what each is, who builds it, with what.

Knows nothing of folders or of processes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.engines.base import HostLimits
from harness.models.hf_shape import HfShape
from scenarios.errors import UserError

GIB = 1 << 30
GROUP_SIZES = (128, 64, 32)  # vLLM's kernels take these; larger ones cost fewer bytes for scales
MEMORY_SHARE = 1.5  # of the weights: they are loaded whole, and a layer at a time is held twice
CPU_LIMIT_S = 4 * 3600
CPU_S_PER_GIB_AND_TOKEN = 0.15  # calibrating on two cores: docs/precisions.md


@dataclass(frozen=True, slots=True)
class Scheme:
    """``builder``: the environment it is built in. ``settings``: the builder's own words for it."""

    name: str
    builder: str
    method: str
    settings: Mapping[str, Any]
    calibrated: bool


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            "w8a8-int8",
            "llmcompressor",
            "weights INT8 by output channel, round to nearest; activations INT8 by token at run time; SmoothQuant",
            {"scheme": "W8A8", "smoothing_strength": 0.8, "ignore": ["lm_head"]},
            calibrated=True,
        ),
        Scheme(
            "fp8-dynamic",
            "llmcompressor",
            "weights FP8 (E4M3) by output channel, round to nearest; activations FP8 by token at run time",
            {"scheme": "FP8_DYNAMIC", "ignore": ["lm_head"]},
            calibrated=False,
        ),
        Scheme(
            "gptq-int4",
            "gptqmodel",
            "weights INT4 in groups, symmetric, by GPTQ; activations as they are",
            {"bits": 4, "sym": True, "desc_act": False},
            calibrated=True,
        ),
    )
}
IN_FLIGHT = {  # what is no checkpoint: the engine quantises while it loads
    "bitsandbytes": "search.knobs.quantization: [none, bitsandbytes]",
    "fp8": "search.knobs.quantization: [none, fp8]; a checkpoint in FP8 is `--scheme fp8-dynamic`",
}


def named(name: str) -> Scheme:
    """Raises UserError: not a scheme, or one that nobody builds."""
    if name in IN_FLIGHT:
        raise UserError(
            f"{name} is a launch knob, not a checkpoint: vLLM quantises the weights while it loads them, so there is "
            f"nothing to build; in a scenario for engine vllm: {IN_FLIGHT[name]}"
        )
    if name not in SCHEMES:
        raise UserError(f"scheme of a model in Hugging Face format must be one of {', '.join(SCHEMES)}, got {name}")
    return SCHEMES[name]


def settings(scheme: Scheme, shape: HfShape) -> dict[str, Any]:
    """The builder's settings for this model. Raises UserError where no group of weights divides its layers."""
    if scheme.builder != "gptqmodel":
        return dict(scheme.settings)
    inputs = (shape.hidden, shape.intermediate, shape.attention_heads * shape.head_dim)
    fitting = [size for size in GROUP_SIZES if all(width % size == 0 for width in inputs)]
    if not fitting:
        raise UserError(
            f"{scheme.name}: groups of {', '.join(map(str, GROUP_SIZES))} weights must divide the inputs of every "
            f"layer, got widths {', '.join(map(str, inputs))}; choose w8a8-int8 or fp8-dynamic"
        )
    return {**scheme.settings, "group_size": fitting[0]}


def check(scheme: Scheme, shape: HfShape, host: HostLimits, calibration_tokens: int) -> None:
    """Raises UserError for a model that cannot be built so, or not on this machine, with the reason."""
    if shape.quantized is not None:
        raise UserError(f"{scheme.name}: this checkpoint is quantised already ({shape.quantized}); give the original")
    if shape.experts:
        raise UserError(
            f"{scheme.name}: a mixture of experts is not built here: few samples reach every expert; "
            "take a published checkpoint as model.path"
        )
    needed = MEMORY_SHARE * shape.weight_bytes
    if needed > host.memory_bytes:
        raise UserError(
            f"{scheme.name}: {shape.weight_bytes / GIB:.1f} GiB of weights take about {needed / GIB:.1f} GiB of memory "
            f"to build, this machine has {host.memory_bytes / GIB:.1f}: build it on a larger one, give the folder as "
            "model.path"
        )
    seconds = CPU_S_PER_GIB_AND_TOKEN * shape.weight_bytes / GIB * calibration_tokens if scheme.calibrated else 0.0
    if not host.gpu_memory_bytes and seconds > CPU_LIMIT_S:
        raise UserError(
            f"{scheme.name} needs a GPU for a model of this size: without one, calibrating "
            f"{shape.weight_bytes / GIB:.1f} GiB of weights with {calibration_tokens:,} tokens takes about "
            f"{seconds / 3600:.0f} hours (the limit is {CPU_LIMIT_S // 3600}); run it where there is one, lower "
            "--calibration-samples, or build fp8-dynamic"
        )
