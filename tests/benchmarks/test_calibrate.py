"""What `make calibrate` rests on: its queues are the queues they claim to be, and a broken bound is seen."""

import calibrate
import filling
import numpy as np
import parallel_queues
import pytest

from queues import Batch, MMk, mmk_sojourn_quantile


@pytest.mark.parametrize(("law", "servers"), [("mm1", 1), ("mm8", 8)])
def test_the_quantiles_of_many_runs_at_once_are_those_of_the_formula(law, servers):
    latency = parallel_queues.simulate(law, 0.7, n=2000, runs=1000, seed=1).latency
    for miss in calibrate.MISS_RATES:
        limit = mmk_sojourn_quantile(1 - miss, 0.7, servers)
        assert (latency > limit).mean() == pytest.approx(miss, rel=0.12)


def test_one_server_and_eight_agree_with_the_event_by_event_simulation():
    """Same law, other random numbers: the means agree."""
    for law, servers in (("mm1", 1), ("mm8", 8)):
        rng = np.random.default_rng(2)
        arrived = np.cumsum(rng.exponential(1 / (0.6 * servers), 60_000))
        expected = MMk(servers).serve(arrived, rng).ttft_s.mean()
        found = parallel_queues.simulate(law, 0.6, n=2000, runs=100, seed=3).latency.mean()
        assert found == pytest.approx(expected, rel=0.05)


def test_the_batch_server_is_that_of_the_event_by_event_simulation():
    rng = np.random.default_rng(4)
    arrived = np.cumsum(rng.exponential(1 / (0.7 * 8), 60_000))
    expected = Batch(cv=0.25).serve(arrived, rng).ttft_s
    found = parallel_queues.simulate("batch", 0.7, n=2000, runs=100, seed=5).latency
    assert found.mean() == pytest.approx(expected.mean(), rel=0.03)
    assert np.quantile(found, 0.95) == pytest.approx(np.quantile(expected, 0.95), rel=0.05)


def test_the_scheduler_serves_each_request_once_and_in_order():
    drawn = parallel_queues.simulate("scheduler", 0.8, n=1500, runs=4, seed=6)
    first = drawn.arrived + drawn.latency
    assert (drawn.latency > 0).all()
    assert (drawn.completed >= first).all()
    assert (np.diff(first, axis=1) >= 0).all()
    lasts = parallel_queues.simulate("scheduler_e2e", 0.8, n=1500, runs=4, seed=6)
    assert np.array_equal(lasts.latency, drawn.completed - drawn.arrived)


def test_the_scheduler_keeps_up_below_its_capacity_and_not_above():
    rng = np.random.default_rng(7)
    for utilisation, keeps_up in ((0.95, True), (1.05, False)):
        rate = utilisation * parallel_queues.CAPACITY["scheduler"]
        arrived = np.cumsum(rng.exponential(1 / rate, (40, 12_000)), axis=1)
        completed, _ = parallel_queues.LAWS["scheduler"](arrived, rng)
        behind = (completed - arrived)[:, -2000:].mean() / (completed - arrived)[:, 4000:6000].mean()
        assert (behind < 1.5) == keeps_up


def test_long_answers_take_a_second_alone_and_share_the_engine_when_many():
    (seldom,) = filling.long_answers(room=1000, utilisation=0.0002, run_s=500, runs=1, seed=8)
    alone = seldom[1] - seldom[0]
    assert len(alone) > 60
    assert alone.mean() == pytest.approx(1, rel=0.05)
    assert alone.min() > 0.7
    (crowded,) = filling.long_answers(room=20, utilisation=3, run_s=60, runs=1, seed=9)
    served_s = crowded[1].max() - crowded[0].min()
    assert len(crowded[0]) == pytest.approx(3600, rel=0.05)
    assert len(crowded[0]) / served_s == pytest.approx(20, rel=0.05)


def row(passed=(0, 0, 0, 0), failed=(0, 0, 0, 0)):
    cells = [
        {"miss_rate": miss, "passed": p, "failed": f}
        for miss, p, f in zip(calibrate.MISS_RATES, passed, failed, strict=True)
    ]
    return {"law": "mm1", "utilisation": 0.5, "runs": 500, "cells": cells, "called_saturated": 0}


def test_a_broken_bound_is_named():
    assert calibrate.broken([row(passed=(500, 30, 1, 1), failed=(10, 30, 500, 500))]) == []
    assert calibrate.broken([row(passed=(500, 60, 0, 0))]) == [
        "M/M/1 at 0.5, missed by 5%: 60 of 500 a wrong PASS, upper bound 14.66% > 10%"
    ]
    assert "missed by 10%: 2 of 500 a wrong PASS" in calibrate.broken([row(passed=(0, 0, 2, 0))])[0]
    assert "missed by 1%: 40 of 500 a wrong FAIL" in calibrate.broken([row(failed=(40, 0, 0, 0))])[0]
    assert calibrate.broken_steadiness([row() | {"called_saturated": 40}])
    assert calibrate.broken_steadiness([row() | {"utilisation": 1.3, "called_saturated": 40}])
    assert not calibrate.broken_steadiness([row()])


def test_a_filling_engine_that_is_judged_wrongly_is_named():
    calm = {"room": 20, "seconds": 8.0, "utilisation": 0.5, "runs": 500, "called_saturated": 10}
    busy = calm | {"utilisation": 2.0, "called_saturated": 490}
    assert filling.broken([calm, busy]) == []
    assert filling.broken([calm | {"called_saturated": 30}]) == [
        "filling, 20 requests/s at most, at 0.5: called saturated in 6.0% of the runs"
    ]
    assert "seen in 80.0%" in filling.broken([busy | {"called_saturated": 400}])[0]
    near = {"utilisation": 0.7, "called_saturated": 170}
    assert filling.broken([calm | near]) == []
    assert filling.broken([calm | near | {"called_saturated": 180}])
    assert filling.broken([busy | {"utilisation": 1.3, "called_saturated": 240}])
    short = {"seconds": 4.0, "called_saturated": 100}
    assert filling.broken([calm | short, busy | short]) == []


def test_leaving_out_the_filling_makes_the_difference():
    found = filling.fill((20, 4.0, 0.5))
    assert found["called_saturated"] < 0.15 * found["runs"]
    assert found["nothing_left_out"] > 0.25 * found["runs"]
    assert found["still_filling"] < 0.05 * found["runs"]
    assert filling.fill((20, 4.0, 2.0))["called_saturated"] > 0.9 * found["runs"]


def test_measures_a_cell_with_the_verdict_itself():
    found = calibrate.measure(("mm1", 0.5, 30))
    good, at, bad, worse = found["cells"]
    assert good["passed"] > 25
    assert worse["failed"] == 30
    assert at["uncorrected_passed"] > at["passed"]
    assert bad["uncorrected_passed"] >= bad["passed"]
    assert found["interval_covers"] > 20
