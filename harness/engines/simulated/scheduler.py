"""The scheduler for one who calls step by step, as the server does: the core behind an object.

Knows nothing of clocks or HTTP; the rules are in core.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.engines.simulated.core import (
    ACCEPTED,
    COMPUTED_TOKENS,
    DRAFTED,
    FOUND_TOKENS,
    GENERATED,
    LOST_TOKENS,
    OUT,
    OUTPUT,
    PREEMPTIONS,
    RUNNING,
    STEPS,
    WAITING,
    WHO,
    Limits,
    core,
    enqueue,
    fits,
    step,
    withdraw,
)
from harness.engines.simulated.paged import FREE, USED_MOST, Int64s
from harness.engines.simulated.steps import GIVEN, StepLaw


@dataclass(frozen=True, slots=True)
class Step:
    """What one step gave: arrays of the same length."""

    duration_s: float
    sequences: Int64s
    tokens: Int64s  # that came out; 0: a piece of a prompt
    finished: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Counters:
    running: int
    waiting: int
    blocks_used: int
    blocks_used_most: int
    steps: int
    preemptions: int
    lost_tokens: int
    prefix_hit_tokens: int
    computed_tokens: int
    drafted_tokens: int
    accepted_tokens: int


class Scheduler:
    """The core for one who calls step by step. ``sequences``: places, the most that may wait and run at once.

    ``prefix_tokens``: (prefixes,) the longest that each prefix may become.
    """

    def __init__(
        self,
        limits: Limits,
        law: StepLaw,
        sequences: int,
        prefix_tokens: Int64s,
        seed: int = 0,
        *,
        known_blocks: int = 0,
    ) -> None:
        self.limits = limits
        self._core = core(limits, law, sequences, prefix_tokens, seed, known_blocks=known_blocks)

    @property
    def has_work(self) -> bool:
        return bool(self._core.counts[RUNNING] + self._core.counts[WAITING])

    def enqueue(
        self, sequence: int, prompt_tokens: int, output_tokens: int, prefix: int = -1, prefix_tokens: int = 0
    ) -> bool:
        """False: rejected, it can never be served. ``sequence`` is a place that is neither waiting nor running."""
        if not fits(self.limits, prompt_tokens, output_tokens):
            return False
        self._core.sequences[sequence] = (prompt_tokens, output_tokens, prefix, prefix_tokens, 0, 0)
        enqueue(self._core, sequence)
        return True

    def enqueue_prompt(self, sequence: int, prompt_tokens: int, output_tokens: int, blocks: Sequence[int]) -> bool:
        """As `enqueue`, for a prompt whose full blocks are known: equal number, equal tokens from its begin on.

        Only where there are as many prefixes as sequences, and ``known_blocks``.
        """
        kv = self._core.kv
        start = kv.starts[sequence]
        kv.chain[start : start + len(blocks)] = blocks
        return self.enqueue(sequence, prompt_tokens, output_tokens, sequence, len(blocks) * kv.block_tokens)

    def reused_tokens(self, sequence: int) -> int:
        """How many of its tokens were in the cache when it last began."""
        return int(self._core.reused[sequence])

    def withdraw(self, sequence: int) -> None:
        withdraw(self._core, sequence)

    def step(self) -> Step:
        """The next step. There must be work."""
        seconds = step(self._core)
        given = self._core.given[: self._core.load[GIVEN]]
        who = given[:, WHO].copy()
        of = self._core.sequences[who]
        return Step(seconds, who, given[:, OUT].copy(), of[:, GENERATED] == of[:, OUTPUT])

    @property
    def counters(self) -> Counters:
        counts = self._core.counts
        return Counters(
            running=int(counts[RUNNING]),
            waiting=int(counts[WAITING]),
            blocks_used=self.limits.blocks - int(self._core.kv.counts[FREE]),
            blocks_used_most=int(self._core.kv.counts[USED_MOST]),
            steps=int(counts[STEPS]),
            preemptions=int(counts[PREEMPTIONS]),
            lost_tokens=int(counts[LOST_TOKENS]),
            prefix_hit_tokens=int(counts[FOUND_TOKENS]),
            computed_tokens=int(counts[COMPUTED_TOKENS]),
            drafted_tokens=int(counts[DRAFTED]),
            accepted_tokens=int(counts[ACCEPTED]),
        )
