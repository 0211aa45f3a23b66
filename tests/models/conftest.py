"""A GGUF file small enough to make in milliseconds, with everything a real one has."""

import gguf
import numpy as np
import pytest

METADATA = {"llama.block_count": 2, "llama.embedding_length": 64, "llama.context_length": 256}


def write_gguf(path, *, dtype=np.float16, file_type=gguf.LlamaFileType.MOSTLY_F16, seed=0):
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in METADATA.items():
        writer.add_uint32(key, value)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_token_list([f"token{i}" for i in range(50)])
    writer.add_token_types([1] * 50)
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", rng.normal(size=(50, 64)).astype(dtype))
    writer.add_tensor("blk.0.ffn_up.weight", rng.normal(size=(96, 64)).astype(dtype))
    writer.add_tensor("blk.0.odd.weight", rng.normal(size=(4, 20)).astype(dtype))
    writer.add_tensor("blk.0.attn_norm.weight", rng.normal(size=64).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def make_gguf():
    return write_gguf


@pytest.fixture
def tiny(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("AUTOTUNE_MODELS", str(folder))
    return folder
