"""Evidence that may be looked at again and again: mixture e-values for "at most a share q0 misses".

Knows nothing of latencies, targets, correlation or when to stop.

Both are likelihood ratios against a miss probability of exactly q0, averaged over a uniform prior; with
`I` the regularised incomplete beta function and `B` the beta function

    E_pass = B(t+1, n-t+1) * I_q0(t+1, n-t+1)           / (q0        * q0^t (1-q0)^(n-t))
    E_fail = B(t+1, n-t+1) * [I_q1 - I_q0](t+1, n-t+1)  / ((q1 - q0) * q0^t (1-q0)^(n-t))

Ville (1939), Étude critique de la notion de collectif; Ramdas et al. (2023), Game-theoretic statistics and
safe anytime-valid inference, Statistical Science 38(4), section 3.
"""

import numpy as np
import numpy.typing as npt
from scipy import special

FloatArray = npt.NDArray[np.float64]

# Below this the library's incomplete beta loses digits on its way to underflow; the series takes over.
TINY = 1e-200


def log_e_pass(misses: npt.ArrayLike, n: npt.ArrayLike, q0: float = 0.05) -> FloatArray:
    """Log evidence that the miss probability is below ``q0``.

    Mixture likelihood ratio of ``misses`` in ``n`` trials, uniform over miss probabilities in [0, q0],
    against exactly q0. Under any true probability >= q0 and independent trials it exceeds log(1/alpha) with
    probability <= alpha at *any* stopping time (Ville 1939). Knows nothing of latencies or correlation:
    callers deflate their counts first (`autocorrelation.effective_counts`).

    misses, n: broadcastable, real, 0 <= misses <= n.  Returns log E, same shape.
    Raises ValueError if q0 is outside (0, 1).
    """
    if not 0 < q0 < 1:
        raise ValueError(f"q0 must be in (0, 1), got {q0}")
    t, trials = _counts(misses, n)
    a, b = t + 1, trials - t + 1
    return _log_mixture(_log_betainc(a, b, q0), t, trials, q0, prior_width=q0)


def log_e_fail(misses: npt.ArrayLike, n: npt.ArrayLike, q0: float = 0.05, q1: float = 0.5) -> FloatArray:
    """Log evidence that the miss probability is above ``q0``.

    As `log_e_pass`, with the mixture uniform over miss probabilities in [q0, q1]: under any true probability
    <= q0 and independent trials it exceeds log(1/alpha) with probability <= alpha at any stopping time.

    misses, n: broadcastable, real, 0 <= misses <= n.  Returns log E, same shape.
    Raises ValueError unless 0 < q0 < q1 < 1.
    """
    if not 0 < q0 < q1 < 1:
        raise ValueError(f"q0 and q1 must satisfy 0 < q0 < q1 < 1, got q0={q0}, q1={q1}")
    t, trials = _counts(misses, n)
    a, b = t + 1, trials - t + 1
    # I_q1 - I_q0 = J_q0 - J_q1 with J = 1 - I: subtract on the side where both are small.
    below = _log_difference(_log_betainc(a, b, q1), _log_betainc(a, b, q0))
    above = _log_difference(_log_betainc(b, a, 1 - q0), _log_betainc(b, a, 1 - q1))
    log_mass = np.where(a / (a + b) > q0, below, above)
    return _log_mixture(log_mass, t, trials, q0, prior_width=q1 - q0)


def _counts(misses: npt.ArrayLike, n: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    t, trials = np.broadcast_arrays(np.asarray(misses, dtype=np.float64), np.asarray(n, dtype=np.float64))
    wrong = ~((t >= 0) & (t <= trials) & np.isfinite(trials))
    if wrong.any():
        raise ValueError(f"misses must be in [0, n], got {t[wrong][0]:g} of {trials[wrong][0]:g}")
    return t, trials


def _log_mixture(log_mass: FloatArray, t: FloatArray, n: FloatArray, q0: float, prior_width: float) -> FloatArray:
    log_at_q0 = t * np.log(q0) + (n - t) * np.log1p(-q0)
    log_e: FloatArray = special.betaln(t + 1, n - t + 1) + log_mass - np.log(prior_width) - log_at_q0
    return log_e


def _log_difference(log_large: FloatArray, log_small: FloatArray) -> FloatArray:
    """log(exp(log_large) - exp(log_small)); -inf where nothing is left of it in double precision."""
    gap = np.minimum(log_small - log_large, 0.0)
    with np.errstate(divide="ignore"):
        difference: FloatArray = log_large + np.log(-np.expm1(gap))
    return difference


def _log_betainc(a: FloatArray, b: FloatArray, x: float) -> FloatArray:
    """Log I_x(a, b), also where I_x itself underflows.

    There x is far below the mean a/(a+b), and the series of DLMF 8.17.8,
    I_x(a, b) = x^a (1-x)^b / (a B(a, b)) * sum_k x^k (a+b)_k / (a+1)_k, falls geometrically.
    """
    direct = special.betainc(a, b, x)
    tail = direct < TINY
    with np.errstate(divide="ignore"):
        log_value: FloatArray = np.asarray(np.log(direct))
    if tail.any():
        at, bt = a[tail], b[tail]
        total, term, k = np.ones_like(at), np.ones_like(at), 0
        while (term > total * np.finfo(np.float64).eps).any():
            term = term * (x * (at + bt + k) / (at + 1 + k))
            total += term
            k += 1
        log_value[tail] = at * np.log(x) + bt * np.log1p(-x) - np.log(at) - special.betaln(at, bt) + np.log(total)
    return log_value
