"""What holds at several rates say together about the capacity: a posterior over a queueing-shaped curve.

Knows nothing of engines, and not how a hold was made: of each it takes what a `Probe` records.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import xlogy

from tuners.results import Probe

FloatArray = NDArray[np.float64]

SPAN, GRID = 1.6, 401  # the grid of log capacities: half its width around the prior, and its points
STEEPNESS = np.geomspace(0.3, 150.0, 18)  # d log latency / d log rate at the capacity: u / (1 - u) at utilisation u
STEEPNESS_SPREAD = 1.0  # standard deviation of its logarithm beforehand …
LEAST_STEEPNESS, WAITING_PER_STEEPNESS = 1.5, 2.0  # … around the steepness of a queue in heavy traffic
MISFIT, MISFIT_AWAY = 0.03, 0.3  # no queue follows the curve: standard deviation at the target, and per log load away
FREEDOM = 5.0  # degrees of Student's t: one strange hold must not decide
MOST_LOG_LOAD = math.log(4.0)  # beyond, a queue explodes: "far too fast", not how far
LEAST_LOG_LOAD = -3.0
MISFIT_SHORT = 0.25  # and per unit of `shortfall`
LATENCY_WEIGHT, MISSES_WEIGHT = 0.2, 0.9  # both come from the same latencies; rare bursts show in the misses alone
BURSTS = 1.35  # misses come in bursts: so much more deflation than log latency shows
RISE, SETTLING = 0.2, 3.0  # how log latency rises in a queue that begins empty
LIMIT_MISFIT = 0.03
LEAST_SE = 0.3  # log load of a hold whose precision was not recorded


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed before the first hold. ``spread``: standard deviation of the logarithm."""

    rate_rps: float
    spread: float


class Allowed(NamedTuple):
    """What a latency target leaves for waiting: ``wait_s`` = target - latency of an idle engine."""

    target_s: float
    wait_s: float


@dataclass(frozen=True, slots=True)
class Belief:
    """A distribution over the capacity."""

    log_rates: FloatArray  # increasing
    weights: FloatArray  # sum to 1

    def quantile(self, q: float) -> float:
        """In requests/s."""
        cumulative = np.cumsum(self.weights) - self.weights / 2
        return float(np.exp(np.interp(q, cumulative, self.log_rates)))

    @property
    def spread(self) -> float:
        """Half of the central 68 % of log capacity: a relative standard error."""
        return 0.5 * math.log(self.quantile(0.84) / self.quantile(0.16))


def believe(probes: Sequence[Probe], prior: Prior, allowed: Allowed) -> Belief:
    """The posterior of the capacity C after the holds among ``probes``.

    Near C the worst latency is target * (1 - C/m) / (1 - rate/m), the shape of a queue that saturates at the rate
    m = C (1 + 1/s). The steepness s is integrated out; a queue in heavy traffic has s ~ C * wait / 2, half the
    requests that come within the wait which the target allows (M/M/1: s = C * wait / 3), and that is its prior.

    Of each hold two things count: its misses, binomial around tolerated ** (target / latency), what an exponential
    tail misses; and, less, its latency percentile, Student-t around the curve. Both are deflated for correlation.
    A hold that begins on a drained engine shows less than the steady state, `shortfall`; one that passed was not far
    beyond saturation, or it would have shown what is `overloaded`. A saturated one says what m is.
    """
    middle = math.log(prior.rate_rps)
    log_c = middle + np.linspace(-SPAN, SPAN, GRID)
    c, s = np.exp(log_c)[:, None], STEEPNESS[None, :]
    usual = np.maximum(LEAST_STEEPNESS, c * allowed.wait_s / WAITING_PER_STEEPNESS)
    log_p = -0.5 * ((log_c - middle) / prior.spread)[:, None] ** 2 - 0.5 * (np.log(s / usual) / STEEPNESS_SPREAD) ** 2
    for probe in probes:
        if probe.kind == "hold" and probe.n > 0:
            log_p = log_p + _log_likelihood(probe, c, s, allowed)
    posterior = np.exp(log_p - log_p.max()).sum(axis=1)
    return Belief(log_c, posterior / posterior.sum())


def curve(rate_rps: float, capacity_rps: FloatArray, steepness: FloatArray) -> FloatArray:
    """log(latency / target) in steady state, cut to LEAST_LOG_LOAD … MOST_LOG_LOAD. Broadcasts."""
    room = 1 - rate_rps / (capacity_rps * (1 + 1 / steepness))
    log_load = -np.log(np.maximum(room, 1e-9) * (1 + steepness))
    return np.asarray(np.clip(log_load, LEAST_LOG_LOAD, MOST_LOG_LOAD))


def shortfall(waiting: FloatArray, n: int) -> FloatArray:
    """How far the log latency percentile of ``n`` requests from empty lies below its steady state.

    waiting: requests that come within the steady state's wait. A queue grows by diffusion: it takes the square
    of them to settle. Constants fitted to M/M/k, M/D/1, batches and a scheduler (docs/adr/007).
    """
    return np.asarray(RISE * np.log1p(SETTLING * waiting**2 / n))


class Overload(NamedTuple):
    """The least that a hold can show beyond saturation; -inf and 0 below it."""

    log_load: FloatArray  # log(latency percentile / target)
    missed: FloatArray  # share of the requests


def overloaded(rate_rps: float, n: int, saturation_rps: FloatArray, percentile: float, allowed: Allowed) -> Overload:
    """What ``n`` requests at least show at a rate beyond saturation, however little has settled. Broadcasts.

    A fluid that comes in at the rate r and leaves at m has waited t (1 - m / r) after t seconds. So the percentile q of
    a hold of T = n / r seconds has waited at least q T (1 - m / r), and all that come after wait / (1 - m / r) miss.
    """
    if allowed.target_s <= 0:
        return Overload(np.full(np.shape(saturation_rps), -np.inf), np.zeros(np.shape(saturation_rps)))
    growth = np.maximum(1 - saturation_rps / rate_rps, 1e-9)  # of the wait, per second
    load = (allowed.target_s - allowed.wait_s + percentile * n / rate_rps * growth) / allowed.target_s
    missed = np.clip(1 - allowed.wait_s / (growth * n / rate_rps), 0, 1)
    beyond = saturation_rps < rate_rps
    return Overload(np.where(beyond, np.log(np.maximum(load, 1e-9)), -np.inf), np.where(beyond, missed, 0.0))


def saturates_rps(knee_rps: float, growth_per_s: float, wait_s: float) -> float:
    """The rate m at which an engine saturates, from an exponential ramp on which waits reached ``wait_s``.

    The ramp outruns the queue: what was due beyond m since the ramp passed m still waits, m * wait_s requests.
    Solves (knee - m - m log(knee / m)) / growth = m * wait_s, a fluid's balance.
    """

    def excess(log_m: float) -> float:
        m = math.exp(log_m)
        return (knee_rps - m - m * math.log(knee_rps / m)) / growth_per_s - m * wait_s

    log_knee = math.log(knee_rps)
    return math.exp(float(brentq(excess, log_knee - 20, log_knee)))


def below_saturation(rate_rps: float, wait_s: float) -> float:
    """The capacity to expect of an engine that saturates at ``rate_rps``."""
    steepness = max(LEAST_STEEPNESS, rate_rps * wait_s / WAITING_PER_STEEPNESS)
    return rate_rps * steepness / (1 + steepness)


def _log_likelihood(probe: Probe, c: FloatArray, s: FloatArray, allowed: Allowed) -> FloatArray:
    log_load = curve(probe.rate_rps, c, s)
    waiting = probe.rate_rps * np.maximum(0.0, allowed.wait_s + allowed.target_s * (np.exp(log_load) - 1))
    short = shortfall(waiting, probe.n)
    seen = math.log(probe.load) if probe.load else LEAST_LOG_LOAD
    seen = min(max(seen, -MOST_LOG_LOAD), MOST_LOG_LOAD)
    shown, missed = log_load - short, probe.tolerated ** np.exp(short - log_load)
    if probe.passed:  # one that failed may have been cut short: what it did not show says nothing
        least = overloaded(probe.rate_rps, probe.n, c * (1 + 1 / s), 1 - probe.tolerated, allowed)
        shown, missed = np.maximum(shown, least.log_load), np.maximum(missed, least.missed)
    shown = np.clip(shown, -MOST_LOG_LOAD, MOST_LOG_LOAD)
    # A hold with luckily low latency looks luckily precise: its error is that of the curve's latency, not its own.
    luck = np.exp(np.clip(shown - seen, -1, 1))
    variance = (luck * (probe.load_se or LEAST_SE)) ** 2 + MISFIT**2
    variance += (MISFIT_AWAY * log_load) ** 2 + (MISFIT_SHORT * short) ** 2
    of_latency = -0.5 * np.log(variance) - (FREEDOM + 1) / 2 * np.log1p((seen - shown) ** 2 / variance / FREEDOM)
    k, n, d = probe.misses, probe.n, BURSTS * luck * probe.deflation
    p = np.clip(missed, 1e-12, 0.999)
    deviance = xlogy(k, k / (n * p)) + xlogy(n - k, (n - k) / (n * (1 - p)))
    found = LATENCY_WEIGHT * of_latency - MISSES_WEIGHT * (deviance / d + 0.5 * np.log(d))
    if probe.limit_rps is not None:
        variance_limit = 1 / probe.limit_n + LIMIT_MISFIT**2
        off = np.log(probe.limit_rps / (c * (1 + 1 / s))) ** 2
        found = found - (FREEDOM + 1) / 2 * np.log1p(off / variance_limit / FREEDOM)
    return np.asarray(found)
