"""How long a study will take at most, from its budget alone.

Knows nothing of engines: how long one launch takes is told. Quality questions are left out: their number is known, the
engine's pace is not.
"""

from dataclasses import dataclass

from scenarios.spec import Scenario
from tuners.study import CERTIFY_SHARES

SEARCH, ARM = "the defaults and the trials", "the control arm"


@dataclass(frozen=True, slots=True)
class Part:
    """``count`` times the same, each of ``load_s`` seconds of load on an engine started anew."""

    name: str
    count: int
    load_s: float

    def seconds(self, launch_s: float) -> float:
        return self.count * (launch_s + self.load_s)


def parts(scenario: Scenario) -> tuple[Part, ...]:
    budget = scenario.budget
    entrants = 1 + scenario.search.finalists
    gate = scenario.quality.tasks
    closed = scenario.workload.arrivals.process == "closed"
    certifications = 0 if closed else 1 if scenario.workload.arrivals.rate else len(CERTIFY_SHARES)
    return (
        Part("reference", 1, budget.warmup_s),
        Part(SEARCH, 1 + budget.trials, _evaluation_s(scenario)),
        Part(ARM, budget.trials if scenario.search.control else 0, _evaluation_s(scenario)),
        Part("finals", budget.finalist_blocks * entrants, _evaluation_s(scenario)),
        Part("quality on every item", scenario.search.finalists if gate else 0, 0.0),
        Part("certification", certifications, budget.certify_s + 5 * budget.warmup_s),
    )


def seconds(scenario: Scenario, launch_s: float) -> float:
    """``budget.wall_clock_s`` ends the trials, not what comes after."""
    limit_s = scenario.budget.wall_clock_s
    total = 0.0
    for part in parts(scenario):
        whole = part.seconds(launch_s)
        if limit_s is not None and part.name in (SEARCH, ARM) and part.count:
            whole = min(whole, limit_s + whole / part.count)  # the trial that runs is not cut short
        total += whole
    return total


def _evaluation_s(scenario: Scenario) -> float:
    budget = scenario.budget
    if scenario.objective == "goodput":
        return budget.warmup_s + budget.ramp_s + budget.holds * (budget.warmup_s + budget.hold_s)
    return 2 * budget.warmup_s + budget.holds * budget.hold_s
