"""Who won, and by how much: pure functions of what the ledger holds.

The gain is measured on held-out seeds, in blocks that run every finalist beside a fresh run of the
defaults. A finalist was chosen for a good result, so its search score flatters it; the blocks do not know
that score, and the interval is widened for the number of finalists it was the best of (Bonferroni).
Knows nothing of engines, files or time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from harness.measurement import Estimate
from harness.stats.intervals import ratio_interval
from tuners.base import Trial
from tuners.results import FinalistSummary, FinalsRun, TrialResult

CONTROL = 0
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Choice:
    """``order``: finalists worth deploying, best first, before their full quality is known."""

    order: tuple[int, ...]
    summaries: tuple[FinalistSummary, ...]


def finalists(trials: Sequence[Trial], most: int) -> list[Trial]:
    """The best feasible trials, the control left out; ties by number, the earlier first."""
    worthy = [t for t in trials if t.number != CONTROL and t.feasible and t.score and math.isfinite(t.score)]
    return sorted(worthy, key=lambda t: (-(t.score or 0.0), t.number))[:most]


def choose(trials: Sequence[Trial], runs: Sequence[FinalsRun], tie: float) -> Choice:
    """Summaries of control and finalists, and which finalists beat the control, best first.

    A finalist qualifies when the lower bound of its gain is above 1; when the control itself met no target
    at all, when every block of the finalist did. Those within ``tie`` of the best are ordered by how few
    knobs they change.
    """
    if not runs:
        return Choice((), ())
    by_number = {t.number: t for t in trials}
    control = by_number[CONTROL]
    numbers = sorted({r.trial for r in runs})
    scores = {n: tuple(r.score for r in sorted(runs, key=lambda r: r.block) if r.trial == n) for n in numbers}
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(numbers) - 1)
    base = scores[CONTROL]
    summaries, qualified = [], []
    for n in numbers:
        gain = _gain(scores[n], base, confidence) if n != CONTROL else None
        changed = _changed(by_number[n].knobs, control.knobs)
        summaries.append(
            FinalistSummary(
                trial=n,
                knobs=by_number[n].knobs,
                scores=scores[n],
                gain=gain,
                changed_knobs=changed,
                quality_passed=None,
            )
        )
        if n == CONTROL or min(scores[n]) <= 0:
            continue
        beats = gain.low is not None and gain.low > 1 if gain else max(base) <= 0
        if beats:
            qualified.append((n, fmean(scores[n]), changed))
    best = max((score for _, score, _ in qualified), default=0.0)
    tied = sorted((q for q in qualified if q[1] >= best * (1 - tie)), key=lambda q: (q[2], -q[1]))
    rest = sorted((q for q in qualified if q[1] < best * (1 - tie)), key=lambda q: -q[1])
    return Choice(tuple(n for n, _, _ in [*tied, *rest]), tuple(summaries))


def _gain(scores: Sequence[float], base: Sequence[float], confidence: float) -> Estimate | None:
    """Mean ratio to the control of the same block; None where either scored nothing."""
    pairs = list(zip(scores, base, strict=True))
    if any(a <= 0 or b <= 0 for a, b in pairs):
        return None
    return ratio_interval(pairs, confidence=confidence)


def _changed(knobs: dict[str, Any], default: dict[str, Any]) -> int:
    return sum(knobs.get(name) != default.get(name) for name in knobs.keys() | default.keys())


def nearest_miss(results: Sequence[TrialResult]) -> str | None:
    """Which trial came nearest to being feasible, in one sentence; None when there is nothing to say."""

    def violation(result: TrialResult) -> float:
        return sum(max(0.0, v) for v in result.trial.constraints.values())

    failed = [r for r in results if not r.trial.feasible]
    if not failed:
        return None
    nearest = min(failed, key=lambda r: (r.trial.state == "infeasible", violation(r), r.trial.number))
    broken = {name: v for name, v in nearest.trial.constraints.items() if v > 0}
    by_how_much = ", ".join(f"{name} by {v:.0%}" for name, v in broken.items()) or "nothing measurable"
    target = _worst_target(nearest) if "slo" in broken else None
    why = "; ".join(part for part in (target, nearest.trial.why) if part)
    return f"trial {nearest.trial.number:03d} came nearest: it missed {by_how_much} ({why})"


def _worst_target(result: TrialResult) -> str | None:
    """The promise that the slowest hold broke by most, in milliseconds; None where no hold says."""
    holds = [run.measurement for run in result.runs if run.measurement.kind == "hold"]
    if not holds:
        return None
    slowest = min(holds, key=lambda m: math.inf if m.rate_rps is None else m.rate_rps)
    found = []
    for count in slowest.slo:
        told = slowest.metrics.get(f"{count.metric}_p{count.percentile:g}_ms")
        value_ms = math.inf if told is None or told.value is None else told.value
        shown = "never came" if math.isinf(value_ms) else f"{value_ms:.4g} ms"
        promise = f"{count.metric} P{count.percentile:g} {shown}, target {count.target_ms:.4g} ms"
        found.append((value_ms / count.target_ms, promise))
    return max(found, default=(0.0, None))[1]
