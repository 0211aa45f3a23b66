"""The paged KV cache: blocks, who holds them, and prefixes that are shared.

Knows nothing of time or order of service. Blocks as in PagedAttention (Kwon et al. 2023, SOSP), sharing and eviction
as in vLLM V1: a full block of a known prefix is found by (prefix, index), held by count, and when nobody holds it any
more it waits in the queue of free blocks, least recently freed first, until it is found again or its place is needed.
A sequence's last blocks are freed before its first ones.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.engines.simulated.compiled import compiled

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]

FREE, USED_MOST = range(2)  # in `Paged.counts`
# columns of `Paged.blocks`. A free block has neighbours in the queue; of a held one, AFTER is the block that its
# sequence took before it. ENTRY: its place in `Paged.shared`, or -1
HOLDERS, BEFORE, AFTER, ENTRY = range(4)
NEWEST, TAKEN, FOUND = range(3)  # columns of `Paged.held`: block taken last, how many taken, how many found in `shared`


class Paged(NamedTuple):
    """The row after the last block is the end of the queue, which is a ring. -1 is "none"."""

    block_tokens: int
    counts: Int64s  # (2,): blocks that are free; most that were ever held
    blocks: Int32s  # (blocks + 1, 4)
    shared: Int32s  # (known blocks,) the block that has it
    chain: Int64s  # (sum of the prefixes' blocks,) place in `shared` of each block of each prefix
    starts: Int64s  # (prefixes + 1,) where each prefix begins in `chain`
    held: Int32s  # (sequences, 3); those found come before those taken


def paged(blocks: int, block_tokens: int, sequences: int, prefix_tokens: Int64s, known_blocks: int = 0) -> Paged:
    """An empty cache. ``prefix_tokens``: (prefixes,) the longest that each may become.

    known_blocks: 0: no two prefixes have a block in common. Otherwise whoever enqueues writes into `chain` which of
    so many known blocks a prefix consists of: prefixes may begin alike.
    """
    ring = np.arange(blocks + 1, dtype=np.int32)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(prefix_tokens // block_tokens)])
    rows = [np.zeros_like(ring), np.roll(ring, 1), np.roll(ring, -1), np.full_like(ring, -1)]
    return Paged(
        block_tokens=block_tokens,
        counts=np.array([blocks, 0], np.int64),
        blocks=np.ascontiguousarray(np.stack(rows, axis=1)),
        shared=np.full(known_blocks or int(starts[-1]), -1, np.int32),
        chain=np.arange(starts[-1]),
        starts=starts,
        held=np.tile(np.array([-1, 0, 0], np.int32), (sequences, 1)),
    )


@compiled
def lookup(kv: Paged, prefix: int, most: int) -> int:
    """How many of the first ``most`` blocks of ``prefix`` are there, without a gap."""
    start = kv.starts[prefix]
    most = min(most, kv.starts[prefix + 1] - start)
    n = 0
    while n < most and kv.shared[kv.chain[start + n]] >= 0:
        n += 1
    return n


@compiled
def unheld(kv: Paged, prefix: int, n: int) -> int:
    """How many of the first ``n`` blocks of ``prefix`` nobody holds: holding them takes them from the free ones."""
    start = kv.starts[prefix]
    count = 0
    for i in range(n):
        count += kv.blocks[kv.shared[kv.chain[start + i]], HOLDERS] == 0
    return count


@compiled
def hold(kv: Paged, sequence: int, prefix: int, n: int) -> None:
    """``sequence``, which holds nothing, begins with the first ``n`` blocks of ``prefix``; all are there."""
    blocks = kv.blocks
    start = kv.starts[prefix]
    for i in range(n):
        block = kv.shared[kv.chain[start + i]]
        if blocks[block, HOLDERS] == 0:
            blocks[blocks[block, BEFORE], AFTER] = blocks[block, AFTER]
            blocks[blocks[block, AFTER], BEFORE] = blocks[block, BEFORE]
            kv.counts[FREE] -= 1
        blocks[block, HOLDERS] += 1
    kv.held[sequence, FOUND] = n


@compiled
def take(kv: Paged, sequence: int, n: int) -> None:
    """``n`` more blocks for ``sequence``; as many are free. What was to be found in them is forgotten."""
    blocks = kv.blocks
    end = len(blocks) - 1
    newest = kv.held[sequence, NEWEST]
    for _ in range(n):
        block = blocks[end, AFTER]
        blocks[end, AFTER] = blocks[block, AFTER]
        blocks[blocks[block, AFTER], BEFORE] = end
        if blocks[block, ENTRY] >= 0:
            kv.shared[blocks[block, ENTRY]] = -1
            blocks[block, ENTRY] = -1
        blocks[block, HOLDERS] = 1
        blocks[block, AFTER] = newest
        newest = block
    kv.held[sequence, NEWEST] = newest
    kv.held[sequence, TAKEN] += n
    kv.counts[FREE] -= n
    kv.counts[USED_MOST] = max(kv.counts[USED_MOST], end - kv.counts[FREE])


@compiled
def publish(kv: Paged, sequence: int, prefix: int, first: int, end: int) -> None:
    """Blocks ``first`` … ``end`` - 1 of ``sequence`` are full: others may find them, unless they can already."""
    blocks = kv.blocks
    start = kv.starts[prefix]
    end = min(end, kv.starts[prefix + 1] - start)
    found = kv.held[sequence, FOUND]
    index = found + kv.held[sequence, TAKEN] - 1
    block = kv.held[sequence, NEWEST]
    while index >= max(first, found):
        if index < end and kv.shared[kv.chain[start + index]] < 0:
            kv.shared[kv.chain[start + index]] = block
            blocks[block, ENTRY] = kv.chain[start + index]
        block = blocks[block, AFTER]
        index -= 1


@compiled
def release(kv: Paged, sequence: int, prefix: int) -> None:
    """``sequence`` holds nothing any more."""
    blocks = kv.blocks
    block = kv.held[sequence, NEWEST]
    for _ in range(kv.held[sequence, TAKEN]):
        older = blocks[block, AFTER]
        kv.counts[FREE] += _let_go(blocks, block)
        block = older
    for i in range(kv.held[sequence, FOUND] - 1, -1, -1):
        kv.counts[FREE] += _let_go(blocks, kv.shared[kv.chain[kv.starts[prefix] + i]])
    kv.held[sequence, NEWEST] = -1
    kv.held[sequence, TAKEN] = 0
    kv.held[sequence, FOUND] = 0


@compiled
def _let_go(blocks: Int32s, block: int) -> int:
    """1 if it is free now: last in the queue."""
    blocks[block, HOLDERS] -= 1
    if blocks[block, HOLDERS] > 0:
        return 0
    end = len(blocks) - 1
    last = blocks[end, BEFORE]
    blocks[last, AFTER] = block
    blocks[block, BEFORE] = last
    blocks[block, AFTER] = end
    blocks[end, BEFORE] = block
    return 1
