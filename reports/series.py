"""The numbers behind the plots: distributions with bands, knob effects, Pareto fronts.

Pure, arrays in and out. Knows nothing of records, colours or plots.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.records import Floats

EFFECT_TRIALS = 8  # below this, shares of variance say more about luck than about knobs
CURVE_POINTS = 400


@dataclass(frozen=True, slots=True)
class Distribution:
    """Share of requests answered within ``at_ms``, with a band. Failed requests never are: it may end below 1."""

    at_ms: Floats
    share: Floats
    low: Floats
    high: Floats
    n: int
    failed: int


def distribution(latency_ms: Floats, n_effective: float, confidence: float = 0.95) -> Distribution:
    """Empirical distribution with a simultaneous band (Dvoretzky, Kiefer & Wolfowitz 1956; Massart 1990).

    Half width sqrt(ln(2 / (1 - confidence)) / (2 n_effective)): it holds for the whole curve at once.
    latency_ms: 1-d, nan without meaning and left out, inf for failed. n_effective > 0: after deflation.
    """
    ordered = np.sort(latency_ms[~np.isnan(latency_ms)])
    n = len(ordered)
    answered = ordered[np.isfinite(ordered)]
    kept = np.unique(np.linspace(0, max(len(answered) - 1, 0), CURVE_POINTS).astype(int))[: len(answered)]
    share = (kept + 1) / max(n, 1)
    half = math.sqrt(math.log(2 / (1 - confidence)) / (2 * n_effective))
    return Distribution(
        at_ms=answered[kept],
        share=share,
        low=np.clip(share - half, 0, 1),
        high=np.clip(share + half, 0, 1),
        n=n,
        failed=n - len(answered),
    )


@dataclass(frozen=True, slots=True)
class KnobEffect:
    """How far a knob's value alone tells scores apart.

    ``share``: between-value sum of squares / total (eta squared, Fisher 1925). ``by_chance``: what a knob
    without any effect is expected to show, (values - 1) / (trials - 1).
    """

    knob: str
    values: tuple[Any, ...]
    means: tuple[float, ...]
    points: tuple[tuple[int, float], ...]  # index into values, score
    share: float
    by_chance: float


def knob_effects(
    tried: Sequence[tuple[Mapping[str, Any], float]], choices: Mapping[str, Sequence[Any]]
) -> list[KnobEffect]:
    """One entry for each knob that took two values or more, largest share first; empty with too few trials.

    tried: (knobs, score) of the trials that have a score. Main effects only: knobs that matter together
    but not alone stay hidden, and in few trials knobs may have changed together by chance.
    """
    if len(tried) < EFFECT_TRIALS:
        return []
    scores = np.array([score for _, score in tried])
    total = float(((scores - scores.mean()) ** 2).sum())
    if total == 0:
        return []
    effects = []
    for knob, allowed in choices.items():
        taken = [knobs.get(knob) for knobs, _ in tried]
        values = [v for v in [*allowed, None] if v in taken]
        if len(values) < 2:
            continue
        place = [values.index(v) for v in taken]
        groups = [scores[[p == i for p in place]] for i in range(len(values))]
        between = sum(len(g) * (float(g.mean()) - float(scores.mean())) ** 2 for g in groups)
        effects.append(
            KnobEffect(
                knob=knob,
                values=tuple(values),
                means=tuple(float(g.mean()) for g in groups),
                points=tuple(zip(place, scores.tolist(), strict=True)),
                share=between / total,
                by_chance=(len(values) - 1) / (len(tried) - 1),
            )
        )
    return sorted(effects, key=lambda effect: -effect.share)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both coordinates (both to be maximised), by first coordinate."""
    front: list[int] = []
    best = -math.inf
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1])):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front[::-1]


def rolling_quantiles(
    at: Floats, values: Floats, shares: Sequence[float], bins: int = 24
) -> tuple[Floats, list[Floats]]:
    """Centres of equally filled bins and the ``inverted_cdf`` quantiles in each; inf where that many failed."""
    keep = ~np.isnan(values)
    groups = [g for g in np.array_split(np.flatnonzero(keep), min(bins, max(1, int(keep.sum()) // 8))) if len(g)]
    centres = np.array([float(at[g].mean()) for g in groups])
    return centres, [np.array([np.quantile(values[g], s, method="inverted_cdf") for g in groups]) for s in shares]
