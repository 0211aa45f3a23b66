"""Draws from the distributions that a workload names, and their means.

Knows nothing of what is counted: tokens, turns or seconds.
"""

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
from numpy.random import Generator

from scenarios.traces import column
from scenarios.traffic import Lengths, Pauses

DRAWS_AT_ONCE = 256


def draw_lengths(lengths: Lengths, rng: Generator, n: int) -> list[int]:
    """``n`` counts, rounded and clipped to [min, longest]; mean and cv are those before clipping.

    Lognormal: sigma^2 = ln(1 + cv^2), mu = ln(mean) - sigma^2 / 2. Raises TraceError where a file of numbers
    cannot be read.
    """
    if lengths.distribution == "uniform":
        return [int(x) for x in rng.integers(lengths.min, lengths.longest, size=n, endpoint=True)]
    if lengths.distribution == "empirical":
        values = numbers(lengths)
        return [min(max(values[i], lengths.min), lengths.longest) for i in rng.integers(len(values), size=n)]
    assert lengths.mean is not None
    z = rng.standard_normal(n)
    cv = lengths.cv or 0.0
    if lengths.distribution == "lognormal":
        mu, sigma = _of_logarithm(lengths.mean, cv)
        drawn = np.exp(mu + sigma * z)
    else:
        drawn = lengths.mean * (1 + cv * z)
    return [int(x) for x in np.rint(drawn).clip(lengths.min, lengths.longest)]


def mean_length(lengths: Lengths) -> float:
    """The exact mean of what `draw_lengths` draws, after rounding and clipping."""
    low, high = lengths.min, lengths.longest
    if lengths.distribution == "uniform":
        return (low + high) / 2
    if lengths.distribution == "empirical":
        values = numbers(lengths)
        return sum(min(max(v, low), high) for v in values) / len(values)
    assert lengths.mean is not None
    if lengths.cv is None:
        return float(min(max(round(lengths.mean), low), high))
    if lengths.distribution == "lognormal":
        normal = NormalDist(*_of_logarithm(lengths.mean, lengths.cv))
        return low + sum(1 - normal.cdf(math.log(k + 0.5)) for k in range(low, high))
    normal = NormalDist(lengths.mean, lengths.mean * lengths.cv)
    return low + sum(1 - normal.cdf(k + 0.5) for k in range(low, high))


def numbers(lengths: Lengths) -> tuple[int, ...]:
    """What an empirical distribution draws from, before clipping. Raises TraceError."""
    if lengths.values is not None:
        return lengths.values
    assert lengths.file is not None
    assert lengths.column is not None
    return column(lengths.file, lengths.column, lengths.sha256)


def stream(lengths: Lengths, rng: Generator) -> Iterator[int]:
    """`draw_lengths` without end."""
    while True:
        yield from draw_lengths(lengths, rng, DRAWS_AT_ONCE)


def draw_pause_s(pauses: Pauses, rng: Generator) -> float:
    """Seconds, clipped to [0, longest]. One draw of ``rng`` whatever the distribution."""
    z = rng.standard_normal()
    if pauses.distribution == "fixed":
        return min(pauses.mean, pauses.longest)
    if pauses.distribution == "lognormal":
        assert pauses.cv is not None
        mu, sigma = _of_logarithm(pauses.mean, pauses.cv)
        return min(math.exp(mu + sigma * z), pauses.longest)
    return min(-pauses.mean * math.log(NormalDist().cdf(-z) or 5e-324), pauses.longest)


def _of_logarithm(mean: float, cv: float) -> tuple[float, float]:
    """Mean and standard deviation of the logarithm of a lognormal with that mean and coefficient of variation."""
    sigma2 = math.log1p(cv**2)
    return math.log(mean) - sigma2 / 2, math.sqrt(sigma2)
