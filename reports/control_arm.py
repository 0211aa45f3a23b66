"""The search beside its control arm: best score against wall-clock, and what the search's scores were worth.

Pure. Knows nothing of HTML or plots.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from reports.quantity import number
from reports.records import StudyRecords
from reports.view import score_unit
from tuners.results import TrialResult
from tuners.select import CONTROL

ANECDOTE = "One pair of searches is an anecdote: luck decides much of it."


@dataclass(frozen=True, slots=True)
class Curve:
    """The best feasible score by the seconds spent, launches included. A step at each trial that improved it."""

    name: str
    seconds: tuple[float, ...]
    scores: tuple[float, ...]
    best: TrialResult


def curves(records: StudyRecords) -> tuple[Curve, Curve] | None:
    """Search and control arm over the same seconds, both from the defaults' score on; None without an arm.

    A trial of the arm that ended after the search's seconds were spent does not count.
    """
    default = records.trial(CONTROL)
    if default is None or not records.control:
        return None
    searched = [t for t in records.trials if t.origin in ("", "transfer") and t.trial.number != CONTROL]
    limit_s = sum(t.trial.seconds for t in searched)
    return _curve("search", default, searched, limit_s), _curve("random", default, records.control, limit_s)


def sentence(records: StudyRecords) -> str:
    """Who found more in the same seconds, and whether the difference can be told; empty without an arm."""
    if (both := curves(records)) is None:
        return ""
    (search, arm), unit = both, score_unit(records)
    limit_s = search.seconds[-1]
    found = (
        f"In {limit_s:,.0f} s of trials each, the search found {number(search.scores[-1])} {unit} "
        f"and random search {number(arm.scores[-1])}"
    )
    if not search.scores[-1] > 0 or not arm.scores[-1] > 0:
        ahead = "the search alone found something feasible" if search.scores[-1] > 0 else "random search alone did"
        return f"{found}: {ahead if search.scores[-1] != arm.scores[-1] else 'neither found anything feasible'}."
    ratio = search.scores[-1] / arm.scores[-1]
    if _tied(records, search.best, arm.best, ratio):
        return f"{found}: no difference that can be told from luck. {ANECDOTE}"
    who = f"{ratio - 1:.0%} more for the search" if ratio > 1 else f"{1 / ratio - 1:.0%} more for random search"
    return f"{found}: {who}, by search-grade scores. {ANECDOTE}"


def shrinkage(records: StudyRecords) -> str:
    """What the search's score of each finalist promised, against its mean on held-out traffic; empty before finals."""
    said = []
    for finalist in sorted({f.trial for f in records.finals} - {CONTROL}):
        result = records.trial(finalist)
        measured = fmean(f.score for f in records.finals if f.trial == finalist)
        if result is not None and result.trial.score:
            change = measured / result.trial.score - 1
            said.append(
                f"trial {finalist} scored {number(result.trial.score)} {score_unit(records)} in the search and "
                f"{number(measured)} on held-out traffic ({change:+.0%})".replace("-", "−")
            )
    if not said:
        return ""
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}. Who is chosen for a good score was also lucky: only the latter counts."


def _curve(name: str, default: TrialResult, results: Sequence[TrialResult], limit_s: float) -> Curve:
    best, spent = default, 0.0
    seconds, scores = [0.0], [_score(default)]
    for result in results:
        spent += result.trial.seconds
        if spent > limit_s * (1 + 1e-9):
            break
        if _score(result) > _score(best):
            best = result
            seconds.append(spent)
            scores.append(_score(result))
    return Curve(name, (*seconds, limit_s), (*scores, scores[-1]), best)


def _score(result: TrialResult) -> float:
    score = result.trial.score
    return score if result.trial.feasible and score is not None and math.isfinite(score) else 0.0


def _tied(records: StudyRecords, one: TrialResult, two: TrialResult, ratio: float) -> bool:
    """Whether the intervals of both capacities overlap; where none were told, whether they are within the tie band."""
    bounds = [(r.capacity.rate_low_rps, r.capacity.rate_high_rps) for r in (one, two) if r.capacity]
    if len(bounds) == 2 and all(low is not None and high is not None for low, high in bounds):
        (low_one, high_one), (low_two, high_two) = bounds
        return (low_one or 0.0) <= (high_two or 0.0) and (low_two or 0.0) <= (high_one or 0.0)
    tie = float(records.start.scenario["search"]["tie"])
    return 1 - tie <= ratio <= 1 / (1 - tie)
