"""The scheduler of a continuous-batching engine: what each step computes, and how long it takes.

Knows nothing of HTTP, of wall-clock, or of what makes a step long: `StepLaw` is numbers. One core for virtual time and
for the server. The rules are vLLM V1's (`vllm/v1/core/sched/scheduler.py`):

1. Every step has a budget of tokens. Running sequences first, in order of arrival: one token each, or one and those
   drafted for it; a prompt in pieces gets the rest of the budget (chunked prefill: Agrawal et al. 2023, Sarathi).
2. Then waiting ones, first come first served, while there is budget, a seat and a free block.
3. A running sequence that finds no free block preempts the one that came last, itself if need be: that one starts
   again from the front of the queue, its prompt and what it has said to be computed anew.

Without chunked prefill a prompt is taken whole, and first: a step that holds prompts holds nothing else (vLLM V0).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.engines.simulated.compiled import compiled
from harness.engines.simulated.paged import (
    FOUND,
    FREE,
    TAKEN,
    USED_MOST,
    Int64s,
    Paged,
    hold,
    lookup,
    paged,
    publish,
    release,
    take,
    unheld,
)

Floats = NDArray[np.float64]

# in `Core.counts`; the last two are the state of the random generator
RUNNING, WAITING, FRONT, STEPS, PREEMPTIONS, FOUND_TOKENS, COMPUTED_TOKENS, DRAFTED, ACCEPTED = range(9)
RANDOM_A, RANDOM_B = 9, 10
# in `Core.load`: what one step computes
GIVEN, TOKENS, SAMPLED, CONTEXT, PAIRS, SPECULATING = range(6)
# columns of `Core.sequences`: asked; -1 for no prefix, and how much of prompt and answer is that prefix; so far
PROMPT, OUTPUT, PREFIX, PREFIX_TOKENS, COMPUTED, GENERATED = range(6)
# columns of `Core.given`: who is in the step, how many tokens are guessed for it, how many came out
WHO, GUESSED, OUT = range(3)

MODULUS_A, MODULUS_B = 2_147_483_563, 2_147_483_399
LARGEST_GRAPH_BY_8 = 256  # graphs of 1, 2, 4, then every 8, above this every 16: vLLM's `cudagraph_capture_sizes`


class Limits(NamedTuple):
    """What the scheduler must keep to. ``draft_tokens``: per sequence and step, 0 without speculation."""

    max_num_seqs: int
    max_num_batched_tokens: int
    blocks: int
    block_tokens: int
    context_tokens: int  # longest prompt and answer together
    chunked_prefill: bool
    prefix_caching: bool
    draft_tokens: int


class StepLaw(NamedTuple):
    """Seconds that a step takes, by what is in it; `step_seconds` puts them together. All may be 0."""

    overhead_s: float  # every step
    sequence_s: float = 0.0  # every sequence that gets a token: sampling and streaming
    launch_s: float = 0.0  # the least that a step without a graph takes
    largest_graph: int = 0  # tokens; steps of more have no graph
    weights_s: float = 0.0  # reading the layers' weights
    token_s: float = 0.0  # the layers' arithmetic for one token
    head_weights_s: float = 0.0
    head_token_s: float = 0.0
    context_s: float = 0.0  # reading keys and values of one token
    pair_s: float = 0.0  # attention of one token of a prompt to one before it
    exchange_s: float = 0.0  # between devices, every step
    exchange_token_s: float = 0.0
    draft_s: float = 0.0  # one round of the draft model, at least
    draft_token_s: float = 0.0  # its arithmetic for one sequence
    acceptance: float = 0.0  # probability that a drafted token is accepted, alone on the machine
    acceptance_drop: float = 0.0  # share of it that is lost in an endless batch
    acceptance_half: float = 1.0  # batch at which half of that is lost


class Core(NamedTuple):
    """One engine. Sequences are numbered 0 … n-1; whoever enqueues them chooses the number."""

    limits: Limits
    law: StepLaw
    kv: Paged
    counts: Int64s  # (11,)
    load: Int64s  # (6,)
    sequences: Int64s  # (n, 6)
    reused: Int64s  # (n,) tokens that were in the cache when it last began
    waiting: Int64s  # (n,) a ring
    running: Int64s  # (max_num_seqs,) in order of arrival
    given: Int64s  # (max_num_seqs, 3)


def core(
    limits: Limits, law: StepLaw, sequences: int, prefix_tokens: Int64s, seed: int, *, known_blocks: int = 0
) -> Core:
    """Nothing running, nothing waiting, places for ``sequences``; the rest as `paged` takes it."""
    counts = np.zeros(11, np.int64)
    mixed = np.random.SeedSequence(seed).generate_state(2)
    counts[RANDOM_A] = 1 + int(mixed[0]) % (MODULUS_A - 1)
    counts[RANDOM_B] = 1 + int(mixed[1]) % (MODULUS_B - 1)
    return Core(
        limits=limits,
        law=law,
        kv=paged(limits.blocks, limits.block_tokens, sequences, prefix_tokens, known_blocks),
        counts=counts,
        load=np.zeros(6, np.int64),
        sequences=np.zeros((sequences, 6), np.int64),
        reused=np.zeros(sequences, np.int64),
        waiting=np.zeros(sequences, np.int64),
        running=np.zeros(limits.max_num_seqs, np.int64),
        given=np.zeros((limits.max_num_seqs, 3), np.int64),
    )


@compiled
def fits(limits: Limits, prompt_tokens: int, output_tokens: int) -> bool:
    """Whether such a request can be served at all; others are rejected."""
    total = prompt_tokens + output_tokens
    return (
        prompt_tokens >= 1
        and output_tokens >= 1
        and total <= limits.context_tokens
        and blocks_for(limits, total) <= limits.blocks
        and (limits.chunked_prefill or total - 1 <= limits.max_num_batched_tokens)
    )


@compiled
def blocks_for(limits: Limits, tokens: int) -> int:
    return (tokens + limits.block_tokens - 1) // limits.block_tokens


@compiled
def enqueue(core: Core, sequence: int) -> None:
    """To the end of the queue. Its row says what is asked, and it `fits`."""
    core.sequences[sequence, COMPUTED] = 0
    core.sequences[sequence, GENERATED] = 0
    core.waiting[(core.counts[FRONT] + core.counts[WAITING]) % len(core.waiting)] = sequence
    core.counts[WAITING] += 1


@compiled
def withdraw(core: Core, sequence: int) -> None:
    """Forget ``sequence``, wherever it is: its client has gone. Nothing if it is nowhere."""
    n = 0
    for i in range(core.counts[RUNNING]):
        if core.running[i] != sequence:
            core.running[n] = core.running[i]
            n += 1
    if n < core.counts[RUNNING]:
        core.counts[RUNNING] = n
        release(core.kv, sequence, core.sequences[sequence, PREFIX])
    n = 0
    for i in range(core.counts[WAITING]):
        other = core.waiting[(core.counts[FRONT] + i) % len(core.waiting)]
        if other != sequence:
            core.waiting[(core.counts[FRONT] + n) % len(core.waiting)] = other
            n += 1
    core.counts[WAITING] = n


@compiled
def step(core: Core) -> float:
    """One step; returns its seconds. Something must be running or waiting.

    Afterwards the first `load[GIVEN]` rows of `given` say who got how many tokens (0: a piece of a prompt); who has
    all that was asked for has left.
    """
    core.load[:] = 0
    preempted = core.counts[PREEMPTIONS]
    if not core.limits.chunked_prefill:
        _admit(core)
    if core.load[GIVEN] == 0:
        _go_on(core)
        if core.limits.chunked_prefill and core.counts[PREEMPTIONS] == preempted and core.counts[WAITING] > 0:
            _admit(core)
    if core.load[GIVEN] == 0:
        raise RuntimeError("the simulated scheduler has work and does none")
    seconds = step_seconds(core.law, core.limits.draft_tokens, core.load)
    core.counts[STEPS] += 1
    core.counts[COMPUTED_TOKENS] += core.load[TOKENS]
    _hand_out(core)
    return seconds


@compiled
def _go_on(core: Core) -> None:
    """Rules 1 and 3."""
    sequences, running, given, held, load = core.sequences, core.running, core.given, core.kv.held, core.load
    limits = core.limits
    block_tokens, budget, draft_tokens = limits.block_tokens, limits.max_num_batched_tokens, limits.draft_tokens
    i = 0
    while i < core.counts[RUNNING] and load[TOKENS] < budget:
        sequence = running[i]
        computed = sequences[sequence, COMPUTED]
        left = budget - load[TOKENS]
        new = sequences[sequence, PROMPT] + sequences[sequence, GENERATED] - computed
        guessed = 0
        if draft_tokens > 0 and new == 1 and sequences[sequence, GENERATED] > 0:
            unsaid = sequences[sequence, OUTPUT] - sequences[sequence, GENERATED]
            guessed = min(draft_tokens, unsaid - 1, left - 1)
        new = min(new, left)
        room = (held[sequence, TAKEN] + held[sequence, FOUND]) * block_tokens
        if computed + new + guessed > room:
            more = blocks_for(limits, computed + new + guessed - room)
            while more > core.kv.counts[FREE] and core.counts[RUNNING] > i:
                _preempt_last(core)
            if core.counts[RUNNING] == i:  # it was the last itself
                break
            take(core.kv, sequence, more)
        if computed < sequences[sequence, PREFIX_TOKENS]:
            _publish(core, sequence, computed, computed + new)
        _give(sequences, given, load, (sequence, new, guessed))
        i += 1


@compiled
def _admit(core: Core) -> None:
    """Rule 2."""
    limits, kv, load = core.limits, core.kv, core.load
    while (
        core.counts[WAITING] > 0
        and core.counts[RUNNING] < limits.max_num_seqs
        and load[TOKENS] < limits.max_num_batched_tokens
    ):
        sequence = core.waiting[core.counts[FRONT]]
        prefix = core.sequences[sequence, PREFIX]
        known = core.sequences[sequence, PROMPT] + core.sequences[sequence, GENERATED]
        found, from_free = 0, 0
        if limits.prefix_caching and prefix >= 0:
            shared = min(core.sequences[sequence, PREFIX_TOKENS], known - 1)  # the next token comes from the last one
            found = lookup(kv, prefix, shared // limits.block_tokens)
            from_free = unheld(kv, prefix, found)
        there = found * limits.block_tokens
        new = known - there
        left = limits.max_num_batched_tokens - load[TOKENS]
        if new > left:
            if not limits.chunked_prefill:
                break
            new = left
        more = blocks_for(limits, there + new) - found
        if more + from_free > kv.counts[FREE]:
            break
        core.counts[FRONT] = (core.counts[FRONT] + 1) % len(core.waiting)
        core.counts[WAITING] -= 1
        core.running[core.counts[RUNNING]] = sequence
        core.counts[RUNNING] += 1
        hold(kv, sequence, prefix, found)
        take(kv, sequence, more)
        core.counts[FOUND_TOKENS] += there
        core.sequences[sequence, COMPUTED] = there
        core.reused[sequence] = there
        _publish(core, sequence, there, there + new)
        _give(core.sequences, core.given, load, (sequence, new, 0))


@compiled
def _give(sequences: Int64s, given: Int64s, load: Int64s, what: tuple[int, int, int]) -> None:
    """``what``: a sequence, its known and its guessed tokens that are in this step; it has the blocks for them."""
    sequence, new, guessed = what
    before = sequences[sequence, COMPUTED]
    sequences[sequence, COMPUTED] = before + new
    row = load[GIVEN]
    given[row, WHO] = sequence
    given[row, GUESSED] = guessed
    load[GIVEN] = row + 1
    load[TOKENS] += new + guessed
    load[CONTEXT] += before + new + guessed
    load[SPECULATING] += guessed > 0
    if new > 1:
        load[PAIRS] += new * before + new * (new + 1) // 2
    if before + new == sequences[sequence, PROMPT] + sequences[sequence, GENERATED]:
        load[SAMPLED] += 1 + guessed


@compiled
def _publish(core: Core, sequence: int, before: int, after: int) -> None:
    """Others may find the blocks that became full as ``sequence`` went from ``before`` to ``after`` tokens."""
    prefix, longest = core.sequences[sequence, PREFIX], core.sequences[sequence, PREFIX_TOKENS]
    first, end = min(before, longest) // core.limits.block_tokens, min(after, longest) // core.limits.block_tokens
    if core.limits.prefix_caching and prefix >= 0 and end > first:
        publish(core.kv, sequence, prefix, first, end)


@compiled
def _preempt_last(core: Core) -> None:
    core.counts[RUNNING] -= 1
    sequence = core.running[core.counts[RUNNING]]
    release(core.kv, sequence, core.sequences[sequence, PREFIX])
    core.sequences[sequence, COMPUTED] = 0
    core.counts[FRONT] = (core.counts[FRONT] - 1) % len(core.waiting)
    core.waiting[core.counts[FRONT]] = sequence
    core.counts[WAITING] += 1
    core.counts[PREEMPTIONS] += 1


@compiled
def _hand_out(core: Core) -> None:
    """Tokens come out; who has all of them leaves."""
    sequences, given = core.sequences, core.given
    ended = False
    for i in range(core.load[GIVEN]):
        sequence = given[i, WHO]
        out = 0
        if sequences[sequence, COMPUTED] == sequences[sequence, PROMPT] + sequences[sequence, GENERATED]:
            out = 1
            if given[i, GUESSED] > 0:
                out += _verify(core, sequence, given[i, GUESSED])
            sequences[sequence, GENERATED] += out
            ended |= sequences[sequence, GENERATED] == sequences[sequence, OUTPUT]
        given[i, OUT] = out
    if ended:
        n = 0
        for i in range(core.counts[RUNNING]):
            sequence = core.running[i]
            if sequences[sequence, GENERATED] == sequences[sequence, OUTPUT]:
                release(core.kv, sequence, sequences[sequence, PREFIX])
            else:
                core.running[n] = sequence
                n += 1
        core.counts[RUNNING] = n


@compiled
def _verify(core: Core, sequence: int, guessed: int) -> int:
    """How many of the ``guessed`` tokens are accepted."""
    accepted = _accepted(core.counts, guessed, _acceptance(core.law, core.load[SPECULATING]))
    core.counts[DRAFTED] += guessed
    core.counts[ACCEPTED] += accepted
    computed = core.sequences[sequence, COMPUTED]
    _publish(core, sequence, computed, computed + accepted)
    core.sequences[sequence, COMPUTED] = computed + accepted
    return accepted


@compiled
def _acceptance(law: StepLaw, batch: int) -> float:
    return law.acceptance * (1.0 - law.acceptance_drop * batch / (batch + law.acceptance_half))


@compiled
def _accepted(counts: Int64s, guessed: int, chance: float) -> int:
    """Guessed tokens up to the first that is refused: geometric, cut off (Leviathan et al. 2023, equation 1)."""
    drawn = _uniform(counts)
    n = 0
    reach = chance
    while n < guessed and drawn < reach:
        n += 1
        reach *= chance
    return n


@compiled
def _uniform(counts: Int64s) -> float:
    """In (0, 1), period 2.3e18 (L'Ecuyer 1988, CACM 31(6), figure 3); whole numbers, so equal compiled or not."""
    counts[RANDOM_A] = counts[RANDOM_A] * 40014 % MODULUS_A
    counts[RANDOM_B] = counts[RANDOM_B] * 40692 % MODULUS_B
    mixed = (counts[RANDOM_A] - counts[RANDOM_B]) % (MODULUS_A - 1)
    return float(mixed + 1) / MODULUS_A


@compiled
def step_seconds(law: StepLaw, draft_tokens: int, load: Int64s) -> float:
    """The roofline of each part (Williams et al. 2009), one after the other; docs/simulated.md has the formula."""
    tokens = load[TOKENS]
    launch_s = law.launch_s
    if tokens <= law.largest_graph:
        tokens = graph_size(tokens)
        launch_s = 0.0
    work_s = max(law.weights_s, tokens * law.token_s)
    if load[SAMPLED] > 0:
        work_s += max(law.head_weights_s, load[SAMPLED] * law.head_token_s)
    work_s += load[CONTEXT] * law.context_s + load[PAIRS] * law.pair_s
    work_s += law.exchange_s + tokens * law.exchange_token_s
    if load[SPECULATING] > 0:
        work_s += draft_tokens * max(law.draft_s, load[SPECULATING] * law.draft_token_s)
    return float(law.overhead_s + load[GIVEN] * law.sequence_s + max(work_s, launch_s))


@compiled
def graph_size(tokens: int) -> int:
    """The captured size that ``tokens`` are padded to."""
    if tokens <= 2:
        return tokens
    if tokens <= 4:
        return 4
    if tokens <= LARGEST_GRAPH_BY_8:
        return (tokens + 7) // 8 * 8
    return (tokens + 15) // 16 * 16


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
            prefix_hit_tokens=int(counts[FOUND_TOKENS]),
            computed_tokens=int(counts[COMPUTED_TOKENS]),
            drafted_tokens=int(counts[DRAFTED]),
            accepted_tokens=int(counts[ACCEPTED]),
        )
