"""The traffic of a scenario as arrays, without texts: arrivals at rate 1, lengths, shared prefixes.

Knows nothing of engines. As in `scenarios.workload`, equal seeds give equal requests at whatever rate. Two things are
simpler than there: a later turn of a session is due as if answers took no time, and what its history shares with the
turn before it is computed anew; a prefix that sessions share is shared.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.engines.simulated.virtual import Requests
from scenarios.lengths import draw_lengths
from scenarios.traffic import Lengths, Workload

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MARGIN = 1.25  # times the expected number of sessions, and …
SPARE = 64  # … so many more, are drawn


@dataclass(frozen=True, slots=True)
class Drawn:
    """``start``: of each request's session in the process of rate 1; ``pause_s``: from there to the request."""

    start: Floats
    pause_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    prefix: Ints


class Traffic:
    """What one seed stands for. Draws more as more is asked of it; what was drawn stays as it was."""

    def __init__(self, workload: Workload, seed: int | tuple[int, ...]) -> None:
        assert workload.prompt_tokens is not None
        assert workload.output_tokens is not None
        self._workload = workload
        self._seed = seed
        self._turns = workload.sessions.turns if workload.sessions else None
        self._drawn: Drawn | None = None
        self._sessions = 0

    def hold(self, rate_rps: float, duration_s: float) -> Requests:
        """Sessions that began before 0 are under way."""
        return self._between(rate_rps, duration_s, lambda unit: unit / rate_rps, rate_rps * duration_s)

    def ramp(self, start_rps: float, end_rps: float, duration_s: float) -> Requests:
        """The rate grows exponentially (`scenarios.workload.ramp`)."""
        growth = math.log(end_rps / start_rps) / duration_s

        def clock(unit: Floats) -> Floats:
            later = np.log1p(growth * np.maximum(unit, 0) / start_rps) / growth
            return np.where(unit < 0, unit / start_rps, later)

        return self._between(start_rps, duration_s, clock, (end_rps - start_rps) / growth)

    def first(self, n: int, rate_rps: float) -> Requests:
        """``n`` requests at a constant rate; inf: all at 0, in the order of a slow one."""
        drawn = self._at_least(n)
        arrival_s = drawn.start / (rate_rps if math.isfinite(rate_rps) else 1.0) + drawn.pause_s
        order = np.argsort(arrival_s, kind="stable")[:n]
        arrival_s = arrival_s[order] if math.isfinite(rate_rps) else np.zeros(n)
        return self._requests(drawn, order, arrival_s)

    def _between(
        self, first_rps: float, duration_s: float, clock: Callable[[Floats], Floats], expected: float
    ) -> Requests:
        before = first_rps * self._longest_s
        drawn = self._at_least(expected + before)
        arrival_s = clock(drawn.start - before) + drawn.pause_s
        due = (arrival_s >= 0) & (arrival_s < duration_s)
        order = np.flatnonzero(due)[np.argsort(arrival_s[due], kind="stable")]
        return self._requests(drawn, order, arrival_s[order])

    def _requests(self, drawn: Drawn, order: NDArray[np.intp], arrival_s: Floats) -> Requests:
        prefix = self._workload.prefix
        shared = prefix.tokens if prefix else 0
        return Requests(
            arrival_s=arrival_s,
            prompt_tokens=drawn.prompt_tokens[order],
            output_tokens=drawn.output_tokens[order],
            prefix=drawn.prefix[order],
            prefix_tokens=np.full(len(order), shared, np.int64),
        )

    @property
    def _longest_s(self) -> float:
        sessions = self._workload.sessions
        if sessions is None or sessions.think_time_s is None:
            return 0.0
        return 2 * self._most_turns * _mean_pause_s(self._workload)

    @property
    def _most_turns(self) -> int:
        return self._turns.longest if self._turns else 1

    def _at_least(self, requests: float) -> Drawn:
        """Enough for so many requests to be expected. The first sessions are the same however many are drawn."""
        mean_turns = (self._turns.min + self._turns.longest) / 2 if self._turns else 1.0
        bursts = self._workload.arrivals.gap_cv or 1.0
        sessions = math.ceil(MARGIN * requests / mean_turns + SPARE * max(1.0, bursts**2))
        if self._drawn is None or self._sessions < sessions:
            self._sessions = max(sessions, 2 * self._sessions)
            self._drawn = _draw(self._workload, self._seed, self._sessions, mean_turns)
        return self._drawn


def _draw(workload: Workload, seed: int | tuple[int, ...], n: int, mean_turns: float) -> Drawn:
    """A stream of random numbers for each thing, so that drawing more of one changes no other."""
    assert workload.prompt_tokens is not None
    assert workload.output_tokens is not None
    gaps, turns, prompts, outputs, pauses, prefixes, reuses = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(7)
    )
    sessions = workload.sessions
    counts = np.ones(n, np.int64)
    if sessions and sessions.turns:
        counts = np.array(draw_lengths(sessions.turns, turns, n))
    most = int(sessions.turns.longest) if sessions and sessions.turns else 1
    new = _lengths(workload.prompt_tokens, prompts, n, most)
    said = _lengths(workload.output_tokens, outputs, n, most)
    history = np.cumsum(new + said, axis=1) - (new + said)
    pause_s = np.zeros((n, most))
    if sessions and sessions.think_time_s:
        spread = math.log1p((sessions.think_time_s.cv or 0.0) ** 2)
        z = pauses.standard_normal((n, most))
        pause_s = _mean_pause_s(workload) * np.exp(math.sqrt(spread) * z - spread / 2)
        pause_s = np.minimum(pause_s, sessions.think_time_s.max or np.inf)
        pause_s[:, 0] = 0.0
    shared = workload.prefix
    prefix = np.full(n, -1, np.int64)
    if shared:
        prefix = prefixes.integers(0, shared.pool, n)
        prefix[reuses.random(n) >= shared.reuse] = -1
    there = np.arange(most)[None, :] < counts[:, None]
    start = _starts(workload, gaps, n) * mean_turns
    return Drawn(
        start=np.broadcast_to(start[:, None], there.shape)[there],
        pause_s=np.cumsum(pause_s, axis=1)[there],
        prompt_tokens=(new + history + (shared.tokens if shared else 0))[there],
        output_tokens=said[there],
        prefix=np.broadcast_to(prefix[:, None], there.shape)[there],
    )


def _starts(workload: Workload, rng: np.random.Generator, n: int) -> Floats:
    arrivals = workload.arrivals
    if arrivals.process == "constant":
        return np.arange(0.5, n, dtype=np.float64)
    cv = arrivals.gap_cv or 1.0
    return np.cumsum(rng.gamma(cv**-2, cv**2, n))


def _lengths(lengths: Lengths, rng: np.random.Generator, n: int, most: int) -> Ints:
    return np.array(draw_lengths(lengths, rng, n * most)).reshape(n, most)


def _mean_pause_s(workload: Workload) -> float:
    assert workload.sessions is not None
    assert workload.sessions.think_time_s is not None
    return float(workload.sessions.think_time_s.mean or 0.0)
