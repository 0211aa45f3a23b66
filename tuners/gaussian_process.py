"""A Gaussian process over the rows of a lattice, fitted to a handful of noisy numbers.

Knows nothing of knobs, scores or searching: rows of integers in, normal distributions out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

FloatArray = NDArray[np.float64]
Codes = NDArray[np.int64]

JITTER = 1e-8
MEAN_SHARE = 1.0  # variance of the unknown mean around the observed one / variance of the signal
MOST_ITERATIONS = 40


@dataclass(frozen=True, slots=True)
class Beliefs:
    """Beforehand, of every scale: its median and the standard deviation of its logarithm.

    ``length``: the distance along one knob over which the number changes; 1 is the whole range of the knob.
    ``signal``, ``noise``: standard deviations, in the unit of the number.
    """

    length: tuple[float, float] = (1.0, 0.6)
    signal: tuple[float, float] = (0.5, 0.4)
    noise: tuple[float, float] = (0.06, 0.5)


class GaussianProcess:
    """Matern 5/2 with a length per knob, normal noise, constant mean; scales by maximum a posteriori.

    codes: shape (n, K), rows of a lattice; squared: per knob the table of squared distances between codes;
    y: shape (n,). Formulas: Rasmussen & Williams 2006, 2.23 to 2.26, 4.17 and 5.9.
    """

    def __init__(self, codes: Codes, squared: Sequence[FloatArray], y: FloatArray, beliefs: Beliefs) -> None:
        self._codes, self._squared = codes, squared
        self._mean = float(np.mean(y))
        self._y = y - self._mean
        medians, spreads = _prior(len(squared), beliefs)
        distances = _distances(codes, codes, squared)
        found = minimize(
            _loss,
            medians,
            args=(distances, self._y, medians, spreads),
            jac=True,
            method="L-BFGS-B",
            bounds=[(m - 3 * s, m + 3 * s) for m, s in zip(medians, spreads, strict=True)],
            options={"maxiter": MOST_ITERATIONS},
        )
        self._scales: FloatArray = np.asarray(found.x)
        kernel, _ = _matern(_scaled(distances, self._scales), self._scales)
        self._factor = cholesky(kernel + _diagonal(len(y), self._scales), lower=True)
        self._alpha = cho_solve((self._factor, True), self._y)

    @property
    def lengths(self) -> FloatArray:
        """Per knob; a long one says that the knob matters little."""
        return np.asarray(np.exp(self._scales[:-2]))

    def predict(self, codes: Codes) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the number itself, without noise, at each of the (m, K) rows."""
        apart = np.zeros((len(codes), len(self._codes)))
        for k, weight in enumerate(np.exp(-2 * self._scales[:-2])):
            apart += (weight * self._squared[k])[codes[:, k]][:, self._codes[:, k]]
        across, _ = _matern(apart, self._scales)
        mean = self._mean + across @ self._alpha
        explained = solve_triangular(self._factor, across.T, lower=True)
        signal = math.exp(2 * self._scales[-2]) * (1 + MEAN_SHARE)
        variance = np.maximum(signal - np.einsum("ij,ij->j", explained, explained), 1e-12)
        return np.asarray(mean), np.asarray(np.sqrt(variance))


def _prior(knobs: int, beliefs: Beliefs) -> tuple[FloatArray, FloatArray]:
    pairs = [beliefs.length] * knobs + [beliefs.signal, beliefs.noise]
    return np.log([median for median, _ in pairs]), np.array([spread for _, spread in pairs])


def _distances(a: Codes, b: Codes, squared: Sequence[FloatArray]) -> FloatArray:
    """Shape (K, len(a), len(b))."""
    return np.stack([table[a[:, k]][:, b[:, k]] for k, table in enumerate(squared)])


def _scaled(distances: FloatArray, scales: FloatArray) -> FloatArray:
    return np.asarray(np.tensordot(np.exp(-2 * scales[:-2]), distances, axes=1))


def _matern(squared: FloatArray, scales: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The kernel, and the factor that times a knob's share of r² gives the derivative by its log length."""
    r = np.sqrt(5 * squared)
    decay = math.exp(2 * scales[-2]) * np.exp(-r)
    kernel = decay * (1 + r + r**2 / 3) + math.exp(2 * scales[-2]) * MEAN_SHARE
    return np.asarray(kernel), np.asarray(decay * (1 + r) * (5 / 3))


def _diagonal(n: int, scales: FloatArray) -> FloatArray:
    return np.asarray((math.exp(2 * scales[-1]) + JITTER * math.exp(2 * scales[-2])) * np.eye(n))


def _loss(
    scales: FloatArray, distances: FloatArray, y: FloatArray, medians: FloatArray, spreads: FloatArray
) -> tuple[float, FloatArray]:
    """Minus the log posterior of the scales, and its gradient."""
    kernel, slope = _matern(_scaled(distances, scales), scales)
    factor = cholesky(kernel + _diagonal(len(y), scales), lower=True)
    alpha = cho_solve((factor, True), y)
    off = (scales - medians) / spreads
    loss = 0.5 * y @ alpha + np.log(np.diag(factor)).sum() + 0.5 * off @ off
    inner = cho_solve((factor, True), np.eye(len(y))) - np.outer(alpha, alpha)  # dL/dK, twice
    by_length = 0.5 * np.tensordot(distances, inner * slope, axes=2) * np.exp(-2 * scales[:-2])
    by_noise = math.exp(2 * scales[-1]) * np.trace(inner)
    by_signal = np.sum(inner * kernel) + JITTER * math.exp(2 * scales[-2]) * np.trace(inner)
    return float(loss), np.array([*by_length, by_signal, by_noise]) + off / spreads
