"""Percentiles, means, ratios and proportions, each with its confidence interval.

Knows nothing of requests or targets. Correlated samples come with their effective size (autocorrelation.py).
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.measurement import Estimate

METHOD: Final = "inverted_cdf"  # numpy's name: the smallest value with at least the asked share at or below it
CONFIDENCE = 0.95


def percentile(x: npt.ArrayLike, q: float) -> float:
    """The ``q``-th percentile (0 < q < 100) of x, shape (n,), n >= 1: always one of its values. inf allowed."""
    return float(np.percentile(np.asarray(x, dtype=np.float64), q, method=METHOD))


def percentile_interval(
    x: npt.ArrayLike, q: float, confidence: float = CONFIDENCE, n_effective: float | None = None
) -> Estimate:
    """The percentile with a distribution-free interval from order statistics.

    The number of values at or below the true percentile is Binomial(n, q/100), so the order statistics whose
    ranks are that law's (1 -/+ confidence)/2 quantiles enclose it with at least that confidence (David and
    Nagaraja 2003, Order Statistics, section 7.1). With fewer effective values than values, the ranks are those
    of a sample of floor(n_effective), stretched to n, outwards.

    x: shape (n,), +inf stands for "failed". None where a rank is beyond the sample or falls on a failure.
    Raises ValueError if x is empty.
    """
    ordered = np.sort(np.asarray(x, dtype=np.float64))
    n = ordered.size
    if n == 0:
        raise ValueError("a percentile needs at least one value")
    size = n if n_effective is None else min(n_effective, n)
    trials = max(1, math.floor(size))
    rank_law = stats.binom(trials, q / 100)
    below, above = float(rank_law.ppf((1 - confidence) / 2)), float(rank_law.ppf((1 + confidence) / 2))
    low = math.floor(below * n / trials)
    high = math.ceil((above + 1) * n / trials)
    return Estimate(
        value=_finite(percentile(ordered, q)),
        low=_finite(ordered[low - 1]) if low >= 1 else None,
        high=_finite(ordered[high - 1]) if high <= n else None,
        confidence=confidence,
        n=n,
        n_effective=size,
    )


def mean_interval(x: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean of independent values with Student's t-interval (Gosset 1908); no interval for a single value."""
    values = np.asarray(x, dtype=np.float64)
    if values.size == 0:
        raise ValueError("a mean needs at least one value")
    mean, n = float(values.mean()), values.size
    half = None
    if n >= 2:
        half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Estimate(
        value=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        confidence=confidence,
        n=n,
        n_effective=n,
    )


def ratio_interval(pairs: Sequence[tuple[float, float]], confidence: float = CONFIDENCE) -> Estimate:
    """Geometric mean of a/b over independent pairs (a, b), with the t-interval of the mean log ratio.

    Raises ValueError if there is no pair or a value is not > 0.
    """
    if not all(a > 0 and b > 0 for a, b in pairs):
        raise ValueError(f"ratios need values > 0, got {list(pairs)}")
    log_ratio = mean_interval([math.log(a / b) for a, b in pairs], confidence)
    ends = {end: getattr(log_ratio, end) for end in ("value", "low", "high")}
    return log_ratio.model_copy(update={end: None if log is None else math.exp(log) for end, log in ends.items()})


def pairs_to_decide(ratio: Estimate, most: int) -> int | None:
    """How many pairs would leave 1 outside a `ratio_interval`, if all scatter about its value as its own did.

    The least n with t(n - 1) s / sqrt(n) < |mean log ratio|, s from the interval; None if that is more than ``most``,
    or if one pair had no interval.
    """
    if ratio.value is None or not ratio.low:
        return None
    mean, half = abs(math.log(ratio.value)), math.log(ratio.value / ratio.low)

    def factor(n: int) -> float:
        return float(stats.t.ppf((1 + ratio.confidence) / 2, n - 1)) / math.sqrt(n)

    return next((n for n in range(2, most + 1) if half * factor(n) / factor(ratio.n) < mean), None)


def binomial_upper(k: int, n: int, confidence: float = CONFIDENCE) -> float:
    """One-sided upper bound of a probability after k successes in n trials (Clopper and Pearson 1934)."""
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"k must be in [0, n] and n >= 1, got {k} of {n}")
    return 1.0 if k == n else float(stats.beta.ppf(confidence, k + 1, n - k))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
