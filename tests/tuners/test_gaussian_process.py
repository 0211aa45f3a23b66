"""The process against linear algebra written out, its gradient against differences, its errors against draws."""

import numpy as np
import pytest
from scipy.stats import norm

from scenarios.space import Knob, SearchSpace
from tuners.gaussian_process import MEAN_SHARE, Beliefs, GaussianProcess, _distances, _loss, _prior
from tuners.lattice import Lattice

SPACE = SearchSpace(
    "gp",
    (
        Knob("a", (1, 2, 4, 8, 16), 4, "batching", ""),
        Knob("b", ("x", "y", "z"), "x", "compute", ""),
        Knob("c", (2, 4), 4, "speculation", "", when=("b", ("y", "z"))),
    ),
)
LATTICE = Lattice(SPACE)
ROWS = LATTICE.candidates(np.random.default_rng(0), LATTICE.codes([]))


def matern(squared):
    r = np.sqrt(5 * squared)
    return (1 + r + r**2 / 3) * np.exp(-r)


def test_the_gradient_is_that_of_the_loss():
    rng = np.random.default_rng(1)
    codes, y = ROWS[rng.permutation(len(ROWS))[:12]], rng.normal(size=12)
    medians, spreads = _prior(3, Beliefs())
    distances = _distances(codes, codes, LATTICE.squared)
    scales = medians + rng.normal(size=5) * 0.3
    _, gradient = _loss(scales, distances, y, medians, spreads)
    for i in range(5):
        step = np.zeros(5)
        step[i] = 1e-5
        high, low = (_loss(scales + s, distances, y, medians, spreads)[0] for s in (step, -step))
        assert gradient[i] == pytest.approx((high - low) / 2e-5, rel=1e-4, abs=1e-6)


def test_predictions_are_those_of_the_textbook():
    rng = np.random.default_rng(2)
    codes, y = ROWS[rng.permutation(len(ROWS))[:8]], rng.normal(size=8)
    process = GaussianProcess(codes, LATTICE.squared, y, Beliefs())
    lengths, (signal, noise) = process.lengths, np.exp(process._scales[-2:])

    def kernel(a, b):
        squared = sum(table[np.ix_(a[:, k], b[:, k])] / lengths[k] ** 2 for k, table in enumerate(LATTICE.squared))
        return signal**2 * (matern(squared) + MEAN_SHARE)

    inverse = np.linalg.inv(kernel(codes, codes) + noise**2 * np.eye(8))
    across = kernel(ROWS, codes)
    mean, spread = process.predict(ROWS)
    assert mean == pytest.approx(y.mean() + across @ inverse @ (y - y.mean()), abs=1e-4)
    variance = np.diag(kernel(ROWS, ROWS) - across @ inverse @ across.T)
    assert spread**2 == pytest.approx(variance, abs=1e-4)


def test_the_spread_is_as_large_as_the_errors():
    """Functions drawn from the prior, seen in noise: how often the truth lies within the 90 % interval elsewhere."""
    rng = np.random.default_rng(3)
    squared = sum(table[np.ix_(ROWS[:, k], ROWS[:, k])] for k, table in enumerate(LATTICE.squared)) / 1.0**2
    root = np.linalg.cholesky(0.25 * (matern(squared) + 1.0) + 1e-9 * np.eye(len(ROWS)))
    inside, total = 0, 0
    for _ in range(30):
        truth = root @ rng.normal(size=len(ROWS))
        seen = rng.permutation(len(ROWS))[:10]
        process = GaussianProcess(ROWS[seen], LATTICE.squared, truth[seen] + 0.06 * rng.normal(size=10), Beliefs())
        mean, spread = process.predict(ROWS)
        elsewhere = np.setdiff1d(np.arange(len(ROWS)), seen)
        inside += int((np.abs(truth - mean) < norm.ppf(0.95) * spread)[elsewhere].sum())
        total += len(elsewhere)
    assert 0.8 < inside / total < 0.97


def test_a_knob_without_effect_gets_a_longer_length_than_one_with():
    rng = np.random.default_rng(4)
    codes = ROWS[rng.permutation(len(ROWS))[:20]]
    y = 0.4 * codes[:, 0] + 0.02 * rng.normal(size=20)
    lengths = GaussianProcess(codes, LATTICE.squared, y, Beliefs()).lengths
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize("y", [[1.0], [0.0, 0.0, 0.0], [1e3, -1e3, 1e3]])
def test_one_number_equal_numbers_and_huge_ones_are_digested(y):
    process = GaussianProcess(ROWS[: len(y)], LATTICE.squared, np.array(y), Beliefs())
    mean, spread = process.predict(ROWS)
    assert np.isfinite(mean).all()
    assert (spread > 0).all()


def test_a_row_seen_twice_is_no_singular_matrix():
    codes = np.repeat(ROWS[:1], 6, axis=0)
    mean, _ = GaussianProcess(codes, LATTICE.squared, np.linspace(0, 0.1, 6), Beliefs()).predict(ROWS[:1])
    assert mean[0] == pytest.approx(0.05, abs=0.01)
