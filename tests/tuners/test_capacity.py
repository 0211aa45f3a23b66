"""The capacity search against queues whose capacity is known."""

import numpy as np
import pytest

from harness.stats.intervals import binomial_upper
from tuners.belief import Allowed, Prior, believe
from tuners.capacity import KNEE_SPREAD, LOAD_CAP, RISK, Ramp, estimate, knee_rps, log_load, told
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


def test_a_configuration_whose_upper_bound_is_below_the_best_is_given_up_between_holds():
    behind = [Queue(10.0, 1.0, seed=seed) for seed in range(10)]
    found = [estimate(queue, holds=6, guess_rps=5.0, best_rps=9.5) for queue in behind]
    gave_up = [f for f, queue in zip(found, behind, strict=True) if 0 < len(queue.holds) < 6]
    assert len(gave_up) >= 6, "the capacity is 7.0"
    assert all(f.raced and f.rate_high_rps < 9.5 and 5 < f.rate_rps < 9 for f in gave_up)


def test_a_configuration_as_good_as_the_best_is_rarely_given_up():
    """It may be, with the probability that its 90 % interval lies below the truth."""
    found = [estimate(Queue(10.0, 1.0, seed=seed), holds=5, guess_rps=5.0, best_rps=7.0 * 0.95) for seed in range(30)]
    assert sum(f.raced for f in found) <= 3


def test_a_race_that_ended_before_any_hold_passed_is_no_violation():
    failed = Probe(kind="hold", rate_rps=5.0, n=500, misses=80, load=1.4, passed=False, load_se=0.05)
    belief = believe([failed], Prior(5.0, KNEE_SPREAD), Allowed(1.0, 0.9))
    assert told([failed], belief, raced=True).rate_rps > 0
    assert told([failed], belief).rate_rps == 0.0


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


def test_the_told_interval_covers_the_capacity_as_often_as_it_says():
    covered = 0
    for seed in range(30):
        queue = Queue(10.0, 1.0, seed=100 + seed, seconds=120.0)
        found = estimate(queue, holds=6, guess_rps=5.0)
        assert found.rate_low_rps < found.rate_rps < found.rate_high_rps
        covered += found.rate_low_rps <= queue.capacity <= found.rate_high_rps
    assert binomial_upper(covered, 30) > 0.9
    assert covered >= 21


def test_holds_end_once_the_capacity_is_known_precisely_enough():
    few, many = Queue(10.0, 1.0, seed=3), Queue(10.0, 1.0, seed=3)
    estimate(few, holds=12, guess_rps=5.0, precision=0.1)
    estimate(many, holds=12, guess_rps=5.0, precision=0.001)
    assert 3 <= len(few.holds) < len(many.holds) == 12


def test_after_an_overload_the_fastest_rate_that_had_passed_is_tried_once_more():
    returns = 0
    for seed in range(6):
        queue = Queue(10.0, 1.0, seed=seed)
        found = estimate(queue, holds=6, guess_rps=5.0)
        repeated = len(queue.holds) - len(set(queue.holds))
        assert repeated == (found.return_ratio is not None)
        returns += repeated
        if found.return_ratio is not None:
            assert abs(np.log(found.return_ratio)) < 4 * max(found.return_ratio_se, 0.1)
    assert returns >= 4


def test_with_few_holds_none_is_spent_on_a_return():
    for seed in range(6):
        queue = Queue(10.0, 1.0, seed=seed)
        assert estimate(queue, holds=3, guess_rps=5.0).return_ratio is None


class Tiring(Queue):
    """Once overloaded, it stays 30 % slower: a cache that never recovers, a clock that throttles."""

    def hold(self, rate, attempt):
        probe = super().hold(rate, attempt)
        if rate > self.mu - np.log(20) / self.target and not probe.passed:
            self.mu = self.fresh_mu * 0.7
        return probe

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fresh_mu = self.mu


def test_an_engine_that_does_not_recover_from_overload_is_told():
    told = 0
    for seed in range(6):
        found = estimate(Tiring(10.0, 1.0, seed=seed), holds=6, guess_rps=5.0)
        told += found.return_ratio is not None and np.log(found.return_ratio) > 3 * found.return_ratio_se
    assert told >= 4


def test_the_less_is_known_the_wider_the_interval():
    def width(seconds, holds):
        found = estimate(Queue(10.0, 1.0, seconds=seconds), holds=holds, guess_rps=5.0)
        return found.rate_high_rps / found.rate_low_rps

    assert width(8.0, 3) > 1.2 * width(400.0, 8)


def test_a_capacity_that_is_hardly_known_is_told_low():
    """Overstating by more than 5 % keeps a small probability, as believed: the median is told only when it is sure."""
    passed = Probe(kind="hold", rate_rps=8.0, n=40, misses=1, load=0.8, passed=True, load_se=0.3)
    unsure = believe([passed], Prior(10.0, 0.4), Allowed(1.0, 0.5))
    capacity = told([passed], unsure)
    assert capacity.rate_rps < 0.9 * unsure.quantile(0.5)
    exceeds = unsure.weights[np.exp(unsure.log_rates) < capacity.rate_rps / 1.05].sum()
    assert exceeds == pytest.approx(RISK, abs=0.02)


def test_a_hold_from_the_ledger_gives_the_same_capacity_again():
    """Belief is a function of what is recorded: nothing else is needed to see why a capacity was told."""
    found = estimate(Queue(10.0, 1.0), holds=4, guess_rps=5.0)
    kept = [Probe.model_validate_json(p.model_dump_json()) for p in found.probes]
    prior = Prior(kept[0].rate_rps, KNEE_SPREAD)
    assert told(kept, believe(kept, prior, Allowed(1.0, 0.9))).rate_rps == pytest.approx(found.rate_rps)


def test_the_error_of_a_load_is_that_of_repeated_holds():
    rng = np.random.default_rng(5)
    loads = [log_load(rng.exponential(1.0, 400), 3.0, 95) for _ in range(300)]
    spread = np.std([load.log_load for load in loads])
    assert spread < np.median([load.se for load in loads]) < 2.2 * spread  # deflated by at least 2: the careful side


def test_failed_requests_are_the_slowest_there_are():
    latency = np.where(np.arange(100) % 10 == 0, np.inf, 0.5)
    assert log_load(latency, 1.0, 95).log_load == pytest.approx(np.log(LOAD_CAP))


def test_a_ramp_without_misses_has_no_knee_and_an_empty_one_neither():
    rates = np.linspace(1, 10, 100)
    assert knee_rps(Ramp(rates, np.zeros(100, bool))) is None
    assert knee_rps(Ramp(np.array([]), np.array([], bool))) is None
    assert 5 < knee_rps(Ramp(rates, rates > 6)) < 7
