"""Small models of real architectures that say the last token again, for ever; and what drafts for them, rightly.

Random words, and layers that add nothing to them: what leaves each one is multiplied by zero. A head that hands on the
word that it is given, or what its model made of it, is therefore always right.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

HIDDEN, HEAD_DIM, LAYERS, INTERMEDIATE = 128, 64, 8, 256  # EAGLE-3 looks at three different layers of eight
CONFIG = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": HIDDEN // HEAD_DIM,
    "num_key_value_heads": 1,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
Weights = dict[str, NDArray[np.float32]]


def model(folder: Path, tokenizer_of: Path, *, mtp: bool) -> Path:
    """Llama; with ``mtp`` MiMo, whose further layer drafts."""
    vocabulary = json.loads((tokenizer_of / "config.json").read_text())["vocab_size"]
    weights = {f"{name}.weight": _words(vocabulary) for name in ("model.embed_tokens", "lm_head")}
    weights["model.norm.weight"] = _ones()
    for number in range(LAYERS):
        weights |= _layer(f"model.layers.{number}.", biased=mtp)
    config = {**CONFIG, "vocab_size": vocabulary, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    if mtp:
        config |= {"model_type": "qwen2", "architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}
        own = "model.mtp_layers.0."
        norms = ("token_layernorm", "hidden_layernorm", "final_layernorm")
        weights |= {**_layer(own, biased=True), **{f"{own}{norm}.weight": _ones() for norm in norms}}
        weights[f"{own}input_proj.weight"] = _handing_on(1, of=2)
    _written(folder, config, weights)
    for name in TOKENIZER:
        shutil.copy(tokenizer_of / name, folder / name)
    return folder


def head(folder: Path, of: Path, method: str) -> Path:
    """An EAGLE head: it hands on the word. An EAGLE-3 head: what the first of three layers of its model hands on."""
    config = json.loads((of / "config.json").read_text()) | {"num_hidden_layers": 1}
    weights = _layer("layers.0." if method == "eagle" else "midlayer.", biased=False, wide=method == "eagle3")
    if method == "eagle":
        del weights["layers.0.input_layernorm.weight"]
        weights["fc.weight"] = _handing_on(0, of=2)
    else:
        weights |= {"fc.weight": _handing_on(0, of=3), "lm_head.weight": _words(config["vocab_size"])}
        weights |= {"midlayer.hidden_norm.weight": _ones(), "norm.weight": _ones()}
    _written(folder, config, weights)
    return folder


def _layer(prefix: str, *, biased: bool, wide: bool = False) -> Weights:
    """``wide``: it attends to two vectors side by side."""
    rng, into = np.random.default_rng(1), HIDDEN * (2 if wide else 1)
    made = {
        "self_attn.q_proj.weight": (HIDDEN, into),
        "self_attn.k_proj.weight": (HEAD_DIM, into),
        "self_attn.v_proj.weight": (HEAD_DIM, into),
        "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
    }
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in made.items()}
    weights["self_attn.o_proj.weight"] = np.zeros((HIDDEN, HIDDEN), np.float32)
    weights["mlp.down_proj.weight"] = np.zeros((HIDDEN, INTERMEDIATE), np.float32)
    weights |= {f"{norm}_layernorm.weight": _ones() for norm in ("input", "post_attention")}
    if biased:
        weights |= {
            f"self_attn.{of}_proj.bias": np.zeros(made[f"self_attn.{of}_proj.weight"][0], np.float32) for of in "qkv"
        }
    return {f"{prefix}{name}": values for name, values in weights.items()}


def _handing_on(place: int, *, of: int) -> NDArray[np.float32]:
    """The matrix that takes one of several vectors side by side as it is, and nothing of the others."""
    return np.hstack([np.eye(HIDDEN, dtype=np.float32) * (number == place) for number in range(of)])


def _words(vocabulary: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((vocabulary, HIDDEN), np.float32)


def _ones() -> NDArray[np.float32]:
    return np.ones(HIDDEN, np.float32)


def _written(folder: Path, config: dict[str, object], weights: Weights) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
