"""Do two measurements differ, when requests within each are correlated? Percentiles, shares and rates.

Knows nothing of requests, targets or what was changed between the two.

Both series are cut into the same few batches, in order of intended send time; batch j of the second minus batch j of
the first are the observations, and Student's t decides (batch means: Conway 1963; the paired t of two systems and
common random numbers: Law 2015, Simulation Modeling and Analysis, sections 9.5.3, 10.2.1 and 11.2). A batch is
many autocorrelation times long, so batches hardly know of each other, whatever happens within them; and where both
runs replayed the same schedule, the luck of its arrivals falls out of the difference. Few batches and a wide t keep
the false alarms at their level; how far: tests/stats/test_compare.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.stats.autocorrelation import latency_time
from harness.stats.intervals import CONFIDENCE, percentile

FloatArray = npt.NDArray[np.float64]

BATCHES = (10, 5)  # as many as the series is long enough for
TIMES_PER_BATCH = 4.0  # least length of a batch, in autocorrelation times
FARTHEST_RATIO = 32.0
BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class Change:
    """From the first measurement to the second: ``second / first`` of percentiles, ``second - first`` otherwise.

    ``first``, ``second``: inf where a percentile falls on failures. ``change`` None: there is no such number.
    ``low``, ``high``: interval of the change; None: beyond what this sample can bound. ``p_value``: of no change;
    None: too short to tell.
    """

    first: float
    second: float
    change: float | None
    low: float | None
    high: float | None
    p_value: float | None
    batches: int


def batches(*latency_ms: npt.ArrayLike, rare: float = 1.0) -> int:
    """How many batches these series are long enough for; 0: for none.

    A batch must hold `TIMES_PER_BATCH` autocorrelation times of log latency, and one event of probability ``rare``.
    latency_ms: shape (n,) each, in order of intended send time, inf where the request failed.
    """
    series = [np.asarray(values, dtype=np.float64) for values in latency_ms]
    needed = max(max(TIMES_PER_BATCH * latency_time(x), 1 / rare) for x in series)
    shortest = min(x.size for x in series)
    return next((count for count in BATCHES if shortest >= count * needed), 0)


def percentile_change(
    first: npt.ArrayLike, second: npt.ArrayLike, q: float, confidence: float = CONFIDENCE, *, interval: bool = True
) -> Change:
    """Ratio of the ``q``-th percentiles (0 < q < 100), with an interval by inversion of the test.

    If the percentile of the second is r times that of the first, both r * first and second exceed the percentile of
    their union equally often; the interval is every r for which the shares of exceedances, batch by batch, do not
    differ significantly. Needs no density at the percentile, and failures (inf) are just very late.

    first, second: shape (n,), n >= 1, in order of intended send time, > 0. interval: False: only the p-value.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    at_a, at_b = percentile(a, q), percentile(b, q)
    ratio = at_b / at_a if math.isfinite(at_a) and math.isfinite(at_b) and at_a > 0 else None
    count = batches(a, b, rare=1 - q / 100)
    if count == 0:
        return Change(at_a, at_b, ratio, None, None, None, 0)

    def t_at(r: float) -> float:
        """Grows with r: the scaled first exceeds more often."""
        scaled = r * a
        limit = percentile(np.concatenate([scaled, b]), q)
        return _student_t(_batch_means(_above(scaled, limit), count) - _batch_means(_above(b, limit), count))

    p = _p_value(t_at(1.0), count)
    if not interval:
        return Change(at_a, at_b, ratio, None, None, p, count)
    decisive = float(stats.t.ppf((1 + confidence) / 2, count - 1))
    middle = ratio or 1.0
    low = _last_below(t_at, -decisive, middle / FARTHEST_RATIO, middle)
    high = _last_below(lambda r: -t_at(r), -decisive, middle * FARTHEST_RATIO, middle)
    return Change(at_a, at_b, ratio, low, high, p, count)


def share_change(first: npt.ArrayLike, second: npt.ArrayLike, count: int, confidence: float = CONFIDENCE) -> Change:
    """Difference of the shares of what is true, e.g. of missed requests.

    first, second: booleans, shape (n,), n >= ``count``, in order of intended send time. count: of `batches`.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if count == 0:
        return Change(float(a.mean()), float(b.mean()), float(b.mean() - a.mean()), None, None, None, 0)
    return _difference(_batch_means(a, count), _batch_means(b, count), confidence)


def rate_change(
    first_s: npt.ArrayLike,
    second_s: npt.ArrayLike,
    windows_s: Sequence[tuple[float, float]],
    count: int,
    confidence: float = CONFIDENCE,
) -> Change:
    """Difference of events per second, e.g. of good answers.

    first_s, second_s: when events happened, in seconds. windows_s: the measured window of each, cut into ``count``
    (of `batches`) equal parts.
    """
    rates = []
    for events, (start, end) in zip((first_s, second_s), windows_s, strict=True):
        parts = max(count, 1)
        seen, _ = np.histogram(np.asarray(events, dtype=np.float64), bins=parts, range=(start, end))
        rates.append(seen * parts / (end - start))
    if count == 0:
        a, b = (float(rate[0]) for rate in rates)
        return Change(a, b, b - a, None, None, None, 0)
    return _difference(rates[0], rates[1], confidence)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values such that comparing each with alpha keeps the chance of *any* false alarm <= alpha (Holm 1979).

    None stays None, and is none of those that were tested.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        adjusted[i] = highest
    return adjusted


def _difference(a: FloatArray, b: FloatArray, confidence: float) -> Change:
    d = b - a
    mean, count = float(d.mean()), d.size
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * d.std(ddof=1) / math.sqrt(count))
    p = _p_value(_student_t(d), count)
    return Change(float(a.mean()), float(b.mean()), mean, mean - half, mean + half, p, count)


def _batch_means(x: FloatArray, count: int) -> FloatArray:
    return np.array([part.mean() for part in np.array_split(x, count)])


def _above(x: FloatArray, limit: float) -> FloatArray:
    """A value at the limit is half above it: so failures count where the percentile falls on failures."""
    return np.asarray((x > limit) + 0.5 * (x == limit), dtype=np.float64)


def _student_t(d: FloatArray) -> float:
    mean, error = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(d.size)
    if error > abs(mean) * 1e-12:
        return mean / error
    return math.copysign(math.inf, mean) if mean else 0.0


def _p_value(t: float, count: int) -> float:
    return float(2 * stats.t.sf(abs(t), count - 1))


def _last_below(t_at: Callable[[float], float], limit: float, far: float, near: float) -> float | None:
    """The end of the interval between ``far``, which must be refused, and ``near``, which is not; None: it is not."""
    if t_at(far) > limit:
        return None
    for _ in range(BISECTIONS):
        middle = math.sqrt(far * near)
        far, near = (middle, near) if t_at(middle) <= limit else (far, middle)
    return near
