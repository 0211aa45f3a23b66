"""Makes one GGUF file of another: the same model with its matrices in another number type.

Knows nothing of stores or names. Naive on purpose: every matrix, the token embedding included, is rounded
to the asked type by nearest value per block, without calibration and without keeping sensitive tensors at
higher precision, as `llama-quantize --pure` does. So Q4_0 loses real accuracy: that is for the gate to catch.
Vectors (norms, biases) and matrices whose rows do not divide into blocks stay in full precision. Metadata is
copied byte for byte, tokenizer and chat template included, except for `general.file_type`.
"""

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from harness.models.gguf_header import MAGIC, Header, Tensor, aligned, read_header, stored_bytes
from harness.progress import Progress
from scenarios.errors import UserError

METHODS: dict[str, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
ON_REQUEST = ("q4_1",)  # between two others: built where it is asked for
FULL_PRECISION = ("f32", "bf16", "f16")
_FILE_TYPE = "general.file_type"
_UINT32 = 4


def own_variant(header: Header) -> str:
    """What the file is, in lower case: its declared type, or the type that most of its bytes have."""
    declared = header.values.get(_FILE_TYPE)
    if declared is not None and declared in set(LlamaFileType):
        return str(LlamaFileType(declared).name.removeprefix("MOSTLY_").removeprefix("ALL_").lower())
    bytes_by_type: dict[str, int] = {}
    for tensor in header.tensors:
        name = tensor.type.name.lower()
        bytes_by_type[name] = bytes_by_type.get(name, 0) + tensor.size_bytes
    return max(bytes_by_type, key=lambda name: bytes_by_type[name])


def convert(source: Path, target: Path, variant: str, on_progress: Progress) -> str:
    """Writes ``target`` and returns its SHA-256. Raises UserError for a source type that cannot be read."""
    kind, file_type = METHODS[variant]
    header = read_header(source)
    types = [_target_type(tensor, kind) for tensor in header.tensors]
    total = sum(tensor.size_bytes for tensor in header.tensors)
    weights = np.memmap(source, dtype=np.uint8, mode="r")
    digest = hashlib.sha256()
    done = 0
    with target.open("wb") as file:

        def write(data: bytes | memoryview) -> None:
            file.write(data)
            digest.update(data)

        write(_header_bytes(header, types, file_type))
        write(bytes(aligned(file.tell(), header.alignment) - file.tell()))
        for tensor, to in zip(header.tensors, types, strict=True):
            stored = weights[tensor.offset : tensor.offset + tensor.size_bytes]
            data = stored if to is tensor.type else quants.quantize(_values(source, tensor, stored), to)
            write(np.ascontiguousarray(data).view(np.uint8).data)
            write(bytes(aligned(file.tell(), header.alignment) - file.tell()))
            done += tensor.size_bytes
            on_progress(done, total, f"{variant} from {source.stem}")
    return digest.hexdigest()


def _target_type(tensor: Tensor, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(tensor.shape) < 2:
        return tensor.type if tensor.type is GGMLQuantizationType.F32 else GGMLQuantizationType.F32
    block, _ = GGML_QUANT_SIZES[kind]
    return kind if tensor.shape[-1] % block == 0 else GGMLQuantizationType.F16


def _values(source: Path, tensor: Tensor, stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The tensor's numbers, in its shape."""
    rows = stored.reshape(*tensor.shape[:-1], -1)
    typed: dict[GGMLQuantizationType, Any] = {
        GGMLQuantizationType.F32: np.float32,
        GGMLQuantizationType.F16: np.float16,
    }
    try:
        values = quants.dequantize(rows.view(typed.get(tensor.type, np.uint8)), tensor.type)
    except NotImplementedError as err:
        raise UserError(
            f"{source}: tensor {tensor.name} is {tensor.type.name}, which cannot be converted; "
            "give a file in F16, Q8_0 or a common K-quant"
        ) from err
    return np.asarray(values, dtype=np.float32)


def _header_bytes(header: Header, types: list[GGMLQuantizationType], file_type: LlamaFileType) -> bytes:
    metadata = bytearray(header.metadata)
    n_metadata = header.n_metadata
    if _FILE_TYPE in header.at:
        struct.pack_into("<I", metadata, header.at[_FILE_TYPE], file_type)
    else:
        metadata += _text(_FILE_TYPE) + struct.pack("<II", _UINT32, file_type)
        n_metadata += 1
    out = bytearray(MAGIC + struct.pack("<IQQ", header.version, len(types), n_metadata) + metadata)
    offset = 0
    for tensor, kind in zip(header.tensors, types, strict=True):
        dims = tuple(reversed(tensor.shape))
        out += _text(tensor.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        offset = aligned(offset + stored_bytes(tensor.shape, kind), header.alignment)
    return bytes(out)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
