import gguf
import numpy as np
import pytest

from harness.errors import ModelCorrupt, ModelNotFound
from harness.models.gguf_header import read_header
from harness.models.gguf_shape import shape
from harness.models.gguf_variants import convert, own_variant
from harness.progress import silent


def test_the_header_agrees_with_the_gguf_packages_reader(tiny):
    header, reader = read_header(tiny), gguf.GGUFReader(tiny)
    for key, value in header.values.items():
        assert value == reader.fields[key].contents()
    assert header.lengths == {"tokenizer.ggml.tokens": 50, "tokenizer.ggml.token_type": 50}
    theirs = [
        (t.name, tuple(reversed(t.shape.tolist())), t.tensor_type, t.data_offset, t.n_bytes) for t in reader.tensors
    ]
    assert [(t.name, t.shape, t.type, t.offset, t.size_bytes) for t in header.tensors] == theirs


def test_shape_and_kv_memory(tiny):
    found = shape(tiny)
    assert (found.layers, found.kv_heads, found.head_dim_k, found.context_tokens, found.vocabulary) == (
        2, 2, 16, 256, 50,
    )  # fmt: skip
    assert found.size_bytes == tiny.stat().st_size
    assert found.kv_bytes_per_token(2) == 2 * 2 * (16 + 16) * 2
    assert found.kv_bytes_per_token(34 / 32) == pytest.approx(136)


@pytest.mark.parametrize("keep", [5, 30, 200, 900, 1500, -200])
def test_a_file_cut_anywhere_is_called_corrupt(tiny, keep):
    tiny.write_bytes(tiny.read_bytes()[:keep])
    with pytest.raises(ModelCorrupt, match=r"tiny\.gguf: .*(truncated|damaged)"):
        read_header(tiny)


def test_what_is_no_model_is_named(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("GGML is not GGUF")
    with pytest.raises(ModelCorrupt, match="not a GGUF file"):
        read_header(other)
    with pytest.raises(ModelNotFound, match="no such file"):
        read_header(tmp_path / "absent.gguf")


def test_metadata_without_a_shape_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelCorrupt, match=r"no llama\.attention\.head_count"):
        shape(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("variant", "kind", "relative_error"),
    [("f16", "F16", 0.0), ("q8_0", "Q8_0", 1 / 200), ("q4_1", "Q4_1", 1 / 14), ("q4_0", "Q4_0", 1 / 7)],
)
def test_a_variant_is_the_same_model_in_another_number_type(tiny, tmp_path, variant, kind, relative_error):
    target = tmp_path / f"{variant}.gguf"
    convert(tiny, target, variant, silent)
    before, after = gguf.GGUFReader(tiny), gguf.GGUFReader(target)
    keys = set(before.fields) - {"general.file_type"}
    assert set(after.fields) == set(before.fields)
    assert {k: after.fields[k].contents() for k in keys} == {k: before.fields[k].contents() for k in keys}
    assert gguf.LlamaFileType(after.fields["general.file_type"].contents()).name == f"MOSTLY_{kind}"
    types = {t.name: t.tensor_type.name for t in after.tensors}
    assert types == {
        "token_embd.weight": kind,
        "blk.0.ffn_up.weight": kind,
        "blk.0.odd.weight": "F16",
        "blk.0.attn_norm.weight": "F32",
    }
    for old, new in zip(before.tensors, after.tensors, strict=True):
        was = gguf.quants.dequantize(old.data, old.tensor_type)
        now = gguf.quants.dequantize(new.data, new.tensor_type)
        assert np.abs(now - was).max() <= relative_error * np.abs(was).max()


def test_the_files_own_type_is_declared_or_found(make_gguf, tmp_path):
    assert own_variant(read_header(make_gguf(tmp_path / "a.gguf"))) == "f16"
    unnamed = make_gguf(tmp_path / "b.gguf", dtype=np.float32, file_type=None)
    assert own_variant(read_header(unnamed)) == "f32"
    convert(unnamed, tmp_path / "c.gguf", "q8_0", silent)
    assert own_variant(read_header(tmp_path / "c.gguf")) == "q8_0"
