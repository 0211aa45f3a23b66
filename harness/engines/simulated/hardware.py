"""Named accelerators and model shapes: the figures that the simulated engine's clock is made of.

Knows nothing of settings or steps. The figures and their sources are in `hardware.toml`.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from scenarios.errors import UserError

Precision = Literal["bf16", "fp8", "int8"]


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device. ``flops``: dense FLOP/s by precision; one that is missing has no units for it."""

    name: str
    memory_bytes: int
    memory_bytes_per_s: float
    flops: Mapping[Precision, float]
    link_bytes_per_s: float  # to its peers, one direction
    link_latency_s: float  # of one small all-reduce
    load_bytes_per_s: float  # weights from disk
    compute_efficiency: float  # share of `flops` that matrix products reach
    memory_efficiency: float  # share of `memory_bytes_per_s` that kernels reach
    step_overhead_s: float  # of every step
    launch_s_per_layer: float  # what launching kernels takes without a graph: hidden behind longer work
    reserved_bytes: int  # driver and libraries, not part of gpu_memory_utilization
    graphs: bool  # whether steps can be captured and replayed


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder with grouped attention and a gated feed-forward layer."""

    name: str
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied_embeddings: bool
    max_context_tokens: int
    draft_parameters: int  # of the model that drafts for it
    draft_layers: int

    @property
    def head_parameters(self) -> int:
        """Of the matrix from the last layer to the vocabulary."""
        return self.hidden * self.vocabulary

    @property
    def layer_parameters(self) -> int:
        """All that every token passes through: neither embedding nor head."""
        return self.parameters - self.head_parameters * (1 if self.tied_embeddings else 2)

    def kv_bytes_per_token(self, number_bytes: int = 2) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * number_bytes


def accelerator(name: str) -> Accelerator:
    """Raises UserError with the names there are."""
    return Accelerator(name=name, **_entry("accelerator", name))


def model(name: str) -> ModelShape:
    """Raises UserError with the names there are."""
    return ModelShape(name=name, **_entry("model", name))


def accelerators() -> tuple[str, ...]:
    return tuple(_figures()["accelerator"])


def models() -> tuple[str, ...]:
    return tuple(_figures()["model"])


def _entry(kind: str, name: str) -> dict[str, Any]:
    known: dict[str, dict[str, Any]] = _figures()[kind]
    if name not in known:
        raise UserError(f"no simulated {kind} is called `{name}`; there are {', '.join(known)}")
    return known[name]


@cache
def _figures() -> dict[str, Any]:
    return tomllib.loads(files("harness.engines.simulated").joinpath("hardware.toml").read_text(encoding="utf-8"))
