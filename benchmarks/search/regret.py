"""What the courses of many seeds say together: medians with intervals, times to the optimum, paired tests.

Knows nothing of worlds, arms or files. Intervals are percentile bootstraps over seeds; a time that more than half of
the seeds never reached is told as "more than" the budget, not left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from search.courses import Course

Floats = NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95
WITHIN = 0.05  # regret that counts as found
ALPHA = 0.01


@dataclass(frozen=True, slots=True)
class Interval:
    """``value`` inf: more than half never got there. ``high`` inf: cannot be told from never."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of an arm with another over paired seeds. ``p``: two-sided; ``p_holm``: adjusted, where several were made."""

    wins: int
    losses: int
    ties: int
    p: float
    p_holm: float
    median_difference: float  # of the regrets, arm - other: negative is better


def median(values: Sequence[float], seed: int = 0) -> Interval:
    """Of the values, some of which may be inf."""
    drawn = np.sort(np.asarray(values, dtype=np.float64))
    rng = np.random.default_rng(seed)
    again = drawn[rng.integers(0, len(drawn), (RESAMPLES, len(drawn)))]
    medians = np.quantile(again, 0.5, axis=1, method="inverted_cdf")
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf")
    return Interval(float(np.quantile(drawn, 0.5, method="inverted_cdf")), float(low), float(high))


def time_to(courses: Sequence[Course], regret: float = WITHIN) -> Interval:
    """Seconds until the pick was first within ``regret``; never is inf."""
    times = [c.first_within(regret) for c in courses]
    return median([math.inf if t is None else t for t in times])


def reached(courses: Sequence[Course], regret: float = WITHIN) -> float:
    """Share of the seeds that ever got there."""
    return sum(c.first_within(regret) is not None for c in courses) / len(courses)


def compared(arm: Mapping[str, float], other: Mapping[str, float]) -> Comparison:
    """Wilcoxon signed-rank on the seeds that both have (zeros split evenly: Pratt 1959)."""
    seeds = sorted(arm.keys() & other.keys())
    differences = np.array([arm[s] - other[s] for s in seeds])
    p = 1.0
    if np.any(differences != 0):
        p = float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)
    return Comparison(
        wins=int((differences < 0).sum()),
        losses=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        p=p,
        p_holm=p,
        median_difference=float(np.median(differences)),
    )


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979), in the order given."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    worst = 0.0
    for rank, index in enumerate(order):
        worst = max(worst, (len(p) - rank) * p[index])
        adjusted[index] = min(1.0, worst)
    return [float(x) for x in adjusted]


def curve(courses: Sequence[Course], at: Callable[[Course, float], float], grid: Sequence[float]) -> list[list[float]]:
    """Rows [place, quartile, median, quartile] of the regret over the courses."""
    rows = []
    for place in grid:
        values = [at(course, place) for course in courses]
        rows.append([place, *(round(float(q), 4) for q in np.quantile(values, [0.25, 0.5, 0.75]))])
    return rows


def binomial_upper(successes: int, n: int, confidence: float = CONFIDENCE) -> float:
    """Exact one-sided upper bound of a share (Clopper & Pearson 1934)."""
    return 1.0 if successes >= n else float(stats.beta.ppf(confidence, successes + 1, n - successes))
