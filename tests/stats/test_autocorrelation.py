import numpy as np
import pytest

from harness.stats.autocorrelation import deflation, effective_counts, integrated_time, latency_time


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_finds_the_known_time_of_an_autoregression(phi):
    """AR(1): rho(k) = phi^k, so tau = 1 + 2 phi / (1 - phi) = (1 + phi) / (1 - phi)."""
    rng = np.random.default_rng(1)
    times = []
    for _ in range(40):
        x = np.zeros(5000)
        for i, noise in enumerate(rng.normal(size=5000)):
            x[i] = phi * x[i - 1] + noise
        times.append(integrated_time(x))
    assert np.mean(times) == pytest.approx((1 + phi) / (1 - phi), rel=0.08)


def test_sums_the_plain_autocovariances_up_to_the_window():
    x = np.random.default_rng(2).normal(size=300).cumsum()
    centred = x - x.mean()
    rho = [float(centred[k:] @ centred[: len(x) - k]) for k in range(len(x))]
    tau = [1 + 2 * sum(rho[1 : m + 1]) / rho[0] for m in range(len(x))]
    window = next(m for m in range(len(x)) if m >= 5 * tau[m])
    assert integrated_time(x) == pytest.approx(tau[window])


@pytest.mark.parametrize("x", [[], [1.0, 2.0, 3.0], [5.0] * 100, [1.0, -1.0] * 50])
def test_is_one_where_there_is_no_correlation_to_find(x):
    assert integrated_time(x) == 1.0


def test_refuses_what_has_no_autocovariance():
    with pytest.raises(ValueError, match="finite"):
        integrated_time([1.0, np.inf] * 10)
    with pytest.raises(ValueError, match="one-dimensional"):
        integrated_time(np.ones((10, 10)))


def test_a_failed_request_counts_as_the_slowest_success():
    latency = np.exp(np.random.default_rng(3).normal(size=200).cumsum() / 5)
    failed = latency.copy()
    failed[[50, 51, 52]] = np.inf
    imputed = latency.copy()
    imputed[[50, 51, 52]] = np.max(np.delete(latency, [50, 51, 52]))
    assert latency_time(failed) == integrated_time(np.log(imputed)) > 1
    assert latency_time([np.inf] * 20) == 1.0


def test_does_not_depend_on_the_unit_of_latency():
    latency = np.exp(np.random.default_rng(4).normal(size=200).cumsum() / 5)
    assert latency_time(latency) == pytest.approx(latency_time(latency / 1000))


def test_counts_are_halved_at_least():
    assert [deflation(tau) for tau in (1.0, 0.2, 3.5)] == [2.0, 2.0, 7.0]
    misses, n = effective_counts([6, 14], [100, 140], [2.0, 7.0])
    assert misses.tolist() == [3.0, 2.0]
    assert n.tolist() == [50.0, 20.0]
