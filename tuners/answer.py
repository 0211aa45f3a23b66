"""Puts the answer of a study into words and numbers: a `Winner`. Pure.

Knows nothing of files or of how anything was measured.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from harness.engines.base import LaunchPlan
from harness.measurement import QualityVerdict
from harness.stats.intervals import pairs_to_decide
from scenarios.spec import MOST_BLOCKS, Scenario
from tuners.evaluate import SCORE_UNITS
from tuners.results import Certification, FinalistSummary, TrialResult, Winner
from tuners.select import CONTROL, Choice, nearest_miss

DEPLOY_PORT = 8080


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a study found out. ``plan``: the chosen configuration's launch plan."""

    scenario: Scenario
    results: Sequence[TrialResult]
    choice: Choice
    chosen: int
    plan: LaunchPlan
    quality: QualityVerdict | None
    certified: Certification | None


def found(e: Evidence) -> Winner:
    """The tuned winner, or the advice to keep the defaults."""
    summaries = {s.trial: s for s in e.choice.summaries}
    result = e.results[e.chosen]
    gain = summaries[e.chosen].gain if e.chosen in summaries else None
    run = e.certified.run if e.certified else None
    passed = run is not None and run.verdict.outcome == "PASS"
    return Winner(
        outcome="keep_defaults" if e.chosen == CONTROL else "tuned",
        reason=_reason(e, gain is None),
        trial=e.chosen,
        config=e.plan.config.to_dict(),
        identity=result.identity,
        gain=gain,
        score=mean_score(e.choice.summaries, e.chosen) or result.trial.score,
        default_score=mean_score(e.choice.summaries, CONTROL) or e.results[CONTROL].trial.score,
        finalists=tuple(_with_quality(s, e) for s in e.choice.summaries),
        certified_rate_rps=e.certified.rate_rps if e.certified and passed else None,
        certification=run.verdict if run else None,
        certified=run.measurement if run else None,
        quality=e.quality,
        nearest_miss=None,
        export={e.plan.deploy_argv[0]: shlex.join(on_port(e.plan.deploy_argv)), "environment": dict(e.plan.env)},
        **_common(e.scenario, e.results),
    )


def none_feasible(scenario: Scenario, results: Sequence[TrialResult]) -> Winner:
    return Winner(
        outcome="none_feasible",
        reason="No configuration that was tried meets every target.",
        trial=None,
        config=None,
        identity=None,
        gain=None,
        score=None,
        default_score=None,
        finalists=(),
        certified_rate_rps=None,
        certification=None,
        certified=None,
        quality=None,
        nearest_miss=nearest_miss(results),
        export={},
        **_common(scenario, results),
    )


def mean_score(summaries: Sequence[FinalistSummary], trial: int) -> float | None:
    return next((fmean(s.scores) for s in summaries if s.trial == trial), None)


def on_port(argv: Sequence[str], port: int = DEPLOY_PORT) -> list[str]:
    return [part.format(port=port) if "{port}" in part else part for part in argv]


def _reason(e: Evidence, unmeasured_gain: bool) -> str:
    if e.chosen == CONTROL:
        accurate = " while keeping its accuracy" if e.choice.order else ""
        return (
            f"No configuration beat the defaults significantly on held-out traffic{accurate}. Keep the defaults."
            f"{_unproven(e.choice)}"
        )
    if unmeasured_gain:
        return f"Trial {e.chosen:03d} meets every target on held-out traffic; the defaults do not."
    gain = next(s.gain for s in e.choice.summaries if s.trial == e.chosen)
    assert gain is not None
    kept = " and keeps its accuracy" if e.quality else ""
    return (
        f"Trial {e.chosen:03d} gives {gain.value:.2f} times what the defaults give on held-out traffic "
        f"({gain.confidence:.1%} interval {gain.low:.2f} to {gain.high:.2f}){kept}."
    )


def _unproven(choice: Choice) -> str:
    """The finalist that looked best, where too few blocks say so, and how many would do."""
    gains = ((s.gain.value or 0.0, s.trial, s.gain) for s in choice.summaries if s.gain and s.trial not in choice.order)
    ratio, trial, gain = max(gains, key=lambda found: found[0], default=(0.0, CONTROL, None))
    if gain is None or ratio <= 1:
        return ""
    enough = pairs_to_decide(gain, MOST_BLOCKS)
    hint = f"; about {enough} would decide (budget.finalist_blocks)" if enough else ""
    return (
        f" Trial {trial:03d} gave {ratio:.2f} times as much, but {gain.n} blocks leave that open "
        f"({gain.confidence:.1%} interval {gain.low:.3g} to {gain.high:.3g}){hint}."
    )


def _with_quality(summary: FinalistSummary, e: Evidence) -> FinalistSummary:
    """Finalists before the chosen one lost their quality comparison; those after it were not compared."""
    if summary.trial == e.chosen and e.quality is not None:
        return summary.model_copy(update={"quality_passed": True})
    lost = e.choice.order if e.chosen == CONTROL else e.choice.order[: e.choice.order.index(e.chosen)]
    return summary.model_copy(update={"quality_passed": False}) if summary.trial in lost else summary


def _common(scenario: Scenario, results: Sequence[TrialResult]) -> Mapping[str, Any]:
    return {
        "objective": scenario.objective,
        "default_config": {
            "engine": scenario.engine.name,
            "knobs": dict(sorted(results[CONTROL].trial.knobs.items())),
            "env": {},
        },
        "score_unit": SCORE_UNITS[scenario.objective],
        "simulated": any(r.identity is not None and r.identity.simulated for r in results),
        "scenario_digest": scenario.digest,
        "workload_digest": scenario.workload.digest,
    }
