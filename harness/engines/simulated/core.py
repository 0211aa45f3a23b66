"""The core of a continuous-batching engine: who is computed in each step.

Knows nothing of HTTP, of wall-clock, or of what makes a step long (steps.py). One core for virtual time and for the
server. The rules are vLLM V1's (`vllm/v1/core/sched/scheduler.py`):

1. Every step has a budget of tokens. Running sequences first, in order of arrival: one token each, or one and those
   drafted for it; a prompt in pieces gets the rest of the budget (chunked prefill: Agrawal et al. 2023, Sarathi).
2. Then waiting ones, first come first served, while there is budget, a seat and a free block.
3. A running sequence that finds no free block preempts the one that came last, itself if need be: that one starts
   again from the front of the queue, its prompt and what it has said to be computed anew.

Without chunked prefill a prompt is taken whole, and first: a step that holds prompts holds nothing else (vLLM V0).
"""

from typing import NamedTuple

import numpy as np

from harness.engines.simulated.compiled import compiled
from harness.engines.simulated.paged import (
    FOUND,
    FREE,
    TAKEN,
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
from harness.engines.simulated.steps import (
    CONTEXT,
    GIVEN,
    PAIRS,
    SAMPLED,
    SPECULATING,
    TOKENS,
    StepLaw,
    acceptance,
    accepted,
    generator,
    step_seconds,
)

# in `Core.counts`
RUNNING, WAITING, FRONT, STEPS, PREEMPTIONS, LOST_TOKENS, FOUND_TOKENS, COMPUTED_TOKENS, DRAFTED, ACCEPTED = range(10)
# columns of `Core.sequences`: asked; -1 for no prefix, and how much of prompt and answer is that prefix; so far
PROMPT, OUTPUT, PREFIX, PREFIX_TOKENS, COMPUTED, GENERATED = range(6)
# columns of `Core.given`: who is in the step, how many tokens are guessed for it, how many came out
WHO, GUESSED, OUT = range(3)


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


class Core(NamedTuple):
    """One engine. Sequences are numbered 0 … n-1; whoever enqueues them chooses the number."""

    limits: Limits
    law: StepLaw
    kv: Paged
    counts: Int64s  # (10,)
    random: Int64s  # (2,) which drafted tokens are accepted
    load: Int64s  # (6,) of the last step
    sequences: Int64s  # (n, 6)
    reused: Int64s  # (n,) tokens that were in the cache when it last began
    waiting: Int64s  # (n,) a ring
    running: Int64s  # (max_num_seqs,) in order of arrival
    given: Int64s  # (max_num_seqs, 3)


def core(
    limits: Limits, law: StepLaw, sequences: int, prefix_tokens: Int64s, seed: int, *, known_blocks: int = 0
) -> Core:
    """Nothing running, nothing waiting, places for ``sequences``; the rest as `paged` takes it."""
    return Core(
        limits=limits,
        law=law,
        kv=paged(limits.blocks, limits.block_tokens, sequences, prefix_tokens, known_blocks),
        counts=np.zeros(10, np.int64),
        random=generator(seed),
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
def coast(core: Core, now_s: float, until_s: float) -> float:
    """Exactly the next calls of `step`, at once, as long as they do nothing but give each that runs its next token.

    Stops before one ends, and as soon as the clock, ``now_s`` at first, has reached ``until_s``. Returns the clock.
    """
    sequences, running, held = core.sequences, core.running, core.kv.held
    n, block_tokens = core.counts[RUNNING], core.limits.block_tokens
    seats_free = n < core.limits.max_num_seqs
    if (
        n == 0
        or core.limits.draft_tokens > 0
        or n > core.limits.max_num_batched_tokens
        or (seats_free and core.counts[WAITING] > 0)
    ):
        return now_s
    most, context = sequences[running[0], OUTPUT], 0
    for i in range(n):
        sequence = running[i]
        computed, generated = sequences[sequence, COMPUTED], sequences[sequence, GENERATED]
        pending = sequences[sequence, PROMPT] + generated - computed > 1 or generated == 0
        if pending or computed < sequences[sequence, PREFIX_TOKENS]:
            return now_s
        most = min(most, sequences[sequence, OUTPUT] - generated - 1)
        context += computed + 1
    needed = 0
    for i in range(n):
        sequence = running[i]
        room = (held[sequence, TAKEN] + held[sequence, FOUND]) * block_tokens
        needed += blocks_for(core.limits, max(0, sequences[sequence, COMPUTED] + most - room))
    if needed > core.kv.counts[FREE]:
        return now_s
    load, steps = core.load, 0
    load[:] = 0
    load[GIVEN] = load[TOKENS] = load[SAMPLED] = n
    while steps < most and now_s < until_s:
        load[CONTEXT] = context + steps * n
        now_s += step_seconds(core.law, 0, load)
        steps += 1
    for i in range(n):
        sequence = running[i]
        sequences[sequence, COMPUTED] += steps
        sequences[sequence, GENERATED] += steps
        room = (held[sequence, TAKEN] + held[sequence, FOUND]) * block_tokens
        if sequences[sequence, COMPUTED] > room:
            take(core.kv, sequence, blocks_for(core.limits, sequences[sequence, COMPUTED] - room))
    core.counts[STEPS] += steps
    core.counts[COMPUTED_TOKENS] += steps * n
    return now_s


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
    core.counts[LOST_TOKENS] += core.sequences[sequence, COMPUTED]
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
    came = accepted(core.random, guessed, acceptance(core.law, core.load[SPECULATING]))
    core.counts[DRAFTED] += guessed
    core.counts[ACCEPTED] += came
    computed = core.sequences[sequence, COMPUTED]
    _publish(core, sequence, computed, computed + came)
    core.sequences[sequence, COMPUTED] = computed + came
    return came
