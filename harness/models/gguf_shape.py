"""The shape of a model, as far as it decides how much memory serving it takes.

Knows nothing of engines: what they add per slot or batch is theirs.
"""

from dataclasses import dataclass
from pathlib import Path

from harness.errors import ModelCorrupt
from harness.models.gguf_header import read_header


@dataclass(frozen=True, slots=True)
class ModelShape:
    architecture: str
    layers: int
    attention_heads: int
    kv_heads: int
    head_dim_k: int
    head_dim_v: int
    embedding: int
    context_tokens: int  # longest that the model was made for
    vocabulary: int
    size_bytes: int  # of the file

    def kv_bytes_per_token(self, kv_type_bytes: float) -> float:
        """Key-value cache of one token over all layers; ``kv_type_bytes``: per number, 2 for f16, 34/32 for q8_0."""
        return self.layers * self.kv_heads * (self.head_dim_k + self.head_dim_v) * kv_type_bytes


def shape(path: Path) -> ModelShape:
    """Raises ModelNotFound, ModelCorrupt."""
    header = read_header(path)
    values = header.values
    try:
        arch = values["general.architecture"]
        heads = values[f"{arch}.attention.head_count"]
        embedding = values[f"{arch}.embedding_length"]
        head_dim = values.get(f"{arch}.attention.key_length", embedding // heads)
        return ModelShape(
            architecture=arch,
            layers=values[f"{arch}.block_count"],
            attention_heads=heads,
            kv_heads=values.get(f"{arch}.attention.head_count_kv", heads),
            head_dim_k=head_dim,
            head_dim_v=values.get(f"{arch}.attention.value_length", head_dim),
            embedding=embedding,
            context_tokens=values[f"{arch}.context_length"],
            vocabulary=header.lengths["tokenizer.ggml.tokens"],
            size_bytes=header.size_bytes,
        )
    except KeyError as err:
        raise ModelCorrupt(f"{path}: its metadata has no {err.args[0]}: not a language model this can serve") from err
