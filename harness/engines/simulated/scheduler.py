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

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.engines.simulated.compiled import compiled
from harness.engines.simulated.paged import (
    FREE,
    USED_MOST,
    Int64s,
    Paged,
    held,
    hold,
    lookup,
    paged,
    publish,
    release,
    take,
    unheld,
)

Floats = NDArray[np.float64]

# places in `Core.counts`
RUNNING, WAITING, FRONT, STEPS, PREEMPTIONS, FOUND_TOKENS, COMPUTED_TOKENS, DRAFTED, ACCEPTED = range(9)
RANDOM_A, RANDOM_B = 9, 10  # the two states of the random generator
# places in `Core.load`: what one step computes
GIVEN, TOKENS, SAMPLED, CONTEXT, PAIRS, SPECULATING = range(6)

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
    prompt_tokens: Int64s  # (n,) asked
    output_tokens: Int64s  # (n,) asked
    prefix: Int64s  # (n,) -1: none
    prefix_tokens: Int64s  # (n,) how much of prompt and answer is that prefix
    computed: Int64s  # (n,) tokens whose keys and values are there
    generated: Int64s  # (n,)
    waiting: Int64s  # (n,) a ring
    running: Int64s  # (max_num_seqs,) in order of arrival
    given_to: Int64s  # (max_num_seqs,) who is in the step
    given: Int64s  # (max_num_seqs,) tokens that came out of it
    drafted: Int64s  # (max_num_seqs,) tokens guessed for it


def core(limits: Limits, law: StepLaw, sequences: int, prefix_tokens: Int64s, seed: int) -> Core:
    """Nothing running, nothing waiting, places for ``sequences``. ``prefix_tokens``: as `paged` takes them."""
    counts = np.zeros(11, np.int64)
    mixed = np.random.SeedSequence(seed).generate_state(2)
    counts[RANDOM_A] = 1 + int(mixed[0]) % (MODULUS_A - 1)
    counts[RANDOM_B] = 1 + int(mixed[1]) % (MODULUS_B - 1)
    seats = limits.max_num_seqs
    return Core(
        limits=limits,
        law=law,
        kv=paged(limits.blocks, limits.block_tokens, sequences, prefix_tokens),
        counts=counts,
        load=np.zeros(6, np.int64),
        prompt_tokens=np.zeros(sequences, np.int64),
        output_tokens=np.zeros(sequences, np.int64),
        prefix=np.full(sequences, -1, np.int64),
        prefix_tokens=np.zeros(sequences, np.int64),
        computed=np.zeros(sequences, np.int64),
        generated=np.zeros(sequences, np.int64),
        waiting=np.zeros(sequences, np.int64),
        running=np.zeros(seats, np.int64),
        given_to=np.zeros(seats, np.int64),
        given=np.zeros(seats, np.int64),
        drafted=np.zeros(seats, np.int64),
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
    """To the end of the queue. Its `prompt_tokens` … `prefix_tokens` are set, and it `fits`."""
    core.computed[sequence] = 0
    core.generated[sequence] = 0
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
        release(core.kv, sequence, core.prefix[sequence])
    n = 0
    for i in range(core.counts[WAITING]):
        other = core.waiting[(core.counts[FRONT] + i) % len(core.waiting)]
        if other != sequence:
            core.waiting[(core.counts[FRONT] + n) % len(core.waiting)] = other
            n += 1
    core.counts[WAITING] = n


@compiled
def step(core: Core) -> float:
    """One step; returns its seconds.

    Afterwards the first `load[GIVEN]` of `given_to` and `given` say who got how many tokens (0: a piece of a prompt);
    who has all asked for has left. Something must be running or waiting.
    """
    core.load[:] = 0
    preempted = core.counts[PREEMPTIONS]
    if not core.limits.chunked_prefill:
        _admit(core)
    if core.load[GIVEN] == 0:
        _go_on(core)
        if core.limits.chunked_prefill and core.counts[PREEMPTIONS] == preempted:
            _admit(core)
    if core.load[GIVEN] == 0:
        raise RuntimeError("the simulated scheduler has work and does none")
    seconds = step_seconds(core.law, core.limits, core.load)
    core.counts[STEPS] += 1
    _hand_out(core)
    return seconds


@compiled
def _go_on(core: Core) -> None:
    """Rule 1 and 3."""
    i = 0
    while i < core.counts[RUNNING] and core.load[TOKENS] < core.limits.max_num_batched_tokens:
        sequence = core.running[i]
        left = core.limits.max_num_batched_tokens - core.load[TOKENS]
        known = core.prompt_tokens[sequence] + core.generated[sequence]
        new = known - core.computed[sequence]
        drafted = 0
        if new == 1 and core.generated[sequence] > 0:
            unsaid = core.output_tokens[sequence] - core.generated[sequence]
            drafted = min(core.limits.draft_tokens, unsaid - 1, left - 1)
        new = min(new, left)
        more = blocks_for(core.limits, core.computed[sequence] + new + drafted) - held(core.kv, sequence)
        while more > core.kv.counts[FREE] and core.counts[RUNNING] > i:
            _preempt_last(core)
        if core.counts[RUNNING] == i:  # it was the last itself
            break
        _give(core, sequence, new, drafted, more)
        i += 1


@compiled
def _admit(core: Core) -> None:
    """Rule 2."""
    while (
        core.counts[WAITING] > 0
        and core.counts[RUNNING] < core.limits.max_num_seqs
        and core.load[TOKENS] < core.limits.max_num_batched_tokens
    ):
        sequence = core.waiting[core.counts[FRONT]]
        known = core.prompt_tokens[sequence] + core.generated[sequence]
        found, taken_from_free = 0, 0
        if (
            core.limits.prefix_caching and core.prefix[sequence] >= 0
        ):  # the last token is always computed: it is the answer's
            shared = min(core.prefix_tokens[sequence], known - 1)
            found = lookup(core.kv, core.prefix[sequence], shared // core.limits.block_tokens)
            taken_from_free = unheld(core.kv, core.prefix[sequence], found)
        there = found * core.limits.block_tokens
        new = known - there
        left = core.limits.max_num_batched_tokens - core.load[TOKENS]
        if new > left:
            if not core.limits.chunked_prefill:
                break
            new = left
        more = blocks_for(core.limits, there + new) - found
        if more + taken_from_free > core.kv.counts[FREE]:
            break
        core.counts[FRONT] = (core.counts[FRONT] + 1) % len(core.waiting)
        core.counts[WAITING] -= 1
        core.running[core.counts[RUNNING]] = sequence
        core.counts[RUNNING] += 1
        if found > 0:
            hold(core.kv, sequence, core.prefix[sequence], found)
            core.counts[FOUND_TOKENS] += there
        core.computed[sequence] = there
        _give(core, sequence, new, 0, more)


@compiled
def _give(core: Core, sequence: int, new: int, drafted: int, more: int) -> None:
    """``new`` known and ``drafted`` guessed tokens of ``sequence`` are in this step; it needs ``more`` blocks."""
    if more > 0:
        take(core.kv, sequence, more)
    before = core.computed[sequence]
    _publish(core, sequence, before, before + new)
    core.computed[sequence] = before + new
    core.given_to[core.load[GIVEN]] = sequence
    core.drafted[core.load[GIVEN]] = drafted
    core.load[GIVEN] += 1
    core.load[TOKENS] += new + drafted
    core.load[CONTEXT] += before + new + drafted
    core.load[SPECULATING] += drafted > 0
    if new > 1:
        core.load[PAIRS] += new * before + new * (new + 1) // 2
    if core.computed[sequence] == core.prompt_tokens[sequence] + core.generated[sequence]:
        core.load[SAMPLED] += 1 + drafted


@compiled
def _publish(core: Core, sequence: int, before: int, after: int) -> None:
    """Others may find the blocks that became full as ``sequence`` went from ``before`` to ``after`` tokens."""
    if core.limits.prefix_caching and core.prefix[sequence] >= 0:
        first = min(before, core.prefix_tokens[sequence]) // core.limits.block_tokens
        end = min(after, core.prefix_tokens[sequence]) // core.limits.block_tokens
        if end > first:
            publish(core.kv, sequence, core.prefix[sequence], first, end)


@compiled
def _preempt_last(core: Core) -> None:
    core.counts[RUNNING] -= 1
    sequence = core.running[core.counts[RUNNING]]
    release(core.kv, sequence, core.prefix[sequence])
    core.computed[sequence] = 0
    core.counts[FRONT] = (core.counts[FRONT] - 1) % len(core.waiting)
    core.waiting[core.counts[FRONT]] = sequence
    core.counts[WAITING] += 1
    core.counts[PREEMPTIONS] += 1


@compiled
def _hand_out(core: Core) -> None:
    """Tokens come out; who has all of them leaves."""
    chance = _acceptance(core.law, core.load[SPECULATING])
    ended = 0
    for i in range(core.load[GIVEN]):
        sequence = core.given_to[i]
        out = 0
        if core.computed[sequence] == core.prompt_tokens[sequence] + core.generated[sequence]:
            out = 1
            if core.drafted[i] > 0:
                out += _accepted(core, core.drafted[i], chance)
                core.counts[DRAFTED] += core.drafted[i]
                core.counts[ACCEPTED] += out - 1
                _publish(core, sequence, core.computed[sequence], core.computed[sequence] + out - 1)
                core.computed[sequence] += out - 1
            core.generated[sequence] += out
            ended += core.generated[sequence] == core.output_tokens[sequence]
        core.given[i] = out
    core.counts[COMPUTED_TOKENS] += core.load[TOKENS]
    if ended > 0:
        n = 0
        for i in range(core.counts[RUNNING]):
            sequence = core.running[i]
            if core.generated[sequence] == core.output_tokens[sequence]:
                release(core.kv, sequence, core.prefix[sequence])
            else:
                core.running[n] = sequence
                n += 1
        core.counts[RUNNING] = n


@compiled
def _acceptance(law: StepLaw, batch: int) -> float:
    return law.acceptance * (1.0 - law.acceptance_drop * batch / (batch + law.acceptance_half))


@compiled
def _accepted(core: Core, drafted: int, chance: float) -> int:
    """Drafted tokens up to the first that is refused: geometric, cut off (Leviathan et al. 2023, equation 1)."""
    drawn = _uniform(core)
    n = 0
    reach = chance
    while n < drafted and drawn < reach:
        n += 1
        reach *= chance
    return n


@compiled
def _uniform(core: Core) -> float:
    """In (0, 1), period 2.3e18 (L'Ecuyer 1988, CACM 31(6), figure 3); whole numbers, so equal compiled or not."""
    core.counts[RANDOM_A] = core.counts[RANDOM_A] * 40014 % MODULUS_A
    core.counts[RANDOM_B] = core.counts[RANDOM_B] * 40692 % MODULUS_B
    mixed = (core.counts[RANDOM_A] - core.counts[RANDOM_B]) % (MODULUS_A - 1)
    return float(mixed + 1) / MODULUS_A


@compiled
def step_seconds(law: StepLaw, limits: Limits, load: Int64s) -> float:
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
        work_s += limits.draft_tokens * max(law.draft_s, load[SPECULATING] * law.draft_token_s)
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

    def __init__(self, limits: Limits, law: StepLaw, sequences: int, prefix_tokens: Int64s, seed: int = 0) -> None:
        self.limits = limits
        self._core = core(limits, law, sequences, prefix_tokens, seed)

    @property
    def has_work(self) -> bool:
        return bool(self._core.counts[RUNNING] + self._core.counts[WAITING])

    def enqueue(
        self, sequence: int, prompt_tokens: int, output_tokens: int, prefix: int = -1, prefix_tokens: int = 0
    ) -> bool:
        """False: rejected, it can never be served. ``sequence`` is a place that is neither waiting nor running."""
        if not fits(self.limits, prompt_tokens, output_tokens):
            return False
        st = self._core
        st.prompt_tokens[sequence] = prompt_tokens
        st.output_tokens[sequence] = output_tokens
        st.prefix[sequence] = prefix
        st.prefix_tokens[sequence] = prefix_tokens
        enqueue(st, sequence)
        return True

    def withdraw(self, sequence: int) -> None:
        withdraw(self._core, sequence)

    def step(self) -> Step:
        """The next step. There must be work."""
        st = self._core
        seconds = step(st)
        n = int(st.load[GIVEN])
        sequences = st.given_to[:n].copy()
        return Step(seconds, sequences, st.given[:n].copy(), st.generated[sequences] == st.output_tokens[sequences])

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
