"""The shape of a model in Hugging Face format, as far as it decides how much memory serving it takes.

Reads `config.json` and the sizes of weight files, never the weights. Knows nothing of engines.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import ModelCorrupt, ModelNotFound

CONFIG = "config.json"
WEIGHTS = ("*.safetensors", "*.bin")
MTP_LAYERS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")  # as each family calls them
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}


@dataclass(frozen=True, slots=True)
class HfShape:
    """``weight_bytes``: of the files, or reckoned from the shape where they are not here."""

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_tokens: int
    dtype: str
    weight_bytes: int
    latent_dim: int | None = None  # of one token in a layer's KV cache, where keys and values are compressed (MLA)
    quantized: str | None = None  # method of the checkpoint
    mtp_layers: int = 0  # that predict further tokens at once
    draft: "HfShape | None" = None  # loaded beside it, with a KV cache of its own
    experts: bool = False

    def kv_bytes_per_token(self, bytes_per_value: float) -> float:
        """Over all layers. Sliding windows take less; that is not reckoned with."""
        width = 2 * self.kv_heads * self.head_dim if self.latent_dim is None else self.latent_dim
        return self.layers * width * bytes_per_value


def shape(folder: Path) -> HfShape:
    """Raises ModelNotFound, ModelCorrupt."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as err:
        raise ModelNotFound(f"{path} does not exist: {folder} is not a model in Hugging Face format") from err
    except ValueError as err:
        raise ModelCorrupt(f"{path}: not JSON: {err}") from err
    return of_config(config, path, _bytes_on_disk(folder))


def of_config(config: dict[str, Any], path: Path, weight_bytes: int | None) -> HfShape:
    """``weight_bytes`` None: reckoned. Raises ModelCorrupt naming the key that is missing."""
    text = {**config, **config.get("text_config", {})}
    try:
        heads, hidden = text["num_attention_heads"], text["hidden_size"]
        latent = text.get("kv_lora_rank")
        made = HfShape(
            architecture=str((config.get("architectures") or ["unknown"])[0]),
            layers=text["num_hidden_layers"],
            hidden=hidden,
            intermediate=text["intermediate_size"],
            attention_heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=text.get("head_dim") or hidden // heads,
            vocabulary=text["vocab_size"],
            context_tokens=text["max_position_embeddings"],
            dtype=str(text.get("dtype") or text.get("torch_dtype") or "bfloat16").removeprefix("torch."),
            weight_bytes=weight_bytes or 0,
            latent_dim=None if latent is None else latent + text.get("qk_rope_head_dim", 0),
            quantized=(config.get("quantization_config") or {}).get("quant_method"),
            mtp_layers=next((text[name] or 0 for name in MTP_LAYERS if name in text), 0),
            experts=any("expert" in key for key in text),
        )
    except KeyError as err:
        raise ModelCorrupt(f"{path}: it has no {err.args[0]}: not a language model that this can serve") from err
    if weight_bytes is not None:
        return made
    if made.experts:
        raise ModelNotFound(f"{path.parent}: a mixture of experts whose weights are not here cannot be reckoned")
    reckoned = parameters(made, tied=bool(text.get("tie_word_embeddings", False))) * BYTES.get(made.dtype, 2)
    return of_config(config, path, reckoned)


def parameters(s: HfShape, *, tied: bool) -> int:
    """Of a decoder with gated feed-forward layers and grouped-query attention (Llama and its kin)."""
    attention = s.hidden * s.head_dim * (2 * s.attention_heads + 2 * s.kv_heads)
    layer = attention + 3 * s.hidden * s.intermediate + 2 * s.hidden
    return s.layers * layer + s.vocabulary * s.hidden * (1 if tied else 2) + s.hidden


def _bytes_on_disk(folder: Path) -> int | None:
    """Of the first kind of weight file that is there: a folder may hold the same weights twice."""
    for pattern in WEIGHTS:
        if sizes := [file.stat().st_size for file in folder.glob(pattern)]:
            return sum(sizes)
    return None
