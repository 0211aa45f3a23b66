"""What engines share that load models in Hugging Face format: where a checkpoint is, how large it is, and its knobs.

Knows nothing of memory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.engines.base import HostLimits, ResolvedModel
from harness.engines.flags import Said
from harness.models.hf_shape import HfShape, shape
from scenarios.errors import UserError
from scenarios.space import Knob, Value

TEMPLATE_ROOM_TOKENS = 256  # beyond model.context_tokens: what a chat template adds to the longest request
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One variant, as an engine loads it. ``source``: a folder, or the repository of which it fetches ``revision``."""

    shape: HfShape
    source: str
    revision: str | None
    longest_tokens: int  # of one request, prompt and answer

    @property
    def revision_flag(self) -> tuple[Said, ...]:
        return () if self.revision is None else (("--revision", self.revision),)

    @property
    def env(self) -> Mapping[str, str]:
        return OFFLINE if self.revision is None else {}


def checkpoint(model: ResolvedModel, variant: str) -> Checkpoint:
    """Raises UserError where it is a file of another format."""
    folder = _folder(model, variant)
    about = shape(folder)
    source, revision = model.repositories.get(variant, (str(folder), None))
    longest_tokens = min(about.context_tokens, model.ref.context_tokens + TEMPLATE_ROOM_TOKENS)
    return Checkpoint(about, source, revision, longest_tokens)


def unbuilt(model: ResolvedModel) -> tuple[tuple[str, Value, str], ...]:
    """`SearchSpace.absent`: the checkpoints that could be here, and how each is built."""
    return tuple(("variant", name, why) for name, why in model.unbuilt.items())


def variant(model: ResolvedModel, *, recompiles: bool = False) -> Knob:
    return Knob(
        "variant",
        tuple(model.variants),
        model.reference_variant,
        "precision",
        "Checkpoint that is loaded.",
        affects_output=True,
        recompiles=recompiles,
    )


def quantization(model: ResolvedModel, methods: tuple[str, ...], *, recompiles: bool = False) -> Knob:
    """Of the published weights alone: the other checkpoints are quantised already."""
    return Knob(
        "quantization",
        ("none", *methods),
        "none",
        "precision",
        "Quantise the weights while they are loaded.",
        affects_output=True,
        when=("variant", (model.reference_variant,)),
        recompiles=recompiles,
    )


def parallel(shape: HfShape, host: HostLimits, *, recompiles: bool = False) -> Iterator[Knob]:
    """None on a machine with one GPU. ``recompiles``: for another number of GPUs that share a copy."""
    gpus = tuple(n for n in (1, 2, 4, 8, 16) if n <= len(host.gpu_memory_bytes))
    if len(gpus) > 1:
        split = tuple(n for n in gpus if shape.attention_heads % n == 0)
        said = "GPUs that share one copy of the model."
        yield Knob("tensor_parallel", split, 1, "compute", said, recompiles=recompiles)
        yield Knob("data_parallel", gpus, 1, "compute", "Copies of the model, each on GPUs of its own.")


def _folder(model: ResolvedModel, variant: str) -> Path:
    folder = model.variants[variant]
    if not folder.is_dir():
        raise UserError(
            f"this engine serves models in Hugging Face format; {folder.name} is a file: give a folder as model.path, "
            "or use engine.name: llamacpp"
        )
    return folder
