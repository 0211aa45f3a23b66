"""The simulated queues against what theory says of them."""

import math

import numpy as np
import pytest

import queues
from queues import MD1, Batch, MMk, Scheduler

LAWS = [MMk(), MMk(8), MD1(), Batch(), Scheduler()]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_equal_seeds_give_equal_answers_and_nobody_is_answered_before_arriving(law):
    arrivals = queues.poisson(0.8 * law.max_rps, 2000, np.random.default_rng(1))
    served = law.serve(arrivals, np.random.default_rng(2))
    again = law.serve(arrivals, np.random.default_rng(2))
    assert np.array_equal(served.ttft_s, again.ttft_s)
    assert (served.ttft_s > 0).all()
    assert (served.done_s >= arrivals + served.ttft_s - 1e-9).all()


@pytest.mark.parametrize("servers", [1, 2, 8])
@pytest.mark.parametrize("utilisation", [0.3, 0.8])
def test_an_mmk_queue_has_its_exact_quantile(servers, utilisation):
    law = MMk(servers, service_s=0.5)
    exact = queues.truth(law, utilisation * law.max_rps)
    found = queues.simulated(law, utilisation * law.max_rps, 95, "ttft", 300_000)
    assert exact.standard_error == 0
    assert found.value == pytest.approx(exact.value, abs=4 * found.standard_error)
    assert found.standard_error < 0.02 * exact.value


def test_with_two_servers_and_half_load_the_two_phases_have_equal_rates():
    """Where the formula's denominator vanishes."""
    near = queues.mmk_sojourn_quantile(0.95, 0.5 + 1e-6, 2)
    assert queues.mmk_sojourn_quantile(0.95, 0.5, 2) == pytest.approx(near, rel=1e-4)


def test_an_md1_queue_waits_as_pollaczek_and_khinchine_say():
    law, utilisation = MD1(service_s=2.0), 0.7
    rng = np.random.default_rng(3)
    served = law.serve(queues.poisson(utilisation * law.max_rps, 400_000, rng), rng)
    mean = 2.0 * (1 + utilisation / (2 * (1 - utilisation)))
    assert served.ttft_s.mean() == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_what_arrivals_find_obeys_little(law):
    """Poisson arrivals see time averages: mean in flight = rate * mean time in the system."""
    rng = np.random.default_rng(4)
    rate = 0.7 * law.max_rps
    arrivals = queues.poisson(rate, 100_000, rng)
    served = law.serve(arrivals, rng)
    assert served.in_flight.mean() == pytest.approx(rate * (served.done_s - arrivals).mean(), rel=0.03)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
def test_beyond_its_highest_rate_a_queue_grows_and_below_it_does_not(law):
    rng = np.random.default_rng(5)
    n = 60_000
    for share, grows in [(0.95, False), (1.1, True)]:
        served = law.serve(queues.poisson(share * law.max_rps, n, rng), rng)
        assert (served.in_flight[-1] > 0.05 * n) == grows


def test_a_batch_takes_all_that_wait_up_to_its_most():
    law = Batch(most=3, base_s=1.0, each_s=0.5, cv=1e-3)
    served = law.serve(np.array([0.0, 0.1, 0.2, 0.3, 0.4]), np.random.default_rng(0))
    assert served.done_s == pytest.approx([1.5, 4.0, 4.0, 4.0, 5.5], rel=0.02)


def test_a_scheduler_alone_with_a_request_costs_its_iterations():
    law = Scheduler(prompt_tokens=100, output_tokens=11, cv=1e-9)
    served = law.serve(np.array([1.0]), np.random.default_rng(0))
    assert served.ttft_s[0] == pytest.approx(law.step_s + 100 * law.prefill_s)
    assert served.tpot_s[0] == pytest.approx(law.step_s + law.decode_s)
    assert served.done_s[0] == pytest.approx(1 + served.ttft_s[0] + 10 * served.tpot_s[0])


def test_a_scheduler_jumping_over_iterations_equals_one_that_walks():
    law = Scheduler(most_running=4, output_tokens=12)
    rng = np.random.default_rng(6)
    arrivals = queues.poisson(0.9 * law.max_rps, 300, rng)
    served = law.serve(arrivals, np.random.default_rng(7))
    first, last = walked(law, arrivals, np.random.default_rng(7))
    assert served.ttft_s == pytest.approx(first - arrivals)
    assert served.done_s == pytest.approx(last)


def walked(law, arrivals, rng):
    """The same engine, one iteration at a time."""
    n = len(arrivals)
    prompts = queues._lengths(law.prompt_tokens, law.cv, n, rng)
    left = queues._lengths(law.output_tokens, law.cv, n, rng)
    first, last = np.zeros(n), np.zeros(n)
    now, running, waiting = 0.0, [], 0
    while running or waiting < n:
        if not running:
            now = max(now, arrivals[waiting])
        admitted, tokens = [], 0
        while waiting < n and arrivals[waiting] <= now and len(running) + len(admitted) < law.most_running:
            if admitted and tokens + prompts[waiting] > law.most_prefill:
                break
            admitted.append(waiting)
            tokens += prompts[waiting]
            waiting += 1
        now += law.step_s + law.decode_s * len(running) + law.prefill_s * tokens
        first[admitted] = now
        running += admitted
        left[running] -= 1
        last[[i for i in running if left[i] == 0]] = now
        running = [i for i in running if left[i] > 0]
    return first, last


def test_a_ramp_grows_exponentially():
    times = queues.ramp(10, 160, 100, np.random.default_rng(8))
    early, late = np.sum(times < 25), np.sum(times >= 75)
    assert late / early == pytest.approx(8, rel=0.15)
    assert len(times) == pytest.approx(150 * 100 / math.log(16), rel=0.05)


def test_a_truth_is_simulated_once(tmp_path, monkeypatch):
    monkeypatch.setattr(queues, "TRUTHS", tmp_path / "truths.json")
    first = queues.truth(MD1(), 0.5, n=20_000)
    monkeypatch.setattr(queues, "simulated", None)
    assert queues.truth(MD1(), 0.5, n=20_000) == first
