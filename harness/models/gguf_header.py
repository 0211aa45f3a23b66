"""The header of a GGUF file: its metadata and where its tensors lie, read in milliseconds.

Knows nothing of weights' values, model stores or engines. (The `gguf` package's reader makes an array object of
every vocabulary entry, which takes seconds; nothing here needs them.) Format: docs/gguf.md of ggml, versions 2, 3.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from harness.errors import ModelCorrupt, ModelNotFound

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """``shape``: in numpy's order (rows first). ``offset``: from the start of the file, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """``values``: scalars and strings by key. ``lengths``: number of entries of each array.

    ``metadata``: the raw key-value section; ``at``: where in it the value of each scalar begins.
    """

    version: int
    values: dict[str, Any]
    lengths: dict[str, int]
    metadata: bytes
    at: dict[str, int]
    n_metadata: int
    tensors: tuple[Tensor, ...]
    size_bytes: int

    @property
    def alignment(self) -> int:
        return int(self.values.get("general.alignment", DEFAULT_ALIGNMENT))


def read_header(path: Path) -> Header:
    """Raises ModelNotFound, or ModelCorrupt when the file is no GGUF or is shorter than its header promises."""
    if not path.is_file():
        raise ModelNotFound(f"{path}: no such file")
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ModelCorrupt(f"{path}: not a GGUF file (it does not begin with {MAGIC.decode()})")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                header = _parse(data, size_bytes)
            except (struct.error, UnicodeDecodeError, ValueError, KeyError) as err:
                raise ModelCorrupt(f"{path}: damaged or truncated header ({err})") from err
    ends = max((t.offset + t.size_bytes for t in header.tensors), default=0)
    if ends > size_bytes:
        raise ModelCorrupt(f"{path}: truncated: its header promises {ends} bytes, got {size_bytes}")
    return header


def _parse(data: mmap.mmap, size_bytes: int) -> Header:
    version, n_tensors, n_metadata = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise ValueError(f"GGUF version must be 2 or 3, got {version}")
    start = position = 24
    values: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    at: dict[str, int] = {}
    for _ in range(n_metadata):
        key, position = _string(data, position)
        (kind,) = struct.unpack_from("<I", data, position)
        position += 4
        if kind == _ARRAY:
            lengths[key], position = _skip_array(data, position)
        elif kind == _STRING:
            values[key], position = _string(data, position)
        else:
            at[key] = position - start
            (values[key],) = struct.unpack_from(f"<{_SCALARS[kind]}", data, position)
            position += struct.calcsize(_SCALARS[kind])
    metadata = data[start:position]
    found = []
    for _ in range(n_tensors):
        name, position = _string(data, position)
        (n_dims,) = struct.unpack_from("<I", data, position)
        *dims, kind, offset = struct.unpack_from(f"<{n_dims}QIQ", data, position + 4)
        position += 4 + 8 * n_dims + 12
        found.append((name, tuple(reversed(dims)), GGMLQuantizationType(kind), offset))
    alignment = int(values.get("general.alignment", DEFAULT_ALIGNMENT))
    data_start = aligned(position, alignment)
    tensors = tuple(Tensor(n, s, t, data_start + o, stored_bytes(s, t)) for n, s, t, o in found)
    return Header(version, values, lengths, metadata, at, n_metadata, tensors, size_bytes)


def stored_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Bytes that a tensor of this shape takes in this type."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return int(math.prod(shape) // block * block_bytes)


def aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _string(data: mmap.mmap, position: int) -> tuple[str, int]:
    length: int = struct.unpack_from("<Q", data, position)[0]
    end = position + 8 + length
    if end > len(data):
        raise ValueError(f"a text of {length} bytes at byte {position} passes the end of the file")
    return data[position + 8 : end].decode(), end


def _skip_array(data: mmap.mmap, position: int) -> tuple[int, int]:
    """Number of entries, and the position behind the last."""
    kind: int
    length: int
    kind, length = struct.unpack_from("<IQ", data, position)
    position += 12
    if kind == _STRING:
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(length):
            position += 8 + unpack(data, position)[0]
    elif kind == _ARRAY:
        for _ in range(length):
            _, position = _skip_array(data, position)
    else:
        position += length * struct.calcsize(_SCALARS[kind])
    return length, position
