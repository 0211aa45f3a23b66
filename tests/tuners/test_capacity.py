"""The capacity search against queues whose capacity is known."""

import numpy as np
import pytest

from tuners.belief import Allowed
from tuners.capacity import Ramp, estimate, knee_rps, log_load
from tuners.results import Probe


class Queue:
    """A single server with exponential service, first come first served; the target is on the sojourn time.

    M/M/1: the sojourn time is exponential with rate mu - lambda, so P95 = ln 20 / (mu - lambda), and the
    capacity for P95 <= target is mu - ln 20 / target.
    """

    def __init__(self, mu_rps, target_s, seed=0, seconds=400.0, ramp_s=40.0):
        self.mu, self.target, self.seconds, self.ramp_s = mu_rps, target_s, seconds, ramp_s
        self.rng = np.random.default_rng(seed)
        self.ramps, self.holds = [], []

    @property
    def capacity(self):
        return self.mu - np.log(20) / self.target

    def _sojourn(self, arrivals):
        service = self.rng.exponential(1 / self.mu, len(arrivals))
        done, out = 0.0, np.empty(len(arrivals))
        for i, (a, s) in enumerate(zip(arrivals, service, strict=True)):
            done = max(a, done) + s
            out[i] = done - a
        return out

    def ramp(self, start, end, attempt):
        self.ramps.append((start, end))
        growth = np.log(end / start) / self.ramp_s
        unit = np.cumsum(self.rng.exponential(1.0, int((end - start) / growth * 1.5) + 50))
        times = np.log1p(growth * unit / start) / growth
        times = times[times < self.ramp_s]
        return Ramp(start * np.exp(growth * times), self._sojourn(times) > self.target, growth)

    @property
    def allowed(self):
        return Allowed(self.target, max(0.0, self.target - 1 / self.mu))

    def hold(self, rate, attempt):
        self.holds.append(rate)
        times = np.cumsum(self.rng.exponential(1 / rate, int(rate * self.seconds)))
        sojourn = self._sojourn(times)
        load = log_load(sojourn, self.target, 95)
        return Probe(
            kind="hold",
            rate_rps=rate,
            n=len(times),
            misses=int(np.sum(sojourn > self.target)),
            load=float(np.exp(load.log_load)),
            passed=load.log_load <= 0,
            load_se=load.se,
            deflation=load.deflation,
        )


@pytest.mark.parametrize("guess", [0.05, 1.0, 30.0])
def test_it_finds_the_capacity_of_a_queue_from_any_guess(guess):
    found = []
    for seed in range(9):
        queue = Queue(mu_rps=10.0, target_s=1.0, seed=seed)
        found.append(estimate(queue, holds=6, guess_rps=guess).rate_rps / queue.capacity)
    assert 0.9 <= np.median(found) <= 1.1, found


def test_more_holds_are_never_asked_than_allowed():
    queue = Queue(10.0, 1.0)
    estimate(queue, holds=2, guess_rps=5.0)
    assert len(queue.holds) == 2


def test_a_near_guess_needs_no_ramp():
    queue = Queue(10.0, 1.0)
    estimate(queue, holds=4, guess_rps=queue.capacity, near=True)
    assert queue.ramps == []


def test_a_configuration_far_behind_the_best_is_not_pursued():
    queue = Queue(10.0, 1.0)
    found = estimate(queue, holds=4, guess_rps=5.0, best_rps=100.0)
    assert found.raced
    assert queue.holds == []
    assert 0 < found.rate_rps < 60


def test_a_target_below_the_service_time_has_no_capacity():
    queue = Queue(10.0, target_s=0.05)
    found = estimate(queue, holds=5, guess_rps=5.0)
    assert found.rate_rps == 0.0
    assert found.highest_passed_rps is None


def test_the_estimate_lies_between_what_passed_and_what_failed():
    for seed in range(10):
        found = estimate(Queue(10.0, 1.0, seed=seed), holds=5, guess_rps=4.0)
        if found.highest_passed_rps and found.lowest_failed_rps:
            assert found.highest_passed_rps <= found.rate_rps <= found.lowest_failed_rps


def test_a_ramp_without_misses_has_no_knee_and_an_empty_one_neither():
    rates = np.linspace(1, 10, 100)
    assert knee_rps(Ramp(rates, np.zeros(100, bool))) is None
    assert knee_rps(Ramp(np.array([]), np.array([], bool))) is None
    assert 5 < knee_rps(Ramp(rates, rates > 6)) < 7
