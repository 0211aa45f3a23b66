import numpy as np
import pytest

from harness.stats.steady import steadiness

RUNS = 200


@pytest.fixture
def saturated_share(queues):
    def share(*, utilisation, servers, judged):
        warmup = max(10, judged // 4)
        q = queues(utilisation=utilisation, servers=servers, n=warmup + judged, runs=RUNS, seed=8)
        verdicts = [
            steadiness(arrived, completed, (arrived[warmup - 1], arrived[-1]))
            for arrived, completed in zip(q.arrived, q.completed, strict=True)
        ]
        assert not any(v.steady and v.saturated for v in verdicts)
        return sum(v.saturated for v in verdicts) / RUNS

    return share


@pytest.mark.parametrize("servers", [1, 8])
@pytest.mark.parametrize("judged", [40, 100, 1000])
@pytest.mark.parametrize("utilisation", [0.5, 0.8])
def test_a_stable_queue_is_not_called_saturated(saturated_share, utilisation, servers, judged):
    assert saturated_share(utilisation=utilisation, servers=servers, judged=judged) < 0.05


@pytest.mark.parametrize("servers", [1, 8])
@pytest.mark.parametrize(("utilisation", "judged"), [(2.0, 150), (1.3, 1000)])
def test_an_overloaded_queue_is_called_saturated(saturated_share, utilisation, servers, judged):
    assert saturated_share(utilisation=utilisation, servers=servers, judged=judged) > 0.95


def test_a_regular_load_is_seen_through_in_fifty_requests():
    """Without randomness there is no noise to excuse growth: rate 1.25 times what one server does."""
    arrived = np.arange(50.0)
    found = steadiness(arrived, 1.25 * (arrived + 1), (0.0, 49.0))
    assert found.saturated
    assert found.slope == pytest.approx(0.8, abs=0.03)
    assert found.growth == pytest.approx(0.2 * (49 - found.start_s), abs=1)
    assert found.start_s < 15
    assert steadiness(arrived, arrived + 7.3, (10.0, 49.0)).steady


def test_falling_behind_by_less_than_the_tolerance_is_a_trend_but_no_saturation():
    arrived = np.arange(1000.0)
    found = steadiness(arrived, 1.03 * (arrived + 1), (0.0, 999.0))
    assert (found.steady, found.saturated) == (False, False)
    assert found.slope == pytest.approx(0.97, abs=0.01)


def test_requests_that_never_complete_are_seen():
    arrived = np.arange(100.0)
    completed = np.where(arrived < 50, arrived + 1, np.inf)
    assert steadiness(arrived, completed, (0.0, 99.0)).saturated


def test_a_draining_backlog_is_neither_steady_nor_saturated():
    arrived = np.concatenate([np.zeros(60), np.arange(1.0, 101.0)])
    completed = np.concatenate([np.arange(1.0, 61.0), np.arange(1.0, 101.0) + 0.5])
    found = steadiness(arrived, completed, (0.5, 60.5))
    assert (found.steady, found.saturated) == (False, False)
    assert found.slope > 1.9


@pytest.mark.parametrize("run_s", [8.0, 12.0, 20.0, 60.0])
@pytest.mark.parametrize("warmup_s", [0.0, 1.0, 5.0])
def test_a_server_that_fills_up_is_not_called_saturated(run_s, warmup_s):
    """Answers of 5 s, 4 requests a second: until 20 are in flight, none or few are completed."""
    arrived = np.arange(0, run_s, 0.25)
    found = steadiness(arrived, arrived + 5, (warmup_s, run_s))
    assert (found.steady, found.saturated, found.filling) == (True, False, False)
    assert found.slope == pytest.approx(1, abs=0.1)
    assert found.start_s == max(5, min(15, (arrived[0] + run_s) / 2))


@pytest.mark.parametrize("warmup_s", [0.0, 3.0])
def test_a_server_that_is_full_and_falls_behind_is_called_saturated(warmup_s):
    """Eight at once, for 4 s each, are 2 a second; twice as many come. The filling is not part of what it is worth."""
    arrived = np.arange(0, 40, 0.25)
    completed = 4 * (np.arange(len(arrived)) // 8 + 1) + np.arange(len(arrived)) % 8 / 2
    found = steadiness(arrived, completed, (warmup_s, 40.0))
    assert (found.steady, found.saturated, found.filling) == (False, True, False)
    assert found.slope == pytest.approx(0.5, abs=0.05)
    assert found.start_s >= 4


def test_before_an_answers_time_has_passed_nothing_is_said():
    arrived = np.arange(0, 9, 0.25)
    found = steadiness(arrived, arrived + 20, (1.0, 9.0))
    assert (found.steady, found.saturated, found.filling) == (False, False, True)
    assert (found.slope, found.start_s) == (0, 1)


@pytest.mark.parametrize("answer_s", [20, 20.9])
def test_what_is_left_after_the_filling_may_be_too_little(answer_s):
    arrived = np.arange(0, 21, 0.25)
    found = steadiness(arrived, arrived + answer_s, (1.0, 21.0))
    assert (found.steady, found.saturated, found.filling) == (False, False, True)
    assert found.slope < 0.1, "of the whole window"


def test_few_requests_are_not_taken_for_filling():
    arrived = np.arange(0, 30, 5.0)
    found = steadiness(arrived, arrived + 0.1, (10.0, 30.0))
    assert (found.steady, found.saturated, found.filling) == (False, False, False)


def test_what_fills_a_server_is_the_mean_answer():
    """Most answers take 0.3 s, some 10 s: of any server, in flight grows for ten seconds."""
    rng = np.random.default_rng(9)
    called = 0
    for _ in range(RUNS):
        arrived = np.cumsum(rng.exponential(0.1, 200))
        completed = arrived + np.where(rng.random(200) < 0.6, 0.3, 10)
        called += steadiness(arrived, completed, (1.0, float(arrived[-1]))).saturated
    assert called < 0.12 * RUNS


@pytest.mark.parametrize("seed", range(5))
def test_requests_may_come_in_any_order(seed):
    arrived = np.arange(0, 40, 0.25)
    completed = 1.3 * arrived + 2
    shuffled = np.random.default_rng(seed).permutation(len(arrived))
    assert steadiness(arrived[shuffled], completed[shuffled], (1.0, 40.0)) == steadiness(
        arrived, completed, (1.0, 40.0)
    )


def test_too_little_to_tell():
    assert steadiness([1.0], [2.0], (5.0, 10.0)) is None
    found = steadiness([1.0, 2.0, 3.0], [np.inf] * 3, (0.0, 4.0))
    assert (found.steady, found.saturated) == (False, False)
