"""The search benchmark: its arithmetic against answers by hand, its laboratory against the truth it is judged by."""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from harness.engines.simulated.compiled import IS_COMPILED
from harness.errors import ConfigurationImpossible
from search import claims, recorded, report, run, truth
from search.ablations import WithoutCover, WithoutFailures, WithoutSeconds
from search.arms import ARMS, StudyArm
from search.courses import Course, Launch, Search, Step, course
from search.laboratory import Rules, VirtualLaboratory
from search.prober import Memory, VirtualProber
from search.regret import binomial_upper, compared, holm, median, time_to
from search.traffic import Traffic
from search.worlds import NAMES, world
from tuners.base import Trial

TRUTHS = {"d": 5.0, "a": 8.0, "b": 10.0, "c": 9.6}
needs_numba = pytest.mark.skipif(not IS_COMPILED, reason="minutes without numba (extra `simulate`)")


def launch(digest, ended_s, score, wasted=False):
    return Launch(digest, ended_s, score, wasted)


def searched(*launches, until_s=100.0):
    return course(Search((launch("d", 0.0, 5.1), *launches)), TRUTHS, until_s)


# -- courses and regret ----------------------------------------------------------------------------------


def test_regret_is_of_what_would_be_picked_not_of_the_best_that_was_tried():
    told = searched(launch("b", 10.0, 7.0), launch("a", 20.0, 9.0))  # b is better, a scored more by luck
    assert [s.regret for s in told.steps] == [0.5, 0.0, pytest.approx(0.2)]
    assert told.regret_at(15.0) == 0.0
    assert told.regret_at(20.0) == pytest.approx(0.2)
    assert told.regret_after(1) == 0.0


def test_a_launch_that_ends_after_the_budget_does_not_count():
    told = searched(launch("b", 100.1, 11.0))
    assert told.launches == 0
    assert told.regret_at(200.0) == 0.5


def test_a_failure_costs_time_and_is_counted_but_never_picked():
    told = searched(launch("x", 30.0, None, wasted=True), launch("c", 60.0, 9.0))
    assert (told.launches, told.wasted) == (2, 1)
    assert told.first_within(0.05) == 60.0


def test_the_mean_regret_is_the_area_under_the_steps():
    told = searched(launch("a", 25.0, 8.0), launch("b", 50.0, 10.0))
    assert told.mean_regret(100.0) == pytest.approx((25 * 0.5 + 25 * 0.2 + 50 * 0.0) / 100)
    assert told.mean_regret(25.0) == pytest.approx(0.5)


def test_a_time_that_most_never_reach_is_told_as_never():
    never = Course((Step(0, 0.0, 0.5),), 3, 90.0, 0)
    soon = Course((Step(0, 0.0, 0.5), Step(1, 10.0, 0.01)), 3, 90.0, 0)
    assert time_to([never, never, never, soon]).value == math.inf
    assert time_to([never, soon, soon, soon]).value == 10.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_the_bound_of_a_share_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    drawn = rng.binomial(200, 0.05, 2000)
    covered = np.mean([binomial_upper(int(k), 200) >= 0.05 for k in drawn])
    assert covered >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert binomial_upper(0, 200) == pytest.approx(1 - 0.05 ** (1 / 200))


def test_equal_arms_are_called_different_as_seldom_as_the_test_says():
    rng = np.random.default_rng(2)
    called = 0
    for _ in range(400):
        a, b = rng.random((2, 50))
        called += compared(dict(enumerate(a)), dict(enumerate(b))).p < 0.05  # type: ignore[arg-type]
    assert stats.binomtest(called, 400, 0.05, alternative="greater").pvalue > 0.001


def test_arms_are_compared_on_the_seeds_that_both_have():
    told = compared({"0": 0.1, "1": 0.2, "2": 0.3}, {"1": 0.3, "2": 0.3, "9": 0.0})
    assert (told.wins, told.losses, told.ties) == (1, 0, 1)


def test_a_median_lies_in_its_interval():
    told = median([1.0, 2.0, 3.0, math.inf])
    assert told.low <= told.value <= told.high


# -- traffic ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_requests_however_many_are_drawn(name):
    workload = world(name).scenario.workload
    short, long = Traffic(workload, 5).hold(4.0, 20.0), Traffic(workload, 5)
    long.hold(50.0, 400.0)
    again = long.hold(4.0, 20.0)
    assert np.array_equal(short.arrival_s, again.arrival_s)
    assert np.array_equal(short.prompt_tokens, again.prompt_tokens)
    assert np.array_equal(short.prefix, again.prefix)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "code"])  # its bursts are longer than any test
def test_a_hold_has_the_rate_and_the_lengths_that_were_asked(name):
    workload = world(name).scenario.workload
    drawn = Traffic(workload, 6).hold(20.0, 500.0)
    assert len(drawn) == pytest.approx(10_000, rel=0.06)
    assert np.all(np.diff(drawn.arrival_s) >= 0)
    if workload.sessions is None:
        shared = workload.prefix.tokens if workload.prefix else 0
        assert drawn.prompt_tokens.mean() == pytest.approx(workload.prompt_tokens.mean + shared, rel=0.08)
    assert drawn.output_tokens.mean() == pytest.approx(workload.output_tokens.mean, rel=0.08)


def test_a_ramp_grows_exponentially():
    drawn = Traffic(world("batch").scenario.workload, 7).ramp(1.0, 8.0, 100.0)
    expected = (8.0 - 1.0) / (math.log(8.0) / 100.0)
    assert len(drawn) == pytest.approx(expected, rel=0.02)
    half = np.searchsorted(drawn.arrival_s, 50.0)
    assert half == pytest.approx((math.sqrt(8.0) - 1.0) / (math.log(8.0) / 100.0), rel=0.05)


# -- worlds and laboratory -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_world_has_defaults_that_run_some_that_cannot_be_planned_and_some_that_die(name):
    at = world(name)
    starts = {c.short for c in at.configurations()}
    assert at.space.default().short in starts
    every = list(at.space.enumerate())
    impossible = [c for c in every if at.impossible(c)]
    died = [c for c in every if not at.impossible(c) and c.short not in starts]
    assert len(starts) >= 300
    assert impossible
    assert died
    with pytest.raises(ConfigurationImpossible):
        at.plan(impossible[0])


def laboratory(at, tmp_path: Path, **rules) -> VirtualLaboratory:
    return VirtualLaboratory(at, 1, tmp_path, Rules(**rules))


def test_what_dies_costs_its_launch_and_is_told_as_a_failure(tmp_path):
    at = world("batch")
    starts = {c.short for c in at.configurations()}
    doomed = next(c for c in at.space.enumerate() if not at.impossible(c) and c.short not in starts)
    result = laboratory(at, tmp_path).trial(1, doomed, [], None)
    assert result.trial.state == "infeasible"
    assert result.trial.failure == "out_of_memory"
    assert result.trial.seconds == pytest.approx(at.law(doomed).cold_start_s, abs=0.01)


def test_compiled_code_is_kept_from_launch_to_launch(tmp_path):
    at = world("chat")
    lab = laboratory(at, tmp_path)
    config = at.space.default()
    first, second = lab.launch(config)[0], lab.launch(config)[0]
    assert first - second == pytest.approx(at.law(config).compile_s)


@needs_numba
def test_the_laboratory_tells_a_capacity_near_the_truth(tmp_path):
    at = world("chat")
    lab = laboratory(at, tmp_path)
    result = lab.trial(0, at.space.default(), [], lab.reference())
    law, traffic = at.law(at.space.default()), Traffic(at.scenario.workload, 99)
    true = truth.capacity_rps(lambda rate: truth.holds(at, law, traffic, rate, 1500), 10.0, 1.05)
    assert result.trial.score == pytest.approx(true, rel=0.35)
    assert result.trial.seconds > lab.world.law(at.space.default()).cold_start_s


@needs_numba
def test_what_was_served_before_is_told_again_at_the_same_cost(tmp_path):
    at, memory = world("chat"), Memory()
    law = at.law(at.space.default())
    first, second = (VirtualProber(at, law, memory, 3) for _ in range(2))
    assert first.hold(10.0, 0) == second.hold(10.0, 0)
    served = len(memory.runs)
    assert (first.elapsed_s, first.idle_s) == (second.elapsed_s, second.idle_s)
    second.hold(10.0, 1)
    assert len(memory.runs) == served + 1


@needs_numba
@pytest.mark.parametrize("arm", ["random", "plain tpe", "vllm grid"])
def test_an_arm_is_a_function_of_its_seeds_and_keeps_to_its_clock(arm):
    at = world("chat")
    told = [ARMS[arm].run(at, 1, 2, 900.0, Memory()) for _ in range(2)]
    assert told[0] == told[1]
    ended = [launch.ended_s for launch in told[0].launches]
    assert ended[0] == 0.0
    assert ended == sorted(ended)
    assert ended[-2] < 900.0


@needs_numba
def test_without_the_planner_what_cannot_be_planned_is_paid_for():
    at = world("chat")
    wasted = {}
    for planner in (True, False):
        told = StudyArm("random", Rules(planner=planner))(at, 1, 3, 1500.0, Memory())
        wasted[planner] = sum(at.impossible(c) is not None for c in _configs(at, told))
    assert wasted[True] == 0
    assert wasted[False] > 0


def _configs(at, told):
    tried = {launch.digest for launch in told.launches}
    return [c for c in at.space.enumerate() if c.short in tried]


# -- truth -----------------------------------------------------------------------------------------------


def test_the_bisection_finds_a_known_capacity():
    assert truth.capacity_rps(lambda rate: rate <= 7.3, 1.0, 1.01) == pytest.approx(7.3, rel=0.006)
    assert truth.capacity_rps(lambda _: False, 1.0, 1.01) == 0.0
    with pytest.raises(ValueError, match="too short"):
        truth.capacity_rps(lambda _: True, 1.0, 1.01)


# -- the run ---------------------------------------------------------------------------------------------


def test_finished_cells_are_kept_and_forgotten_when_what_they_depend_on_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "search.json"
    cell = {"launches": 1, "seconds": 5.0, "wasted": 0, "claim": "", "final_regret": None, "cpu_s": 0.1}
    cells = {f"chat/{arm}/0": {**cell, "steps": [[0, 0.0, 0.5], [1, 5.0, 0.1]]} for arm in ("random", "gp")}
    run.save_cells(path, cells)
    assert run.load_cells(path) == cells
    left = list(run.missing(["chat"], {"random": 2, "gp": 1}, {"chat": 1.0}, cells, quick=False))
    assert [task[:3] for task in left] == [("chat", 1, ["random"])]
    monkeypatch.setitem(run.EVERY, "gp", replace(run.EVERY["gp"], modules=("tuners.random_tuner",)))
    assert list(run.load_cells(path)) == ["chat/random/0"]


def test_a_search_that_is_better_is_said_to_be_and_one_that_is_not_is_not():
    def cells(regret):
        return [
            Course((Step(0, 0.0, 0.5), Step(3, 1000.0 + k, regret + 0.001 * (k % 7))), 20, 3000.0, 2) for k in range(50)
        ]

    told = {}
    for name, ours in (("chat", 0.01), ("rag", 0.2)):
        told |= {f"{name}/{report.OURS}/{k}": c for k, c in enumerate(cells(ours))}
        told |= {f"{name}/random/{k}": c for k, c in enumerate(cells(0.15))}
    rows = report.summarise(told, {"chat": 1.0, "rag": 1.0})
    versus = {r.world: r.against_random for r in rows if r.arm == report.OURS}
    assert versus["chat"].p_holm < 0.01
    assert versus["chat"].median_difference < 0
    assert versus["rag"].median_difference > 0
    lines = report.targets(rows)
    assert "better than random at equal wall-clock, p < 0.01 after Holm, in 1 of 2 (chat)" in lines[1]
    assert "significantly worse than random in 1 of 2 (rag)" in lines[2]
    assert "simulated" in report.markdown(rows)


# -- claims, ablations and the recorded table ------------------------------------------------------------


def test_a_world_at_its_best_has_its_optimum_as_defaults():
    for name in NAMES:
        at = claims.at_its_best(name)
        told = truth.read()[name]
        assert dict(at.space.default().knobs) == told["best"]
        assert told["capacity_rps"][at.space.default().short] == max(told["capacity_rps"].values())


@needs_numba
@pytest.mark.parametrize("name", ["chat", "agents", "batch"])
def test_the_kept_truths_are_those_of_the_law_as_it_is(name):
    at, kept = world(name), truth.read()[name]["capacity_rps"]
    configs = {c.short: c for c in at.configurations()}
    assert configs.keys() == kept.keys()
    one = truth.PASSES[name in truth.SLOW_TO_SETTLE]
    worthy = sorted(short for short, rate in kept.items() if rate > 0.6 * max(kept.values()))
    for short in worthy[:3]:
        holding = truth._holding(at, configs[short], Traffic(at.scenario.workload, truth.SEED), one.requests)
        assert truth.capacity_rps(holding, kept[short], 1.05) == pytest.approx(kept[short], rel=0.12)


def test_an_ablation_asks_for_what_ours_does_not_and_never_twice():
    at = world("chat").space
    history = [Trial(number=0, knobs=dict(at.default().knobs), config_digest=at.default().digest, state="complete",
                     score=1.0, constraints={}, seconds=100.0)]  # fmt: skip
    for name, without in {"failures": WithoutFailures, "cover": WithoutCover, "seconds": WithoutSeconds}.items():
        told = list(history)
        for number in range(1, 5):
            config = without(at, 1).ask(told)
            assert config.digest not in {t.config_digest for t in told}, name
            died = number % 2
            told.append(Trial(
                number=number, knobs=dict(config.knobs), config_digest=config.digest, seconds=50.0,
                state="infeasible" if died else "complete", score=None if died else 1.0,
                constraints={"engine": 1.0} if died else {},
            ))  # fmt: skip


def test_the_recorded_table_is_replayed_around_what_was_measured():
    at = recorded.table()
    entry = next(e for e in at.entries.values() if e.feasible)
    rng = random.Random(1)
    drawn = [math.log(at.trial(1, entry.config, rng).score / entry.score) for _ in range(300)]
    assert np.mean(drawn) == pytest.approx(0.0, abs=3 * at.spread / math.sqrt(300))
    assert np.std(drawn) == pytest.approx(at.spread, rel=0.15)
    assert all(row["state"] != "void" for row in at.document["rows"]) or len(at.entries) < at.space.size()
    broken = next(e for e in at.entries.values() if not e.feasible)
    assert broken.config.short not in at.truths
    assert not at.trial(1, broken.config, rng).feasible
