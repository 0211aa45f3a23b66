"""The highest rate that still meets every SLO, found on one running engine. Search-grade: ranks, never certifies.

A short exponential ramp brackets the knee; holds at a constant rate close in on it, each where the belief about
the capacity (belief.py) gains from it. Knows nothing of engines or load generation: it asks a `Prober`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.stats.autocorrelation import deflation, latency_time
from harness.stats.intervals import METHOD
from tuners.belief import Allowed, Belief, Prior, believe, below_saturation, saturates_rps, shortfall
from tuners.results import Capacity, Probe

RAMP_SPAN = 8.0  # end rate / start rate of one ramp
MOST_RAMPS = 5  # from 1/2 of the guess to 30,000 times it, or down to as small a part
KNEE_WINDOW = 16  # requests over which the ramp's misses are averaged
KNEE_SHARE = 0.25  # share of misses in the window that marks the knee: above the SLO's, below noise
KNEE_AT_START = 1.15  # a knee so near the ramp's first rate says that it began too fast
KNEE_SPREAD, NEAR_SPREAD = 0.4, 0.15  # relative error of a ramp's knee, and of a guess that is near
MOST_OF_KNEE = 0.8  # the knee of a ramp lies above the capacity
LOAD_CAP = 4.0  # a queue that explodes says "far too fast", not how far
RACE_SHARE = 0.6  # a knee below this share of the best capacity cannot win: no holds are spent on it
ASIDE = (0.25, 0.75)  # holds go below and above the believed capacity by turns: a curve needs both sides
FEWEST_HOLDS_TO_RETURN = 4  # with fewer, every hold is needed to find the capacity at all
FEWEST_HOLDS = 3  # before a precision is believed …
NEAR, FEWEST_NEAR = 1.15, 1100  # … and so many requests within 15 % of the capacity
OVERLOAD = 1.35  # of the capacity: saturates an engine for certain
UNSETTLED = 0.6  # log latency
SAFETY = 1.05  # the capacity told exceeds the true one by more than 5 % …
RISK = 0.08  # … with no more than this probability, as believed
CONFIDENCE = (0.05, 0.95)  # of the interval told
LEAST_EFFECTIVE = 5.0  # requests; fewer have no order statistics to speak of
LEAST_LOAD_SE = 0.01


@dataclass(frozen=True, slots=True)
class Ramp:
    """Requests of a ramp in order of intended time."""

    rates_rps: NDArray[np.float64]  # the ramp's rate when the request was due
    missed: NDArray[np.bool_]  # missed any target
    growth_per_s: float | None = None  # of the logarithm of the rate; None: unknown, the knee is taken as it is


class Prober(Protocol):
    """Loads one running engine and says what came of it."""

    @property
    def allowed(self) -> Allowed:
        """What the tightest latency target leaves for waiting, as far as is known by now."""

    def ramp(self, start_rps: float, end_rps: float, attempt: int) -> Ramp: ...

    def hold(self, rate_rps: float, attempt: int) -> Probe: ...


class Load(NamedTuple):
    """log(latency percentile / target), its standard error, and the deflation of the request counts."""

    log_load: float
    se: float
    deflation: float


def log_load(latency: NDArray[np.float64], target: float, percentile: float) -> Load:
    """How near a hold came to a target.

    latency: shape (n,), n >= 1, in order of intended send time, in the unit of ``target``; inf where the request
    failed. The error is half the distance of the order statistics one binomial standard deviation to either side,
    of a sample of n / deflation requests; where the upper one is beyond the sample or failed, the lower distance.
    """
    d = deflation(latency_time(latency))
    q = percentile / 100
    step = math.sqrt(q * (1 - q) / max(LEAST_EFFECTIVE, len(latency) / d))
    ranks = [q, q - step, min(1.0, q + step)]
    logs = np.log(np.clip(np.quantile(latency, ranks, method=METHOD), 1e-3 * target, LOAD_CAP * target) / target)
    at, below, above = (float(x) for x in logs)
    return Load(at, max(at - below, (above - below) / 2, LEAST_LOAD_SE), d)


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


def bracket(prober: Prober, guess_rps: float) -> tuple[Prior, Probe]:
    """A first belief from one or more ramps, beginning at half of ``guess_rps``."""
    start = guess_rps / 2
    for attempt in range(MOST_RAMPS):
        ramp = prober.ramp(start, start * RAMP_SPAN, attempt)
        knee = knee_rps(ramp)
        if attempt == MOST_RAMPS - 1 or (knee is not None and knee > KNEE_AT_START * start):
            break
        start *= RAMP_SPAN if knee is None else 1 / RAMP_SPAN
    rate = start * RAMP_SPAN if knee is None else MOST_OF_KNEE * max(knee, start)
    wait_s = prober.allowed.wait_s
    if knee is not None and ramp.growth_per_s is not None:
        rate = min(rate, below_saturation(saturates_rps(max(knee, start), ramp.growth_per_s, wait_s), wait_s))
    probe = Probe(
        kind="ramp",
        rate_rps=rate,
        n=len(ramp.missed),
        misses=int(np.sum(ramp.missed)),
        load=None,
        passed=knee is None,
    )
    return Prior(rate, KNEE_SPREAD), probe


def estimate(
    prober: Prober,
    *,
    holds: int,
    guess_rps: float,
    near: bool = False,
    best_rps: float | None = None,
    precision: float | None = None,
    on_probe: Callable[[Probe], None] = lambda _: None,
) -> Capacity:
    """Capacity by ramp and at most ``holds`` holds.

    guess_rps: any rate to begin at; with ``near`` it is trusted, and the ramp is left out.
    best_rps: what the best so far holds for certain, the lower end of its interval. A configuration is not pursued
    when its ramp ends far below that, or when the upper end of what is believed of it falls below.
    precision: holds end before ``holds`` are made, once the relative standard error is that small.
    """
    probes: list[Probe] = []

    def seen(probe: Probe) -> Probe:
        probes.append(probe)
        on_probe(probe)
        return probe

    prior = Prior(guess_rps, NEAR_SPREAD)
    if not near:
        prior, ramp = bracket(prober, guess_rps)
        seen(ramp)
        if best_rps is not None and prior.rate_rps < RACE_SHARE * best_rps:
            return Capacity(
                rate_rps=prior.rate_rps,
                highest_passed_rps=None,
                lowest_failed_rps=None,
                raced=True,
                probes=tuple(probes),
            )
    belief = believe([], prior, prober.allowed)
    returned = False
    for attempt in range(holds):
        again = None if returned or holds < FEWEST_HOLDS_TO_RETURN else _return_rate(probes)
        returned = returned or again is not None
        rate = belief.quantile(ASIDE[attempt % 2])
        if attempt % 2 and _never_settles(probes, belief, prober.allowed):
            rate = OVERLOAD * belief.quantile(0.5)
        seen(prober.hold(again or rate, attempt))
        belief = believe(probes, prior, prober.allowed)
        if best_rps is not None and attempt < holds - 1 and belief.quantile(CONFIDENCE[1]) < best_rps:
            return told(probes, belief, raced=True)
        if precision is not None and _precise(probes, belief, precision):
            break
    return told(probes, belief)


def told(probes: Sequence[Probe], belief: Belief, *, raced: bool = False) -> Capacity:
    """The capacity as it is told: the median of what is believed, or less where that would risk too much.

    None of the rates tried held: 0.0, unless the race ended before a slower one was tried.
    """
    holds = [p for p in probes if p.kind == "hold"]
    rate = min(belief.quantile(0.5), SAFETY * belief.quantile(RISK))
    if not raced and not any(p.passed for p in holds):
        rate = 0.0
    ratio = _return_ratio(holds)
    low, high = (belief.quantile(q) for q in CONFIDENCE)
    return Capacity(
        rate_rps=rate,
        highest_passed_rps=max((p.rate_rps for p in holds if p.passed and p.rate_rps <= rate), default=None),
        lowest_failed_rps=min((p.rate_rps for p in holds if not p.passed and p.rate_rps >= rate), default=None),
        raced=raced,
        probes=tuple(probes),
        rate_low_rps=low if rate > 0 else None,
        rate_high_rps=high if rate > 0 else None,
        return_ratio=ratio[0] if ratio else None,
        return_ratio_se=ratio[1] if ratio else None,
    )


def _precise(probes: Sequence[Probe], belief: Belief, precision: float) -> bool:
    holds = [p for p in probes if p.kind == "hold"]
    median = belief.quantile(0.5)
    near = sum(p.limit_n or p.n * (1 / NEAR <= p.rate_rps / median <= NEAR) for p in holds)
    return len(holds) >= FEWEST_HOLDS and near >= FEWEST_NEAR and belief.spread <= precision


def _never_settles(probes: Sequence[Probe], belief: Belief, allowed: Allowed) -> bool:
    """Whether the target allows so long a queue that no hold can fill it: then only saturation tells the capacity."""
    n = max((p.n for p in probes if p.kind == "hold"), default=0)
    return n > 0 and float(shortfall(np.array(belief.quantile(0.5) * allowed.wait_s), n)) > UNSETTLED


def _return_rate(probes: Sequence[Probe]) -> float | None:
    """After the first overload that follows a pass: the fastest rate that had passed, to see whether it still does."""
    holds = [p for p in probes if p.kind == "hold"]
    if not holds or holds[-1].passed:
        return None
    return max((p.rate_rps for p in holds if p.passed and p.rate_rps < holds[-1].rate_rps), default=None)


def _return_ratio(holds: Sequence[Probe]) -> tuple[float, float] | None:
    """Load of the hold that was made again after an overload / before, and the standard error of its logarithm."""
    for i, after in enumerate(holds):
        for before in holds[:i]:
            if before.rate_rps == after.rate_rps and before.load and after.load:
                return after.load / before.load, math.hypot(before.load_se or 0.0, after.load_se or 0.0)
    return None
