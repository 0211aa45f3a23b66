"""Did completions keep up with arrivals?

Knows nothing of latencies or targets; sees two lists of times and a window.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

FloatArray = npt.NDArray[np.float64]

BATCHES = 10
SLOPE_TOLERANCE = 0.05
FILLING = 3.0  # answers' time that a server which began empty takes to fill, or nearly
SIGNIFICANCE = 0.025  # of a trend in flight, each side: a missed one still shows in the targets' misses


@dataclass(frozen=True, slots=True)
class Steadiness:
    """Of the part of the window in which the server was no longer filling up; of all of it, if too little came then.

    ``slope``: completions per arrival. ``growth``: requests in flight at its end minus at its start.
    ``steady``: no significant trend in flight. ``saturated``: completions fell behind, significantly and by more
    than the tolerance. Neither: a backlog drained away, they fell behind by less, or nothing can be said of fewer than
    `BATCHES` requests. ``filling``: there were so few because it filled up until then. ``start_s``: begin of that part.
    """

    steady: bool
    saturated: bool
    slope: float
    growth: int
    filling: bool
    start_s: float


def steadiness(
    arrived_s: npt.ArrayLike, completed_s: npt.ArrayLike, window_s: tuple[float, float]
) -> Steadiness | None:
    """Slope of completions against arrivals, and a t-test for a trend of the number in flight.

    In-flight is a random walk when the server is saturated and bounded when it is not, so its net growth is
    compared with the spread of its own growth over `BATCHES` equal parts of the window (batch means;
    Law 2015, Simulation Modeling and Analysis, section 9.5). Noise grows with the root of the length and a
    bounded queue does not grow, so a long run with a stable queue is not called saturated.

    What is in flight grows too while a server that began empty fills up, and that is no saturation: what comes
    before `_filled_s` is left out.

    arrived_s, completed_s: of all requests since the server was empty, shape (n,), those before the window
    included; completion inf: never. Returns None if nothing arrived in the window. Of requests from a server that has
    long been full, the first three answers' time is left out all the same.
    """
    due_s, done_s = np.asarray(arrived_s, dtype=np.float64), np.asarray(completed_s, dtype=np.float64)
    start_s, end_s = window_s
    if not _between(due_s, start_s, end_s):
        return None
    filled_s = _filled_s(due_s, done_s, end_s)
    filling = filled_s > start_s and _between(due_s, filled_s, end_s) < BATCHES
    if not filling:
        start_s = max(start_s, filled_s)
    edges = np.linspace(start_s, end_s, BATCHES + 1)
    arrivals = np.searchsorted(np.sort(due_s), edges, side="right")
    completions = np.searchsorted(np.sort(done_s), edges, side="right")
    arrived = int(arrivals[-1] - arrivals[0])
    in_flight = arrivals - completions
    growth = int(in_flight[-1] - in_flight[0])
    noise = float(np.diff(in_flight).std(ddof=1)) * BATCHES**0.5
    limit = float(stats.t.ppf(1 - SIGNIFICANCE, BATCHES - 1)) * noise
    slope = 1 - growth / arrived
    tellable = not filling and arrived >= BATCHES
    return Steadiness(
        steady=tellable and abs(growth) <= limit,
        saturated=tellable and growth > limit and slope < 1 - SLOPE_TOLERANCE,
        slope=slope,
        growth=growth,
        filling=filling,
        start_s=start_s,
    )


def _between(times_s: FloatArray, after_s: float, to_s: float) -> int:
    return int(((times_s > after_s) & (times_s <= to_s)).sum())


def _filled_s(arrived_s: FloatArray, completed_s: FloatArray, end_s: float) -> float:
    """When a server that was empty at the first arrival may be taken to be full; end_s or later: not by then.

    After `FILLING` times as long as an answer takes; but after half of the run where that is shorter, which leaves
    something to judge, and never before one answer's time: until then nothing is completed, whatever the server can
    do. An answer takes the mean time (Little's) of those that had come by the end, or of the first quarter of the
    requests if that is less: the longer a queue, the longer the others waited in it. How long a batching server fills
    that slows down as it does is not known; `make calibrate` shows what this leaves of wrong verdicts, and costs of
    right ones.
    """
    order = np.argsort(arrived_s, kind="stable")
    order = order[arrived_s[order] < end_s]
    done_s = completed_s[order]
    if not (done_s <= end_s).any():
        return end_s
    taken_s = done_s - arrived_s[order]
    first_quarter = taken_s[: math.ceil(taken_s.size / 4)]
    answer_s = float(min(np.mean(taken_s[done_s <= end_s]), np.mean(first_quarter)))
    first_s = float(arrived_s[order[0]])
    return first_s + max(answer_s, min(FILLING * answer_s, (end_s - first_s) / 2))
