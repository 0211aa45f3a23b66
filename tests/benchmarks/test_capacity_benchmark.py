"""The search on simulated queues: what `make bench-capacity` asserts at length, in a few seconds."""

import capacity as benchmark
import numpy as np
import pytest

import queues
from harness.stats.intervals import binomial_upper
from tuners import belief

LAWS = [queues.MMk(), queues.MMk(8), queues.Scheduler()]
RUNS = 12


def measured(law, guess=1.2, tightness=5.0, runs=RUNS):
    target_s = tightness * queues.idle_latency_s(law)
    # The truth of the slow laws is kept in results/truths.json.
    truth = queues.capacity_rps(law, target_s).value
    return benchmark.measured((benchmark.Cell(law, tightness, guess), target_s, truth, runs))[1]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_the_capacity_is_found_and_rarely_overstated(law):
    found = measured(law)
    ratios = np.array(found["ratios"])
    assert np.median(np.abs(ratios - 1)) < 0.10
    outside = int((np.abs(ratios - 1) > 0.25).sum())
    assert binomial_upper(outside, RUNS) < 0.45
    assert found["requests"] < 0.7 * found["bisection_requests"]


def test_a_bad_first_guess_costs_requests_and_not_accuracy():
    for guess in benchmark.GUESSES:
        ratios = np.array(measured(queues.MMk(), guess, runs=8)["ratios"])
        assert np.median(np.abs(ratios - 1)) < 0.12, guess


def test_without_knowing_that_a_queue_begins_empty_the_capacity_is_overstated(monkeypatch):
    """The guard of `belief.shortfall`: taken away, M/M/8 with a loose target comes out too high."""
    with_it = np.median(measured(queues.MMk(8), tightness=5.0)["ratios"])
    monkeypatch.setattr(belief, "RISE", 0.0)
    without = np.median(measured(queues.MMk(8), tightness=5.0)["ratios"])
    assert without > with_it + 0.02


def test_bisection_overstates_a_loose_target():
    """Why fixed-length probes from empty are not enough: half the runs of M/M/8 end above the truth by 5 %."""
    assert np.mean(np.array(measured(queues.MMk(8))["bisection_ratios"]) > 1.05) > 0.5


def test_exact_capacities_agree_with_simulated_ones():
    law = queues.MMk(4)
    target_s = 3 * queues.idle_latency_s(law)
    exact = queues.capacity_rps(law, target_s)
    solved = [queues._solved(law, target_s, 95, 60_000, seed) for seed in range(4)]
    assert exact.standard_error == 0
    assert np.mean(solved) == pytest.approx(exact.value, rel=0.02)


def test_a_score_says_what_it_misses():
    assert benchmark.Score(0.04, 0.96, 0.04).missed() == []
    assert len(benchmark.Score(0.06, 0.94, 0.06).missed()) == 3
    assert benchmark.Score(0.06, 0.94, 0.06).missed(slack=1.3) == []


def test_the_plot_shows_every_cell():
    cell = {"law": "M/M/1", "tightness": 3.0, "guess": 1.2, "ratios": [0.9, 1.0, 1.1], "bisection_ratios": [1.0, 1.2]}
    assert benchmark.plot([cell, cell]).count("×3") == 2
