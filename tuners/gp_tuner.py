"""Expected improvement per expected second, of Gaussian processes over score, constraints and cost.

Knows nothing of engines or load. Models are rebuilt from the history at every ask: no state to lose.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr

from scenarios.space import SearchSpace, ServingConfig
from tuners.base import Possible, Trial, everything
from tuners.gaussian_process import Beliefs, GaussianProcess
from tuners.lattice import Codes, Lattice
from tuners.random_tuner import untried
from tuners.recall import recalled
from tuners.seeds import derived

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

STARTUP_TRIALS = 4  # spread over the space before anything is modelled; the control is not one of them
SPREAD_POOL = 64  # drawn at random, of which the one farthest from all tried is taken
MOST_TRIALS = 160  # that a model is fitted to
NEAR_BEST = 3  # configurations whose surroundings are looked at in a space too large to list
FLOOR = math.log(10.0)  # a score below a tenth of the best says "bad", not how bad
HELD, BROKEN = -0.5, 0.5  # what a constraint is modelled around; its grade adds or takes half at most
OF_SCORE = Beliefs(length=(1.5, 1.0), signal=(0.5, 0.7), noise=(0.06, 0.5))  # of the logarithm
OF_CONSTRAINT = Beliefs(length=(1.5, 1.0), signal=(0.7, 0.5), noise=(0.15, 0.5))
OF_SECONDS = Beliefs(length=(2.0, 0.7), signal=(0.4, 0.5), noise=(0.15, 0.5))  # of the logarithm
EXPECTED_FAILURES = 0.1  # of configurations nobody has tried, before anything is known


class GpTuner:
    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.seed = seed
        self.lattice = Lattice(space)

    def ask(self, history: list[Trial], possible: Possible = everything) -> ServingConfig | None:
        rng = np.random.default_rng(derived(self.seed, len(history)))
        known = recalled(history, MOST_TRIALS)
        tried = {t.config_digest for t in history}
        codes = self.lattice.codes([t.knobs for t in known])
        best = sorted((t for t in known if t.feasible and t.score), key=lambda t: -(t.score or 0.0))
        near = self.lattice.codes([t.knobs for t in best[:NEAR_BEST]])
        rows = self.lattice.candidates(rng, near)
        if len(history) <= STARTUP_TRIALS or all(t.score is None for t in known):
            order = self._farthest(rng, rows, codes)
        else:
            order = np.argsort(-self._value(known, codes, rows), kind="stable")
        for index in order:
            config = self.lattice.config(rows[index])
            if config.digest not in tried and possible(config):
                return config
        return untried(self.space, tried, derived(self.seed, len(history)), possible)

    def _farthest(self, rng: np.random.Generator, rows: Codes, codes: Codes) -> NDArray[np.int64]:
        pool = rng.permutation(len(rows))
        if len(codes) == 0:
            return pool
        pool = pool[:SPREAD_POOL]
        away = sum(table[rows[pool][:, k]][:, codes[:, k]] for k, table in enumerate(self.lattice.squared))
        return np.asarray(pool[np.argsort(-np.min(away, axis=1), kind="stable")])

    def _value(self, known: Sequence[Trial], codes: Codes, rows: Codes) -> FloatArray:
        """Log of expected improvement x probability that every constraint holds / expected seconds."""
        models = Models(self.lattice, known, codes)
        mean, spread = models.score.predict(rows)
        value = log_improvement(mean, spread, models.incumbent)
        for constraint in models.constraints:
            violation, error = constraint.predict(rows)
            value = value + log_ndtr(-violation / error)
        return value


class Models:
    """What the trials say of every configuration: log score, each constraint that was ever broken, log seconds."""

    def __init__(self, lattice: Lattice, trials: Sequence[Trial], codes: Codes) -> None:
        scored = np.array([t.score is not None and math.isfinite(t.score) for t in trials])
        positive = [t.score for t in trials if t.score is not None and math.isfinite(t.score) and t.score > 0]
        top = math.log(max(positive, default=1.0))
        logs = np.array([_log(t.score, top - FLOOR) for t in trials])
        self.score = GaussianProcess(codes[scored], lattice.squared, logs[scored], OF_SCORE)
        feasible = np.array([t.feasible for t in trials]) & scored
        seen = feasible if feasible.any() else scored
        self.incumbent = float(np.max(self.score.predict(codes[seen])[0])) if seen.any() else top
        self.constraints = []
        for name in sorted({n for t in trials for n, v in t.constraints.items() if v > 0}):
            grades = np.array([_grade(t.constraints.get(name)) for t in trials])
            said = np.array([name in t.constraints or t.state == "complete" for t in trials])
            self.constraints.append(GaussianProcess(codes[said], lattice.squared, grades[said], OF_CONSTRAINT))


def log_improvement(mean: FloatArray, spread: FloatArray, best: float) -> FloatArray:
    """Logarithm of E max(0, y - best) of normal y; exact far below ``best`` too, where E is 0.0."""
    z = (mean - best) / spread
    density = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        tail = 1 + math.sqrt(math.pi / 2) * z * erfcx(-z / math.sqrt(2))
        far = -2 * np.log(np.abs(z))
        value = np.where(z > -1e3, density + np.log(np.maximum(tail, 1e-300)), density + far)
    return np.asarray(value + np.log(spread))


def _log(score: float | None, floor: float) -> float:
    return max(math.log(score), floor) if score is not None and score > 0 else floor


def _grade(violation: float | None) -> float:
    """A violation as a number around 0: broken ones are above, held ones below, by half to 1."""
    if violation is None:
        return HELD - 0.5
    return BROKEN + 0.5 * min(violation, 1.0) if violation > 0 else HELD + 0.5 * max(violation, -1.0)
