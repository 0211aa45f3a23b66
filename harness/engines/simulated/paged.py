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

FREE, USED_MOST = 0, 1  # places in `Paged.counts`


class Paged(NamedTuple):
    """Blocks 0 … n-1. Block n of the queue is its end: a ring. -1 is "none"."""

    block_tokens: int
    counts: Int64s  # (2,): free blocks; most that were ever held
    holders: Int32s  # (blocks,)
    before: Int32s  # (blocks + 1,) in the queue of free blocks
    after: Int32s  # (blocks + 1,) same; of a held block: the one that its sequence took before it
    entry_of: Int64s  # (blocks,) its place in `shared`
    shared: Int32s  # (sum of the prefixes' blocks,) the block that has it
    starts: Int64s  # (prefixes + 1,) where each prefix begins in `shared`
    newest: Int32s  # (sequences,) the block taken last
    taken: Int32s  # (sequences,) blocks taken from the queue
    found: Int32s  # (sequences,) blocks found in `shared`, all before those taken


def paged(blocks: int, block_tokens: int, sequences: int, prefix_tokens: Int64s) -> Paged:
    """An empty cache. ``prefix_tokens``: (prefixes,) the longest that each may become."""
    ring = np.arange(blocks + 1, dtype=np.int32)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(prefix_tokens // block_tokens)])
    return Paged(
        block_tokens=block_tokens,
        counts=np.array([blocks, 0], np.int64),
        holders=np.zeros(blocks, np.int32),
        before=np.roll(ring, 1),
        after=np.roll(ring, -1),
        entry_of=np.full(blocks, -1, np.int64),
        shared=np.full(int(starts[-1]), -1, np.int32),
        starts=starts,
        newest=np.full(sequences, -1, np.int32),
        taken=np.zeros(sequences, np.int32),
        found=np.zeros(sequences, np.int32),
    )


@compiled
def held(kv: Paged, sequence: int) -> int:
    """Blocks that ``sequence`` holds."""
    return int(kv.taken[sequence] + kv.found[sequence])


@compiled
def lookup(kv: Paged, prefix: int, most: int) -> int:
    """How many of the first ``most`` blocks of ``prefix`` are there, without a gap."""
    start = kv.starts[prefix]
    most = min(most, kv.starts[prefix + 1] - start)
    n = 0
    while n < most and kv.shared[start + n] >= 0:
        n += 1
    return n


@compiled
def unheld(kv: Paged, prefix: int, n: int) -> int:
    """How many of the first ``n`` blocks of ``prefix`` nobody holds: holding them takes them from the free ones."""
    start = kv.starts[prefix]
    count = 0
    for i in range(n):
        count += kv.holders[kv.shared[start + i]] == 0
    return count


@compiled
def hold(kv: Paged, sequence: int, prefix: int, n: int) -> None:
    """``sequence``, which holds nothing, begins with the first ``n`` blocks of ``prefix``; all are there."""
    start = kv.starts[prefix]
    for i in range(n):
        block = kv.shared[start + i]
        if kv.holders[block] == 0:
            kv.after[kv.before[block]] = kv.after[block]
            kv.before[kv.after[block]] = kv.before[block]
            kv.counts[FREE] -= 1
        kv.holders[block] += 1
    kv.found[sequence] = n
    _note(kv)


@compiled
def take(kv: Paged, sequence: int, n: int) -> None:
    """``n`` more blocks for ``sequence``; as many are free. What they held for later is forgotten."""
    end = len(kv.holders)
    for _ in range(n):
        block = kv.after[end]
        kv.after[end] = kv.after[block]
        kv.before[kv.after[block]] = end
        if kv.entry_of[block] >= 0:
            kv.shared[kv.entry_of[block]] = -1
            kv.entry_of[block] = -1
        kv.holders[block] = 1
        kv.after[block] = kv.newest[sequence]
        kv.newest[sequence] = block
    kv.taken[sequence] += n
    kv.counts[FREE] -= n
    _note(kv)


@compiled
def publish(kv: Paged, sequence: int, prefix: int, first: int, end: int) -> None:
    """Blocks ``first`` … ``end`` - 1 of ``sequence`` are full: others may find them, unless they can already."""
    start = kv.starts[prefix]
    end = min(end, kv.starts[prefix + 1] - start)
    index = held(kv, sequence) - 1
    block = kv.newest[sequence]
    while index >= max(first, kv.found[sequence]):
        older = kv.after[block]
        if index < end and kv.shared[start + index] < 0:
            kv.shared[start + index] = block
            kv.entry_of[block] = start + index
        block = older
        index -= 1


@compiled
def release(kv: Paged, sequence: int, prefix: int) -> None:
    """``sequence`` holds nothing any more."""
    block = kv.newest[sequence]
    for _ in range(kv.taken[sequence]):
        older = kv.after[block]
        _let_go(kv, block)
        block = older
    for i in range(kv.found[sequence] - 1, -1, -1):
        _let_go(kv, kv.shared[kv.starts[prefix] + i])
    kv.newest[sequence] = -1
    kv.taken[sequence] = 0
    kv.found[sequence] = 0


@compiled
def _let_go(kv: Paged, block: int) -> None:
    kv.holders[block] -= 1
    if kv.holders[block] == 0:
        end = len(kv.holders)
        last = kv.before[end]
        kv.after[last] = block
        kv.before[block] = last
        kv.after[block] = end
        kv.before[end] = block
        kv.counts[FREE] += 1


@compiled
def _note(kv: Paged) -> None:
    kv.counts[USED_MOST] = max(kv.counts[USED_MOST], len(kv.holders) - kv.counts[FREE])
