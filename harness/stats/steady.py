"""Did completions keep up with arrivals?

Knows nothing of latencies or targets; sees two lists of times and a window.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

BATCHES = 10
SLOPE_TOLERANCE = 0.05
SIGNIFICANCE = 0.025  # of a trend in flight, each side: a missed one still shows in the targets' misses


@dataclass(frozen=True, slots=True)
class Steadiness:
    """``slope``: completions per arrival in the window. ``growth``: requests in flight at its end minus at its start.

    ``steady``: no significant trend in flight. ``saturated``: completions fell behind, significantly and by more
    than the tolerance. Neither: a backlog drained away, they fell behind by less, or there were fewer than
    `BATCHES` arrivals and nothing can be said.
    """

    steady: bool
    saturated: bool
    slope: float
    growth: int


def steadiness(
    arrived_s: npt.ArrayLike, completed_s: npt.ArrayLike, window_s: tuple[float, float]
) -> Steadiness | None:
    """Slope of completions against arrivals, and a t-test for a trend of the number in flight.

    In-flight is a random walk when the server is saturated and bounded when it is not, so its net growth is
    compared with the spread of its own growth over `BATCHES` equal parts of the window (batch means;
    Law 2015, Simulation Modeling and Analysis, section 9.5). Noise grows with the root of the length and a
    bounded queue does not grow, so a long run with a stable queue is not called saturated.

    arrived_s, completed_s: of all requests, those before the window included; completion inf: never.
    Returns None if nothing arrived in the window.
    """
    edges = np.linspace(*window_s, BATCHES + 1)
    arrivals = np.searchsorted(np.sort(np.asarray(arrived_s, dtype=np.float64)), edges, side="right")
    completions = np.searchsorted(np.sort(np.asarray(completed_s, dtype=np.float64)), edges, side="right")
    arrived = int(arrivals[-1] - arrivals[0])
    if arrived == 0:
        return None
    in_flight = arrivals - completions
    growth = int(in_flight[-1] - in_flight[0])
    noise = float(np.diff(in_flight).std(ddof=1)) * BATCHES**0.5
    limit = float(stats.t.ppf(1 - SIGNIFICANCE, BATCHES - 1)) * noise
    slope = 1 - growth / arrived
    tellable = arrived >= BATCHES
    return Steadiness(
        steady=tellable and abs(growth) <= limit,
        saturated=tellable and growth > limit and slope < 1 - SLOPE_TOLERANCE,
        slope=slope,
        growth=growth,
    )
