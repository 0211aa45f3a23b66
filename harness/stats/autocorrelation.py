"""How many independent observations a correlated series is worth.

Knows nothing of what the series means; callers pass log latencies in order of intended send time.
"""

import numpy as np
import numpy.typing as npt
from scipy import fft

FloatArray = npt.NDArray[np.float64]

WINDOW = 5.0
SHORTEST = 8  # fewer points say nothing about correlation
LEAST_DEFLATION = 2.0
CLOCK_MS = 1e-6  # resolution of the stamps; keeps the logarithm of a zero finite


def integrated_time(x: npt.ArrayLike, c: float = WINDOW) -> float:
    """Integrated autocorrelation time of a series, in steps: tau = 1 + 2 * sum over lags k >= 1 of rho(k).

    1 for independent values; n / tau is the effective sample size of the mean. Summed up to the first lag
    M >= c * tau(M) (Sokal 1997, Monte Carlo methods in statistical mechanics, section 3; his own tau_int is
    half of this one), autocovariance by FFT with division by n.

    x: 1-D, finite.  Returns tau >= 1: a shorter series than `SHORTEST`, a constant one, and an
    anticorrelated one all give 1.0. Raises ValueError if x is not finite or not 1-D.
    """
    series = np.asarray(x, dtype=np.float64)
    if series.ndim != 1 or not np.isfinite(series).all():
        raise ValueError("x must be one-dimensional and finite")
    if series.size < SHORTEST or np.ptp(series) == 0:
        return 1.0
    centred = series - series.mean()
    spectrum = fft.rfft(centred, fft.next_fast_len(2 * series.size, real=True))
    covariance = fft.irfft(np.abs(spectrum) ** 2)[: series.size]
    tau = 2 * np.cumsum(covariance / covariance[0]) - 1
    closed = np.arange(series.size) >= c * tau
    lag = int(np.argmax(closed)) if closed.any() else series.size - 1
    return max(1.0, float(tau[lag]))


def latency_time(latency_ms: npt.ArrayLike) -> float:
    """`integrated_time` of log latency, in requests. A failed request (inf) counts as the slowest success.

    latency_ms: shape (n,), in order of intended send time, no nan.
    """
    latency = np.asarray(latency_ms, dtype=np.float64)
    answered = np.isfinite(latency)
    if not answered.any():
        return 1.0
    return integrated_time(np.log(np.clip(latency, CLOCK_MS, latency[answered].max())))


def deflation(tau: float) -> float:
    """How much a sample shrinks in a percentile's interval: max(2, 2 tau). Verdicts have their own (judge.py)."""
    return max(LEAST_DEFLATION, 2 * tau)


def effective_counts(misses: npt.ArrayLike, n: npt.ArrayLike, d: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Misses and trials, both divided by the deflation d: what `sequential` takes. Broadcastable."""
    t, trials, divisor = (np.asarray(value, dtype=np.float64) for value in (misses, n, d))
    return np.asarray(t / divisor), np.asarray(trials / divisor)
