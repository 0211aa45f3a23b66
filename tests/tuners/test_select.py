"""Who wins, and when the answer is to keep the defaults."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tuners.base import Trial
from tuners.results import FinalsRun, TrialResult
from tuners.select import choose, finalists, nearest_miss


def trial(number, score, knobs=None, constraints=None, state="complete"):
    return Trial(
        number=number,
        knobs=knobs or {"slots": number},
        config_digest=str(number),
        state=state,
        score=score,
        constraints={"slo": 0.0} if constraints is None else constraints,
        seconds=1.0,
    )


def final(block, number, score):
    return FinalsRun(block=block, position=0, trial=number, seed=0, score=score, capacity=None, runs=())


def test_finalists_are_the_best_feasible_without_the_control():
    trials = [trial(0, 9.0), trial(1, 5.0), trial(2, 7.0), trial(3, 8.0, constraints={"quality": 0.1}), trial(4, None)]
    assert [t.number for t in finalists(trials, 2)] == [2, 1]


def test_a_clear_gain_wins_and_noise_does_not():
    trials = [trial(0, 1.0), trial(1, 2.0), trial(2, 1.05)]
    runs = [final(b, n, s * noise) for b, noise in enumerate((1.0, 1.1, 0.9)) for n, s in ((0, 10.0), (1, 15.0))]
    runs += [final(b, 2, s) for b, s in enumerate((12.0, 9.0, 10.0))]
    choice = choose(trials, runs, tie=0.02)
    assert choice.order == (1,)
    gain = next(s for s in choice.summaries if s.trial == 1).gain
    assert np.isclose(gain.value, 1.5)
    assert gain.low > 1.49, "the host's drift hits both arms of a block and cancels"


def test_within_the_tie_band_fewer_changed_knobs_win():
    trials = [
        trial(0, 1.0, {"a": 0, "b": 0}),
        trial(1, 2.0, {"a": 1, "b": 1}),
        trial(2, 2.0, {"a": 1, "b": 0}),
    ]
    runs = [final(b, n, s + 0.001 * b) for b in range(3) for n, s in ((0, 10.0), (1, 20.1), (2, 20.0))]
    assert choose(trials, runs, tie=0.02).order == (2, 1)
    assert choose(trials, runs, tie=0.0).order == (1, 2)


def test_a_finalist_that_failed_in_a_block_is_out_and_a_dead_control_is_beaten():
    trials = [trial(0, 0.0), trial(1, 2.0), trial(2, 3.0)]
    runs = [final(b, 0, 0.0) for b in range(2)] + [final(b, 1, 2.0) for b in range(2)]
    runs += [final(0, 2, 3.0), final(1, 2, 0.0)]
    choice = choose(trials, runs, tie=0.02)
    assert choice.order == (1,)
    assert next(s for s in choice.summaries if s.trial == 1).gain is None


@given(st.integers(0, 10_000))
def test_identical_configurations_are_rarely_called_better(seed):
    """One draw per example; the rate over many seeds is bounded in the next test."""
    rng = np.random.default_rng(seed)
    runs = [final(b, n, float(np.exp(rng.normal(2, 0.1)))) for b in range(3) for n in (0, 1)]
    choice = choose([trial(0, 1.0), trial(1, 1.0)], runs, tie=0.02)
    low = choice.summaries[1].gain.low
    assert (choice.order == (1,)) == (low > 1)


def test_false_claims_of_a_gain_stay_below_their_nominal_rate():
    rng = np.random.default_rng(1)
    claims = 0
    for _ in range(1000):
        runs = [final(b, n, float(np.exp(rng.normal(2, 0.1)))) for b in range(3) for n in (0, 1, 2)]
        claims += bool(choose([trial(n, 1.0) for n in range(3)], runs, tie=0.02).order)
    assert claims <= 50 + 3 * np.sqrt(1000 * 0.05 * 0.95), claims


def test_the_nearest_miss_prefers_what_ran_over_what_crashed():
    def result(t):
        return TrialResult(
            trial=t, folder="", identity=None, cold_start_s=None, expected_memory_bytes=None, capacity=None, runs=(),
            quality=None, quality_from=None,
        )  # fmt: skip

    results = [
        result(trial(0, None, constraints={"engine": 1.0}, state="infeasible")),
        result(trial(1, 0.0, constraints={"slo": 0.8})),
        result(trial(2, 0.0, constraints={"slo": 0.12, "quality": -0.1})),
    ]
    said = nearest_miss(results)
    assert "trial 002" in said
    assert "slo by 12%" in said
    assert nearest_miss([]) is None


def test_the_nearest_miss_names_the_target_that_was_missed_most():
    def hold(rate_rps, ttft_ms, tpot_ms):
        slo = [
            SimpleNamespace(metric=m, percentile=p, target_ms=t)
            for m, p, t in (("ttft", 95, 100.0), ("tpot", 99, 10.0))
        ]
        metrics = {"ttft_p95_ms": SimpleNamespace(value=ttft_ms), "tpot_p99_ms": SimpleNamespace(value=tpot_ms)}
        return SimpleNamespace(measurement=SimpleNamespace(kind="hold", rate_rps=rate_rps, slo=slo, metrics=metrics))

    def missed(*runs):
        return nearest_miss([SimpleNamespace(trial=trial(3, 0.0, constraints={"slo": 0.4}), runs=runs)])

    assert "ttft P95 140 ms, target 100 ms" in missed(hold(2.0, 900.0, 90.0), hold(0.5, 140.0, 9.0))
    assert "tpot P99 25 ms, target 10 ms" in missed(hold(0.5, 140.0, 25.0))
    assert "ttft P95 never came" in missed(hold(0.5, None, 25.0))
    assert "missed slo by 40%" in missed()


def test_a_score_that_is_no_number_is_no_finalist():
    scores = [5.0, float("nan"), 7.0, float("inf"), None, 6.0]
    assert [t.number for t in finalists([trial(n, s) for n, s in enumerate(scores)], 3)] == [2, 5]
