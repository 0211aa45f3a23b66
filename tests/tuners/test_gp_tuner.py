"""What is the Gaussian-process search's own: what it models, and that each part does something."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from scenarios.space import Knob, SearchSpace
from tuners.base import Trial, everything
from tuners.gp_tuner import COVER_TRIALS, Cost, GpTuner, Models, log_improvement
from tuners.lattice import Lattice
from tuners.recall import recalled
from tuners.staged_tuner import STAGES, StagedTuner

sys.path.insert(0, str(Path(__file__).parent))
from serving_law import SPACE, ServingLaw, search

FLAT = SearchSpace(
    "flat",
    (
        Knob("seats", (1, 2, 4, 8, 16), 4, "batching", ""),
        Knob("graph", ("a", "b", "c"), "a", "compute", "", recompiles=True),
        Knob("cache", (True, False), True, "memory", ""),
    ),
)


def whole(rows):
    return np.ones(len(rows), dtype=bool)


def tried(config, number, *, score=1.0, seconds=100.0, state="complete", constraints=None):
    return Trial(
        number=number,
        knobs=dict(config.knobs),
        config_digest=config.digest,
        state=state,
        score=score,
        constraints={"slo": 0.0} if constraints is None else constraints,
        seconds=seconds,
    )


def test_improvement_is_the_expectation_and_stays_finite_far_away():
    mean, spread, best = np.array([0.3, 1.2, -2.0]), np.array([0.5, 0.2, 0.4]), 1.0
    z = (mean - best) / spread
    expected = spread * (norm.pdf(z) + z * norm.cdf(z))
    assert np.exp(log_improvement(mean, spread, best)) == pytest.approx(expected, rel=1e-9)
    far = log_improvement(np.array([-50.0, -500.0, -5e5]), np.full(3, 0.1), 0.0)
    assert np.isfinite(far).all()
    assert (np.diff(far) < 0).all()


def test_a_crash_makes_its_neighbours_improbable_and_leaves_the_rest():
    rows = [FLAT.complete({"seats": n}) for n in (1, 2, 4)]
    crashed = [FLAT.complete({"seats": n, "graph": g}) for n, g in ((16, "a"), (16, "b"), (8, "a"))]
    history = [tried(c, i) for i, c in enumerate(rows)]
    history += [
        tried(c, 3 + i, score=None, state="infeasible", constraints={"engine": 1.0}) for i, c in enumerate(crashed)
    ]
    models = Models(Lattice(FLAT), history, history)
    assert len(models.constraints) == 1
    near, far = (
        Lattice(FLAT).codes([dict(FLAT.complete(k).knobs)]) for k in ({"seats": 16, "graph": "c"}, {"seats": 1})
    )
    assert models.constraints[0].predict(near)[0][0] > 0 > models.constraints[0].predict(far)[0][0]


def test_where_nothing_holds_it_goes_where_least_is_missed():
    history = [
        tried(FLAT.complete({"seats": n, "graph": g, "cache": g != "c"}), i, score=0.0, constraints={"slo": v})
        for i, (n, g, v) in enumerate(((4, "a", 0.6), (16, "a", 1.0), (8, "b", 0.9), (2, "b", 0.3), (2, "c", 0.3)))
    ]
    asked = [GpTuner(FLAT, seed).best_of(history, everything, whole).knobs["seats"] for seed in range(5)]
    assert asked == [1] * 5


def test_every_value_without_order_is_launched_once_before_the_model_decides():
    tuner, history = GpTuner(FLAT, 0), [tried(FLAT.default(), 0)]
    while len({t.knobs["graph"] for t in history}) < 3 or len({t.knobs["cache"] for t in history}) < 2:
        history.append(tried(tuner.ask(history), len(history)))
        assert len(history) <= 1 + 2, "two launches show both other graphs, and the cache off"


def test_a_value_whose_launch_died_is_launched_again_elsewhere_but_not_for_ever():
    history = [tried(FLAT.default(), 0)]
    for number in range(1, COVER_TRIALS + 1):
        config = GpTuner(FLAT, 0).ask(history)
        dead = config.knobs["graph"] == "c"
        state, score = ("infeasible", None) if dead else ("complete", 1.0)
        constraints = {"engine": 1.0} if dead else None
        history.append(tried(config, number, score=score, state=state, constraints=constraints))
    assert sum(t.knobs["graph"] == "c" for t in history) >= 2
    assert GpTuner(FLAT, 0).ask([*history, *history[1:2]]) is not None


def test_it_begins_by_launching_every_value_that_has_no_order():
    """The first ones died: what they had is still unseen."""
    history = [tried(FLAT.default(), 0)]
    died = FLAT.complete({"graph": "b"})
    history.append(tried(died, 1, score=None, state="infeasible", constraints={"engine": 1.0}))
    tuner = GpTuner(FLAT, 3)
    unseen = {"a", "b", "c"} - {FLAT.default().knobs["graph"]}
    while unseen:
        config = tuner.ask(history)
        assert config.knobs["graph"] in unseen
        unseen.remove(config.knobs["graph"])
        history.append(tried(config, len(history)))


def test_a_constraint_that_was_never_broken_is_not_modelled():
    history = [tried(FLAT.complete({"seats": n}), i) for i, n in enumerate((1, 2, 4))]
    assert Models(Lattice(FLAT), history, history).constraints == []


def test_of_two_equal_promises_the_one_that_need_not_compile_goes_first():
    """Launches with a new value of `graph` took 100 s longer, whatever the value."""
    order = [("a", 4), ("a", 8), ("b", 4), ("b", 8), ("a", 1), ("a", 2)]
    seen, history = set(), []
    for number, (graph, seats) in enumerate(order):
        config = FLAT.complete({"graph": graph, "seats": seats})
        history.append(tried(config, number, seconds=200.0 if graph not in seen else 100.0))
        seen.add(graph)
    lattice = Lattice(FLAT)
    cost = Cost(lattice, history, lattice.codes([t.knobs for t in history]), history)
    codes = lattice.codes([dict(FLAT.complete({"graph": g, "seats": 16}).knobs) for g in ("a", "b", "c")])
    seconds = np.exp(cost.log_seconds(codes))
    assert seconds[2] > 1.4 * seconds[0]
    assert seconds[2] > 1.4 * seconds[1]


def test_without_times_there_is_no_cost():
    lattice = Lattice(FLAT)
    history = [tried(FLAT.default(), 0, seconds=0.0)]
    cost = Cost(lattice, history, lattice.codes([t.knobs for t in history]), history)
    assert (cost.log_seconds(lattice.codes([dict(FLAT.default().knobs)])) == 0).all()


def test_what_it_expects_is_near_the_truth_after_a_search():
    law = ServingLaw(2)
    tuner = GpTuner(SPACE, 0)
    history = search(law, tuner, 0, wall_clock_s=2500)
    assert tuner.expects(history[:3], SPACE.default()) is None
    best = max((t for t in history if t.feasible), key=lambda t: t.score)
    expected = tuner.expects(history, SPACE.complete(best.knobs))
    assert abs(math.log(expected / law.rate(best.knobs))) < 0.25


def test_of_a_long_history_the_control_and_the_best_are_recalled():
    history = [tried(FLAT.default(), n, score=float((n * 7919) % 1000)) for n in range(1000)]
    known = recalled(history, 100)
    assert len(known) == 100
    assert known[0].number == 0
    assert {t.score for t in sorted(history[1:], key=lambda t: -t.score)[:50]} <= {t.score for t in known}
    assert len({t.number for t in known}) == 100


def test_a_stage_varies_its_own_knobs_around_the_best():
    law, history = ServingLaw(1), []
    tuner = StagedTuner(SPACE, 0)
    for number in range(1 + sum(most for _, most in STAGES)):
        config = tuner.ask(history, law.possible) if history else SPACE.default()
        history.append(law.trial(number, config, history, 0))
    first = STAGES[0][1]
    for trial in history[1 : first + 1]:
        changed = {k.name for k in SPACE.knobs if trial.knobs.get(k.name) != history[0].knobs.get(k.name)}
        assert changed <= {"weights"} or len({t.knobs["weights"] for t in history[:first]}) == 3


def test_stages_without_a_knob_are_skipped():
    space = SearchSpace("few", (Knob("seats", tuple(range(1, 20)), 4, "batching", ""),))
    tuner = StagedTuner(space, 0)
    assert len(tuner._stages([tried(space.default(), 0)])) == 2
