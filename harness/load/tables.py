"""The records of a run as a table: their schema, and how the load child's rows become a Parquet file.

Knows nothing of how they came about, or of what they are good for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from harness.load.records import ERRORS, NONE, PlannedRequest
from harness.load.rows import HEAD, HEAD_WORDS, WORD

RECORD_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),  # position in the plan
        pa.field("t_int_ns", pa.int64(), nullable=False),  # intended send time
        pa.field("t_send_ns", pa.int64()),  # after the last byte was sent; null: never sent
        pa.field("t_first_ns", pa.int64()),  # first chunk with content; null: none came
        pa.field("t_last_ns", pa.int64()),  # last chunk with content
        pa.field("t_end_ns", pa.int64(), nullable=False),  # response over, error, or timeout
        pa.field("chunk_ns", pa.list_(pa.int64()), nullable=False),  # every chunk with content
        pa.field("prompt_tokens_asked", pa.int64(), nullable=False),
        pa.field("output_tokens_asked", pa.int64(), nullable=False),
        pa.field("prompt_tokens", pa.int64()),  # usage.prompt_tokens; null: server did not say
        pa.field("cached_tokens", pa.int64()),  # usage.prompt_tokens_details.cached_tokens
        pa.field("output_tokens", pa.int64()),  # usage.completion_tokens
        pa.field("finish_reason", pa.string()),
        pa.field("http_status", pa.int64()),
        pa.field("error", pa.string()),  # null: success. Else one of ERRORS
        pa.field("connection_reused", pa.bool_(), nullable=False),
        pa.field("bytes_received", pa.int64(), nullable=False),
        pa.field("traffic_class", pa.string(), nullable=False),  # of a mix of classes; "": there is just one
        pa.field("session", pa.int64()),  # the conversation it is a turn of; null: it stands alone
        pa.field("turn", pa.int64(), nullable=False),  # of its session, from 0
    ]
)

_OF_THE_PLAN = ("prompt_tokens_asked", "output_tokens_asked", "traffic_class", "session", "turn")


def table_of(rows: bytes, requests: Sequence[PlannedRequest]) -> pa.Table:
    """The records in order of their index. ``rows``: what pack_row made, one after the other.

    ``requests``: of the plan, each at the position that is its index.
    """
    words = np.frombuffer(rows, dtype=np.int64)
    starts = _starts(words)
    heads = words[starts[:, None] + np.arange(HEAD_WORDS)] if starts.size else np.empty((0, HEAD_WORDS), np.int64)
    order = np.argsort(heads[:, 0], kind="stable")
    starts, heads = starts[order], heads[order]
    by_name = {name: heads[:, i] for i, name in enumerate(HEAD)}
    counts = by_name["chunks"]
    chunks = [words[start + HEAD_WORDS : start + HEAD_WORDS + n] for start, n in zip(starts, counts, strict=True)]
    planned = [requests[i] for i in by_name["index"].tolist()]
    errors = [None if code == NONE else ERRORS[code] for code in by_name["error"].tolist()]
    finish = heads[:, len(HEAD) :].tobytes()
    width = (HEAD_WORDS - len(HEAD)) * WORD
    columns = {name: pa.array([getattr(r, name) for r in planned]) for name in _OF_THE_PLAN}
    columns |= {name: _nullable(by_name[name]) for name in HEAD if name in RECORD_SCHEMA.names}
    columns["t_first_ns"] = pa.array([c[0] if c.size else None for c in chunks], pa.int64())
    columns["t_last_ns"] = pa.array([c[-1] if c.size else None for c in chunks], pa.int64())
    columns["chunk_ns"] = pa.ListArray.from_arrays(
        pa.array(np.concatenate(([0], np.cumsum(counts))), pa.int32()),
        pa.array(np.concatenate([*chunks, np.empty(0, np.int64)])),
    )
    columns["connection_reused"] = pa.array(by_name["connection_reused"].astype(bool))
    columns["error"] = pa.array(errors, pa.string())
    columns["finish_reason"] = pa.array(
        [
            finish[i * width : (i + 1) * width].rstrip(b"\0").decode("utf-8", "replace") or None
            for i in range(len(planned))
        ],
        pa.string(),
    )
    return pa.Table.from_arrays([columns[f.name].cast(f.type) for f in RECORD_SCHEMA], schema=RECORD_SCHEMA)


def write_records(table: pa.Table, metadata: Mapping[str, str], path: Path) -> None:
    """All at once, under a temporary name until complete. Raises OSError."""
    partial = path.with_suffix(".partial")
    try:
        pq.write_table(table.replace_schema_metadata(dict(metadata)), partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _starts(words: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each row begins: its head says how many stamps follow."""
    starts, at = [], 0
    chunks = HEAD.index("chunks")
    while at < words.size:
        starts.append(at)
        at += HEAD_WORDS + int(words[at + chunks])
    return np.array(starts, dtype=np.int64)


def _nullable(values: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(values, mask=values == NONE)
