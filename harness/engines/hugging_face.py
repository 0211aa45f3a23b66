"""What engines share that load models in Hugging Face format.

Knows nothing of flags or memory.
"""

from pathlib import Path

from harness.engines.base import ResolvedModel
from scenarios.errors import UserError
from scenarios.space import Value

TEMPLATE_ROOM_TOKENS = 256  # beyond model.context_tokens: what a chat template adds to the longest request
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def unbuilt(model: ResolvedModel) -> tuple[tuple[str, Value, str], ...]:
    """`SearchSpace.absent`: the checkpoints that could be here, and how each is built."""
    return tuple(("variant", name, why) for name, why in model.unbuilt.items())


def folder_of(model: ResolvedModel, variant: str) -> Path:
    folder = model.variants[variant]
    if not folder.is_dir():
        raise UserError(
            f"this engine serves models in Hugging Face format; {folder.name} is a file: give a folder as model.path, "
            "or use engine.name: llamacpp"
        )
    return folder
