"""The highest rate that still meets every SLO, found on one running engine. Search-grade: ranks, never certifies.

A short exponential ramp brackets the knee; holds at a constant rate close in on it, each cut short when its
outcome is certain. Knows nothing of engines or load generation: it asks a `Prober`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tuners.results import Capacity, Probe

RAMP_SPAN = 8.0  # end rate / start rate of one ramp
MOST_RAMPS = 4  # from 1/2 of the guess to 2000 times it
KNEE_WINDOW = 16  # requests over which the ramp's misses are averaged
KNEE_SHARE = 0.25  # share of misses in the window that marks the knee: above the SLO's, below noise
RAMP_LAG = 0.65  # a ramp outruns the queue it builds: the knee it shows lies above the capacity
STEPS = (1.1, 1.5)  # least and most change of rate between holds while only one side of the bracket is known
LOAD_CAP = 4.0  # a queue that explodes says "far too fast", not how far
RACE_SHARE = 0.6  # a knee below this share of the best capacity cannot win: no holds are spent on it


@dataclass(frozen=True, slots=True)
class Ramp:
    """Requests of a ramp in order of intended time."""

    rates_rps: NDArray[np.float64]  # the ramp's rate when the request was due
    missed: NDArray[np.bool_]  # missed any target


class Prober(Protocol):
    """Loads one running engine and says what came of it."""

    def ramp(self, start_rps: float, end_rps: float, attempt: int) -> Ramp: ...

    def hold(self, rate_rps: float, attempt: int) -> Probe: ...


def knee_rps(ramp: Ramp) -> float | None:
    """The rate at which misses became frequent; None when they did not before the ramp ended.

    It is taken in the middle of the first ``KNEE_WINDOW`` requests of which ``KNEE_SHARE`` missed a target.
    """
    n = len(ramp.missed)
    window = min(KNEE_WINDOW, n)
    if window == 0:
        return None
    share = np.convolve(ramp.missed.astype(float), np.ones(window) / window, mode="valid")
    over = np.flatnonzero(share >= KNEE_SHARE)
    if len(over) == 0:
        return None
    return float(ramp.rates_rps[min(over[0] + window // 2, n - 1)])


def bracket(prober: Prober, guess_rps: float) -> tuple[float, Probe]:
    """A first estimate from one or more ramps, beginning at half of ``guess_rps``."""
    start = guess_rps / 2
    for attempt in range(MOST_RAMPS):
        ramp = prober.ramp(start, start * RAMP_SPAN, attempt)
        knee = knee_rps(ramp)
        if knee is not None or attempt == MOST_RAMPS - 1:
            break
        start *= RAMP_SPAN
    rate = start * RAMP_SPAN if knee is None else max(knee, start) * RAMP_LAG
    probe = Probe(
        kind="ramp",
        rate_rps=rate,
        n=len(ramp.missed),
        misses=int(np.sum(ramp.missed)),
        load=None,
        passed=knee is None,
    )
    return rate, probe


def estimate(
    prober: Prober,
    *,
    holds: int,
    guess_rps: float,
    near: bool = False,
    best_rps: float | None = None,
    on_probe: Callable[[Probe], None] = lambda _: None,
) -> Capacity:
    """Capacity by ramp and at most ``holds`` holds.

    guess_rps: any rate to begin at; with ``near`` it is trusted, and the ramp is left out.
    best_rps: the best capacity so far; a configuration whose ramp ends far below it is not pursued.
    """
    probes: list[Probe] = []

    def seen(probe: Probe) -> Probe:
        probes.append(probe)
        on_probe(probe)
        return probe

    rate = guess_rps
    if not near:
        rate, ramp = bracket(prober, guess_rps)
        seen(ramp)
        if best_rps is not None and rate < RACE_SHARE * best_rps:
            return Capacity(
                rate_rps=rate, highest_passed_rps=None, lowest_failed_rps=None, raced=True, probes=tuple(probes)
            )
    low: Probe | None = None  # fastest hold that passed, below every one that failed
    high: Probe | None = None  # slowest that failed
    for attempt in range(holds):
        probe = seen(prober.hold(rate, attempt))
        if probe.passed:
            low = probe if low is None or probe.rate_rps > low.rate_rps else low
        else:
            high = probe if high is None or probe.rate_rps < high.rate_rps else high
        if low and high and low.rate_rps >= high.rate_rps:
            low = None  # a pass above a fail was luck: the lower evidence stands
        rate = _next(low, high)
    return Capacity(
        rate_rps=_between(low, high),
        highest_passed_rps=low.rate_rps if low else None,
        lowest_failed_rps=high.rate_rps if high else None,
        raced=False,
        probes=tuple(probes),
    )


def _next(low: Probe | None, high: Probe | None) -> float:
    if low and high:
        return math.sqrt(low.rate_rps * high.rate_rps)
    least, most = STEPS
    if low:
        return low.rate_rps * min(most, max(least, 1 / (low.load or 1.0)))
    assert high is not None
    return high.rate_rps / min(most, max(least, high.load or most))


def _between(low: Probe | None, high: Probe | None) -> float:
    """Where the worst percentile / target reaches 1, log-linear between the two holds; 0 when none passed."""
    if low is None:
        return 0.0
    if high is None:
        return low.rate_rps
    x0, x1 = math.log(low.rate_rps), math.log(high.rate_rps)
    y0 = math.log(min(max(low.load or LOAD_CAP, 1e-3), 1.0))
    y1 = math.log(min(max(high.load or LOAD_CAP, 1.0), LOAD_CAP))
    return math.exp(x0 + (x1 - x0) * (0.5 if y1 == y0 else -y0 / (y1 - y0)))
