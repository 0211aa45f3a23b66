"""One finished request as the load child keeps it: a row of 64-bit integers, as short as it can be.

Knows nothing of what the plan says of the request: the parent has the plan (tables.py).
"""

import struct

from harness.load.exchange import Exchange
from harness.load.records import ERRORS, NONE

WORD = 8
HEAD_WORDS = 16
FINISH_BYTES = 32  # a longer reason is cut
HEAD = (  # words of a row's head, in order; the reason for finishing comes last, then the chunk stamps
    "index",
    "t_int_ns",
    "t_send_ns",
    "t_end_ns",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "http_status",
    "error",  # position in ERRORS
    "connection_reused",
    "bytes_received",
    "chunks",
)
_HEAD = struct.Struct(f"={len(HEAD)}q{FINISH_BYTES}s")


def pack_row(exchange: Exchange, t0_ns: int) -> bytes:
    """Times relative to ``t0_ns``; `NONE` stands for None. Only once it has ended."""
    assert exchange.t_end_ns is not None
    chunk_ns = exchange.chunk_ns
    prompt_tokens, cached_tokens, output_tokens = exchange.usage
    head = _HEAD.pack(
        exchange.request.index,
        exchange.t_int_ns - t0_ns,
        NONE if exchange.t_send_ns is None else exchange.t_send_ns - t0_ns,
        exchange.t_end_ns - t0_ns,
        NONE if prompt_tokens is None else prompt_tokens,
        NONE if cached_tokens is None else cached_tokens,
        NONE if output_tokens is None else output_tokens,
        NONE if exchange.reader.status is None else exchange.reader.status,
        NONE if exchange.error is None else ERRORS.index(exchange.error),
        exchange.connection_reused,
        exchange.bytes_received,
        len(chunk_ns),
        (exchange.finish_reason or "").encode(errors="replace")[:FINISH_BYTES],
    )
    return head + struct.pack(f"={len(chunk_ns)}q", *[stamp_ns - t0_ns for stamp_ns in chunk_ns])
