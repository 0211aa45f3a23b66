"""The simulated engine in virtual time: a whole schedule served at once, without HTTP and without waiting.

Knows nothing of laboratories or searches. What it returns is *simulated*, never a measurement.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.engines.simulated import core as engine
from harness.engines.simulated.compiled import compiled
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
    PREFIX,
    PREFIX_TOKENS,
    PROMPT,
    RUNNING,
    STEPS,
    WAITING,
    WHO,
    Core,
    Limits,
)
from harness.engines.simulated.paged import FREE, USED_MOST, Int64s
from harness.engines.simulated.steps import GIVEN, StepLaw

Floats = NDArray[np.float64]


class Serving(Protocol):
    """What of an engine decides over its answers: `law.Law`, or a law under test."""

    @property
    def limits(self) -> Limits: ...

    @property
    def steps(self) -> StepLaw: ...

    @property
    def replicas(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Requests:
    """Arrays of one length, in order of arrival.

    ``prefix``: dense numbers from 0, -1 for none. The first ``prefix_tokens`` of a request's prompt and answer are
    those of every other request with the same number, as far as both reach.
    """

    arrival_s: Floats
    prompt_tokens: Int64s
    output_tokens: Int64s
    prefix: Int64s
    prefix_tokens: Int64s

    def __post_init__(self) -> None:
        lengths = {len(a) for a in (self.prompt_tokens, self.output_tokens, self.prefix, self.prefix_tokens)}
        if lengths != {len(self.arrival_s)}:
            raise ValueError(f"arrays must have one length, got {len(self.arrival_s)} arrivals and {sorted(lengths)}")
        if np.any(np.diff(self.arrival_s) < 0):
            raise ValueError("arrival_s must not fall")
        if np.any(self.prefix < -1):
            raise ValueError(f"prefix must be a number from 0, or -1 for none, got {self.prefix.min()}")

    def __len__(self) -> int:
        return len(self.arrival_s)


@dataclass(frozen=True, slots=True)
class Served:
    """What became of each request (arrays, in order of arrival), and of the engine. Simulated.

    first_token_s, done_s: on the clock of the arrivals; inf: rejected. tpot_s: per token after the first; NaN where
    there is none. computed_tokens: refused drafts included; lost_tokens of them by preemption. kv_blocks and
    kv_blocks_peak: of one replica; kv_blocks_free_at_end: of all, those included that may be found again.
    """

    first_token_s: Floats
    done_s: Floats
    tpot_s: Floats
    preemptions: int
    lost_tokens: int
    prefix_hit_tokens: int
    computed_tokens: int
    kv_blocks: int
    kv_blocks_peak: int
    kv_blocks_free_at_end: int
    steps: int
    busy_s: float
    drafted_tokens: int
    accepted_tokens: int


def serve(law: Serving, requests: Requests, seed: int = 0, until_s: float = math.inf) -> Served:
    """Equal arguments, equal answers. ``seed`` decides which drafted tokens are accepted, nothing else.

    until_s: the engine is stopped after the step in which that falls; what it would have done later is inf.
    """
    n = len(requests)
    first, done = np.full(n, np.inf), np.full(n, np.inf)
    counts = np.zeros(10, np.int64)
    peak, free, busy = 0, 0, 0.0
    for replica in range(law.replicas):
        mine = slice(replica, n, law.replicas)
        core = _prepared(law, requests, mine, seed + replica)
        arrival = np.ascontiguousarray(requests.arrival_s[mine], np.float64)
        times = np.full((len(arrival), 2), np.inf)
        busy += _run(core, arrival, times, until_s)
        first[mine], done[mine] = times.T
        counts += core.counts[: len(counts)]
        peak = max(peak, int(core.kv.counts[USED_MOST]))
        free += int(core.kv.counts[FREE])
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(
            (requests.output_tokens > 1) & np.isfinite(done), (done - first) / (requests.output_tokens - 1), np.nan
        )
    return Served(
        first_token_s=first,
        done_s=done,
        tpot_s=tpot,
        preemptions=int(counts[PREEMPTIONS]),
        lost_tokens=int(counts[LOST_TOKENS]),
        prefix_hit_tokens=int(counts[FOUND_TOKENS]),
        computed_tokens=int(counts[COMPUTED_TOKENS]),
        kv_blocks=law.limits.blocks,
        kv_blocks_peak=peak,
        kv_blocks_free_at_end=free,
        steps=int(counts[STEPS]),
        busy_s=busy,
        drafted_tokens=int(counts[DRAFTED]),
        accepted_tokens=int(counts[ACCEPTED]),
    )


def _prepared(law: Serving, requests: Requests, mine: slice, seed: int) -> Core:
    prefix = requests.prefix[mine]
    longest = np.zeros(int(requests.prefix.max(initial=-1)) + 1, np.int64)
    if law.limits.prefix_caching:
        known = prefix >= 0
        np.maximum.at(longest, prefix[known], requests.prefix_tokens[mine][known])
    core = engine.core(law.limits, law.steps, len(prefix), longest, seed)
    asked = (requests.prompt_tokens, requests.output_tokens, requests.prefix, requests.prefix_tokens)
    for column, values in zip((PROMPT, OUTPUT, PREFIX, PREFIX_TOKENS), asked, strict=True):
        core.sequences[:, column] = values[mine]
    return core


@compiled
def _run(core: Core, arrival_s: Floats, times_s: Floats, until_s: float) -> float:
    """Fills ``times_s``, (n, 2), with first and last tokens; returns the seconds in which the engine was not idle."""
    sequences, given, load = core.sequences, core.given, core.load
    now, idle = 0.0, 0.0
    coming = 0
    n = len(arrival_s)
    while now <= until_s:
        while coming < n and arrival_s[coming] <= now:
            if engine.fits(core.limits, sequences[coming, PROMPT], sequences[coming, OUTPUT]):
                engine.enqueue(core, coming)
            coming += 1
        next_s = arrival_s[coming] if coming < n else np.inf
        if core.counts[RUNNING] + core.counts[WAITING] == 0:
            if coming == n:
                return now - idle
            idle += next_s - now
            now = next_s
            continue
        then = engine.coast(core, now, min(next_s, until_s))
        if then > now:
            now = then
            continue
        now += engine.step(core)
        for i in range(load[GIVEN]):
            sequence, out = given[i, WHO], given[i, OUT]
            generated = sequences[sequence, GENERATED]
            if out > 0 and generated == out:
                times_s[sequence, 0] = now
            if generated == sequences[sequence, OUTPUT]:
                times_s[sequence, 1] = now
    return now - idle


def draw(
    n: int,
    rate_rps: float,
    rng: np.random.Generator,
    *,
    gap_cv: float = 1.0,
    prompt_tokens: tuple[float, float] = (1000.0, 1.0),
    output_tokens: tuple[float, float] = (200.0, 1.0),
    longest_tokens: int = 8192,
    prefixes: int = 0,
    prefix_tokens: int = 0,
) -> Requests:
    """``n`` requests with gamma gaps and lognormal lengths, each given as (mean, coefficient of variation).

    ``gap_cv`` 1 is a Poisson process. Lengths are clipped so that prompt and answer are ``longest_tokens`` at most.
    With ``prefixes`` > 0 every prompt begins with the first ``prefix_tokens`` of one of them, all equally likely.
    """
    arrivals = np.cumsum(rng.gamma(1 / gap_cv**2, gap_cv**2 / rate_rps, n))
    outputs = np.minimum(_lognormal(*output_tokens, n, rng), longest_tokens // 2)
    prompts = np.minimum(_lognormal(*prompt_tokens, n, rng), longest_tokens - outputs)
    prefix = rng.integers(0, prefixes, n) if prefixes else np.full(n, -1, np.int64)
    if prefixes:
        prompts = np.clip(prompts, prefix_tokens + 1, longest_tokens - outputs)
    return Requests(arrivals, prompts, outputs, prefix, np.full(n, prefix_tokens, np.int64))


def _lognormal(mean: float, cv: float, n: int, rng: np.random.Generator) -> Int64s:
    spread2 = np.log1p(cv**2)
    drawn = rng.lognormal(np.log(mean) - spread2 / 2, np.sqrt(spread2), n)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)
