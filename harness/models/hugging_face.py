"""Models in Hugging Face format: a folder of the user's, or a repository of the hub that the engine fetches itself.

Knows nothing of GGUF or of engines.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.engines.base import ResolvedModel
from harness.errors import ModelNotFound
from harness.models.hf_shape import CONFIG, WEIGHTS
from scenarios.space import digest
from scenarios.spec import ModelRef

PUBLISHED = "published"


@dataclass(frozen=True, slots=True)
class HubModel:
    """``config``: what a memory plan needs of the repository's config.json, so that one can be made without it.

    ``gguf``: the known model from whose GGUF file it can be built, where the hub cannot be reached.
    """

    name: str
    license: str
    repository: str
    revision: str
    config: Mapping[str, Any]
    gguf: str | None = None


HUB = {
    model.name: model
    for model in (
        HubModel(
            name="llama-3.1-8b-instruct",
            license="Llama 3.1 Community License",
            repository="meta-llama/Llama-3.1-8B-Instruct",
            revision="0e9e39f249a16976918f6564b8830bc894c89659",
            config={
                "architectures": ["LlamaForCausalLM"],
                "num_hidden_layers": 32,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 128256,
                "max_position_embeddings": 131072,
                "torch_dtype": "bfloat16",
                "tie_word_embeddings": False,
            },
        ),
        HubModel(
            name="smollm2-135m-instruct-hf",
            license="Apache-2.0",
            repository="HuggingFaceTB/SmolLM2-135M-Instruct",
            revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
            config={
                "architectures": ["LlamaForCausalLM"],
                "num_hidden_layers": 30,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "vocab_size": 49152,
                "max_position_embeddings": 8192,
                "torch_dtype": "bfloat16",
                "tie_word_embeddings": True,
            },
            gguf="smollm2-135m-instruct",
        ),
    )
}


def in_folder(ref: ModelRef, folder: Path, file_digest: Callable[[Path], str]) -> ResolvedModel:
    """Raises ModelNotFound where it is not a model's folder."""
    if not (folder / CONFIG).is_file():
        raise ModelNotFound(f"{folder}: a folder in Hugging Face format has a {CONFIG}; or give a GGUF file")
    return ResolvedModel(ref, folder.name, PUBLISHED, {PUBLISHED: folder}, {PUBLISHED: digest_of(folder, file_digest)})


def digest_of(folder: Path, file_digest: Callable[[Path], str]) -> str:
    """Of its configuration and its weights, not of words about them."""
    files = sorted(file for pattern in (CONFIG, *WEIGHTS) for file in folder.glob(pattern))
    return digest({file.name: file_digest(file) for file in files})


def built_folder(model: HubModel, cache: Path) -> Path:
    """Where `autotune models build` puts it."""
    return cache / f"{model.name}-built"


def of_hub(ref: ModelRef, model: HubModel, cache: Path, file_digest: Callable[[Path], str]) -> ResolvedModel:
    """The folder that was built here; else the engine fetches the weights, and here is only what plans need."""
    if (built_folder(model, cache) / CONFIG).is_file():
        return replace(in_folder(ref, built_folder(model, cache), file_digest), label=model.name)
    folder = cache / "hub" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(dict(model.config), indent=2), encoding="utf-8")
    whole = digest({"repository": model.repository, "revision": model.revision})
    return ResolvedModel(
        ref,
        model.name,
        PUBLISHED,
        {PUBLISHED: folder},
        {PUBLISHED: whole},
        repositories={PUBLISHED: (model.repository, model.revision)},
    )
