"""Is a configuration as accurate as the reference, up to a margin? Answered from the same items, in pairs.

Knows nothing of endpoints. Only the items on which the two differ carry evidence: ``lost``, right by the
reference alone, and ``won``, right by the candidate alone.
"""

import math
from typing import Literal

from scipy import optimize, stats

from harness.measurement import QualityComparison, TaskScore

_CONTINUITY = 0.5


def compare(
    candidate: TaskScore,
    reference: TaskScore,
    *,
    margin: float,
    alpha: float,
    level: Literal["screen", "full"] = "full",
) -> QualityComparison:
    """The candidate's items against the same items of the reference.

    ``full`` passes when the lower bound of the accuracy difference is at or above −margin: the candidate is
    shown to be no worse, with error probability <= alpha. ``screen`` fails only when the upper bound is
    below −margin: it is shown to be worse. Raises ValueError where the reference lacks an item.
    """
    if candidate.task_digest != reference.task_digest:
        raise ValueError(f"{candidate.task}: the reference was asked other questions; ask it again")
    reference_correct = dict(zip(reference.item_ids, reference.correct, strict=True))
    missing = set(candidate.item_ids) - set(reference_correct)
    if missing:
        raise ValueError(f"{candidate.task}: the reference has no answer to {', '.join(sorted(missing))}")
    pairs = [
        (reference_correct[item_id], right)
        for item_id, right in zip(candidate.item_ids, candidate.correct, strict=True)
    ]
    n = len(pairs)
    lost = sum(was and not now for was, now in pairs)
    won = sum(now and not was for was, now in pairs)
    low = difference_low(lost, won, n, alpha)
    high = -difference_low(won, lost, n, alpha)
    return QualityComparison(
        task=candidate.task,
        n=n,
        accuracy=sum(now for _, now in pairs) / n,
        reference_accuracy=sum(was for was, _ in pairs) / n,
        difference=(won - lost) / n,
        difference_low=low,
        difference_high=high,
        lost=lost,
        won=won,
        margin=margin,
        passed=(low if level == "full" else high) >= -margin,
        mcnemar_p=mcnemar_p(lost, won),
    )


def difference_low(lost: int, won: int, n: int, alpha: float) -> float:
    """Lower confidence bound of (candidate − reference) accuracy at level 1 − alpha, one-sided.

    The score bound of Tango (1998), Statistics in Medicine 17:891-908: the smallest difference d with

        (won − lost − n d − ½) / sqrt(n (2 q + d (1 − d))) <= z_(1 − alpha),

    q the probability of a loss that is most likely given d: the larger root of 2n q² + B q − lost d (1 − d) = 0
    with B = (2n − won + lost) d − won − lost. The ½ is a continuity correction, not in the paper: without it the
    error probability of the test exceeds alpha a little when few items differ (0.060 for n = 300, margin 0.02),
    with it never on the grid that the tests enumerate. Upper bound: −difference_low with lost and won exchanged.

    0 <= lost, won; lost + won <= n; n >= 1. Returns a number in [-1, 1].
    """
    z = float(stats.norm.ppf(1 - alpha))

    def excess(d: float) -> float:
        b = (2 * n - won + lost) * d - won - lost
        q = (math.sqrt(max(b * b + 8 * n * lost * d * (1 - d), 0.0)) - b) / (4 * n)
        return won - lost - n * d - _CONTINUITY - z * math.sqrt(max(n * (2 * q + d * (1 - d)), 0.0))

    if excess(-1.0) <= 0:
        return -1.0
    return float(optimize.brentq(excess, -1.0, (won - lost) / n))


def mcnemar_p(lost: int, won: int) -> float:
    """Exact two-sided p-value that losses and wins are equally likely (McNemar 1947, binomial form)."""
    return float(stats.binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0
