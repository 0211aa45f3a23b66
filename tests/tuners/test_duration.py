"""How long a study lasts at most, from its budget."""

import pytest

from scenarios.spec import Scenario
from tuners.duration import parts, seconds


def scenario(objective="goodput", arrivals=None, tasks=(), **budget):
    return Scenario.model_validate(
        {
            "name": "x",
            "model": {"name": "smollm2-135m-instruct"},
            "objective": objective,
            "workload": {
                "arrivals": arrivals or {"process": "poisson"},
                "prompt_tokens": {"mean": 16},
                "output_tokens": {"mean": 8},
            },
            "slo": {"ttft": {"target_ms": 500}},
            "quality": {"tasks": list(tasks)},
            "search": {"finalists": 2},
            "budget": {"trials": 10, "warmup_s": 2, "ramp_s": 10, "hold_s": 8, "holds": 3, "finalist_blocks": 4,
                       "certify_s": 60, **budget},
        }
    )  # fmt: skip


def test_the_parts_of_a_search_for_capacity():
    found = {part.name: (part.count, part.load_s) for part in parts(scenario(tasks=[{"task": "cloze", "margin": 0.1}]))}
    one = 2 + 10 + 3 * (2 + 8)
    assert found == {
        "reference": (1, 2),
        "the defaults and the trials": (11, one),
        "the control arm": (0, one),
        "finals": (12, one),
        "quality on every item": (2, 0),
        "certification": (2, 70),
    }


def test_seconds_count_every_launch():
    launches = sum(part.count for part in parts(scenario()))
    assert seconds(scenario(), 30.0) - seconds(scenario(), 0.0) == pytest.approx(30 * launches)


def test_a_wall_clock_limit_ends_the_trials_after_the_one_that_runs():
    assert seconds(scenario(trials=1000, wall_clock_s=600), 5.0) == pytest.approx(
        seconds(scenario(trials=1), 5.0) - 2 * 47.0 + 600 + 47.0
    )


def test_a_closed_loop_is_not_certified():
    closed = scenario("meet", {"process": "closed", "concurrency": 4})
    assert next(part.count for part in parts(closed) if part.name == "certification") == 0
