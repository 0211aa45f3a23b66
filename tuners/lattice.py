"""A search space as integers: one row per configuration, one column per knob, and how far values lie apart.

Knows nothing of scores, of engines or of what a value does.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.space import Knob, SearchSpace, ServingConfig, Value

Codes = NDArray[np.int64]
FloatArray = NDArray[np.float64]

LISTED = 10_000  # a space with no more combinations is listed whole; of a larger one, a sample is looked at
SAMPLED = 4_000


class Lattice:
    """Codes of knob k: 0 … n-1 its choices in order, n not active, n + 1 a default outside the choices.

    ``squared``: per knob, shape (n + 2, n + 2), the squared distance of two codes. Numbers lie at their place among
    the choices, 0 … 1; other values lie 1 apart. A knob that is not active lies half a knob off the middle: all of
    these are squared Euclidean distances, as a kernel needs them.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.knobs = space.knobs
        self.squared = tuple(_squared_distances(knob) for knob in self.knobs)
        self._column = {knob.name: k for k, knob in enumerate(self.knobs)}
        self._size = math.prod(len(k.choices) for k in self.knobs)
        self._listed: Codes | None = None

    def codes(self, knobs: Sequence[dict[str, Any]]) -> Codes:
        """Shape (len(knobs), number of knobs)."""
        rows = [[_code(knob, values) for knob in self.knobs] for values in knobs]
        return np.array(rows, dtype=np.int64).reshape(len(knobs), len(self.knobs))

    def config(self, row: Codes) -> ServingConfig:
        values: dict[str, Value] = {
            knob.name: knob.choices[code]
            for knob, code in zip(self.knobs, row.tolist(), strict=True)
            if code < len(knob.choices)
        }
        return ServingConfig(self.space.engine, values)

    def candidates(self, rng: np.random.Generator, near: Codes) -> Codes:
        """Every configuration of a small space; of a large one a uniform sample and all that surround ``near``."""
        if self._size <= LISTED:
            if self._listed is None:
                shape = [len(k.choices) for k in self.knobs]
                grid = np.indices(shape).reshape(len(shape), -1).T
                self._listed = np.unique(self.settled(grid), axis=0)
            return self._listed
        drawn = np.stack([rng.integers(len(k.choices), size=SAMPLED) for k in self.knobs], axis=1)
        return np.unique(self.settled(np.concatenate([drawn, *(self.around(row) for row in near)])), axis=0)

    def around(self, row: Codes) -> Codes:
        """The configurations that differ from ``row`` in one knob, or in two."""
        moved = [row]
        for k, knob in enumerate(self.knobs):
            base = np.stack(moved)
            others = [c for c in range(len(knob.choices)) if c != row[k]]
            once = base[(base != row).sum(axis=1) < 2]
            for code in others:
                changed = once.copy()
                changed[:, k] = code
                moved.extend(changed)
        stacked = np.stack(moved)
        for k, knob in enumerate(self.knobs):  # values that no configuration has: not active, or outside the choices
            outside = stacked[:, k] >= len(knob.choices)
            stacked[outside, k] = knob.choices.index(knob.default) if knob.default in knob.choices else 0
        return self.settled(stacked)

    def settled(self, rows: Codes) -> Codes:
        """A copy of ``rows`` with the knobs whose condition does not hold set to not active."""
        rows = rows.astype(np.int64, copy=True)
        for k, knob in enumerate(self.knobs):
            if knob.when is not None:
                parent = self._column[knob.when[0]]
                meaningful = [c for c, v in enumerate(self.knobs[parent].choices) if v in knob.when[1]]
                rows[~np.isin(rows[:, parent], meaningful), k] = len(knob.choices)
        return rows


def ordered(knob: Knob) -> bool:
    """Whether the values are numbers, whose order tells which are near."""
    return all(isinstance(c, int | float) and not isinstance(c, bool) for c in knob.choices)


def _code(knob: Knob, values: dict[str, Any]) -> int:
    if knob.name not in values:
        return len(knob.choices)
    value = values[knob.name]
    return knob.choices.index(value) if value in knob.choices else len(knob.choices) + 1


def _squared_distances(knob: Knob) -> FloatArray:
    n = len(knob.choices)
    if ordered(knob):
        places = [i / max(1, n - 1) for i in range(n)]
        at = np.array([*places, 0.5, _place_outside(knob)])
        squared = (at[:, None] - at[None, :]) ** 2
    else:
        squared = 1.0 - np.eye(n + 2)
        squared[n, :] = squared[:, n] = 0.5
        squared[n, n] = 0.0
    off = np.zeros(n + 2)
    off[n] = 0.5
    return np.asarray(squared + (off[:, None] - off[None, :]) ** 2)


def _place_outside(knob: Knob) -> float:
    """Where a default lies that the scenario left out: between its neighbours among the numbers."""
    if not isinstance(knob.default, int | float):
        return 0.5
    by_value = sorted((float(c), i / max(1, len(knob.choices) - 1)) for i, c in enumerate(knob.choices))  # ordered()
    return float(np.interp(float(knob.default), [v for v, _ in by_value], [place for _, place in by_value]))
