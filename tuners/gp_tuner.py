"""Expected improvement per expected second, of Gaussian processes over score, constraints and cost.

Knows nothing of engines or load. Models are rebuilt from the history at every ask: no state to lose.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr

from scenarios.space import SearchSpace, ServingConfig
from tuners.base import Possible, Trial, everything
from tuners.gaussian_process import Beliefs, GaussianProcess
from tuners.lattice import Codes, Lattice, ordered
from tuners.random_tuner import untried
from tuners.recall import recalled
from tuners.seeds import derived

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Among = Callable[[Codes], BoolArray]

STARTUP_TRIALS = 4  # drawn at random before anything is modelled; the control is not one of them
COVER_TRIALS = 7  # most that are spent on launching every value of the knobs that have no order
UNUSUAL = 0.6  # of an unseen value's worth: what a memory setting off its default costs there, since it may kill
MOST_TRIALS = 100  # that a model is fitted to
NEAR_BEST = 3  # configurations whose surroundings are looked at in a space too large to list
FLOOR = math.log(10.0)  # a score below a tenth of the best says "bad", not how bad
HELD, BROKEN = -0.5, 0.5  # what a constraint is modelled around; its grade adds or takes half at most
OF_SCORE = Beliefs(length=(1.0, 1.0), signal=(0.9, 0.7), noise=(0.08, 0.5))  # of the logarithm
OF_CONSTRAINT = Beliefs(length=(1.0, 0.6), signal=(0.7, 0.4), noise=(0.15, 0.5))
OF_SECONDS = Beliefs(length=(1.5, 0.6), signal=(0.4, 0.4), noise=(0.15, 0.5))  # of the logarithm
NEW_OR_NOT = np.array([[0.0, 1.0], [1.0, 0.0]])  # squared distances of the column that Cost adds
FEWEST_TIMED = 3  # trials, before their seconds are modelled


class GpTuner:
    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.seed = seed
        self.lattice = Lattice(space)

    def ask(self, history: list[Trial], possible: Possible = everything) -> ServingConfig | None:
        return self.best_of(history, possible) or untried(
            self.space, {t.config_digest for t in history}, derived(self.seed, len(history)), possible
        )

    def best_of(self, history: list[Trial], possible: Possible, among: Among | None = None) -> ServingConfig | None:
        """The most promising configuration of those that ``among`` keeps; None when all of them were tried."""
        rng = np.random.default_rng(derived(self.seed, len(history)))
        known = recalled(history, MOST_TRIALS)
        best = sorted((t for t in known if t.feasible and t.score), key=lambda t: -(t.score or 0.0))
        rows = self.lattice.candidates(rng, self.lattice.codes([t.knobs for t in best[:NEAR_BEST]]))
        if among is not None:
            rows = rows[among(rows)]
        order = rng.permutation(len(rows))
        if among is None and len(history) <= COVER_TRIALS and (unseen := self._unseen(history)):
            order = order[np.argsort(-self._coverage(rows[order], unseen), kind="stable")]
        elif len(history) > STARTUP_TRIALS:
            value = Models(self.lattice, known, history).value(rows[order])
            order = order[np.argsort(-value, kind="stable")]
        tried = {t.config_digest for t in history}
        for index in order:
            config = self.lattice.config(rows[index])
            if config.digest not in tried and possible(config):
                return config
        return None

    def _unseen(self, history: Sequence[Trial]) -> list[tuple[int, int]]:
        """Column and code of every value without order that no launch that ran has had: nothing tells of it."""
        ran = self.lattice.codes([t.knobs for t in history if t.score is not None])
        return [
            (k, code)
            for k, knob in enumerate(self.space.knobs)
            if len(knob.choices) > 1 and not ordered(knob)
            for code in range(len(knob.choices))
            if code not in ran[:, k]
        ]

    def _coverage(self, rows: Codes, unseen: Sequence[tuple[int, int]]) -> FloatArray:
        """How many unseen values each row has, less what it risks."""
        default = self.lattice.codes([dict(self.space.default().knobs)])[0]
        risky = [k for k, knob in enumerate(self.space.knobs) if knob.effect == "memory" and ordered(knob)]
        gained = sum((rows[:, k] == code).astype(float) for k, code in unseen)
        return np.asarray(gained - UNUSUAL * (rows[:, risky] != default[risky]).sum(axis=1))

    def expects(self, history: Sequence[Trial], config: ServingConfig) -> float | None:
        """The score that the model expects of ``config``; None while it knows too little to say."""
        known = [t for t in recalled(history, MOST_TRIALS) if _is_positive(t.score)]
        if len(known) <= STARTUP_TRIALS:
            return None
        score = score_model(self.lattice, known, self.lattice.codes([t.knobs for t in known]))
        mean, _ = score.predict(self.lattice.codes([dict(config.knobs)]))
        return math.exp(float(mean[0]))


class Models:
    """What trials say of every configuration: log score, each constraint that was ever broken, log seconds."""

    def __init__(self, lattice: Lattice, trials: Sequence[Trial], history: Sequence[Trial]) -> None:
        codes = lattice.codes([t.knobs for t in trials])
        scored = np.array([_is_positive(t.score) for t in trials])
        self.score: GaussianProcess | None = None
        if scored.any():
            self.score = score_model(lattice, [t for t in trials if _is_positive(t.score)], codes[scored])
            feasible = np.array([t.feasible for t in trials]) & scored
            self.incumbent = float(np.max(self.score.predict(codes[feasible if feasible.any() else scored])[0]))
        self.constraints = []
        for name in sorted({n for t in trials for n, v in t.constraints.items() if v > 0}):
            grades = np.array([_grade(t.constraints.get(name)) for t in trials])
            said = np.array([name in t.constraints or t.state == "complete" for t in trials])
            self.constraints.append(GaussianProcess(codes[said], lattice.squared, grades[said], OF_CONSTRAINT))
        self.cost = Cost(lattice, trials, codes, history)

    def value(self, rows: Codes) -> FloatArray:
        """Log of expected improvement x probability that every constraint holds / expected seconds."""
        value = np.zeros(len(rows))
        if self.score is not None:
            value = log_improvement(*self.score.predict(rows), self.incumbent)
        for constraint in self.constraints:
            violation, error = constraint.predict(rows)
            value = value + log_ndtr(-violation / error)
        return value - self.cost.log_seconds(rows)


def score_model(lattice: Lattice, trials: Sequence[Trial], codes: Codes) -> GaussianProcess:
    """Of the logarithm; every trial has a positive score."""
    logs = np.log([t.score or 0.0 for t in trials])
    return GaussianProcess(codes, lattice.squared, np.maximum(logs, np.max(logs) - FLOOR), OF_SCORE)


class Cost:
    """Seconds of a trial by its configuration, and by whether the engine must compile for it first.

    An earlier launch with the same values of every knob that recompiles has left its artefacts on the disk.
    """

    def __init__(self, lattice: Lattice, trials: Sequence[Trial], codes: Codes, history: Sequence[Trial]) -> None:
        self._keyed = [k for k, knob in enumerate(lattice.knobs) if knob.recompiles]
        first: dict[tuple[int, ...], int] = {}
        for place, key in enumerate(self._keys(lattice.codes([t.knobs for t in history]))):
            first.setdefault(key, place)
        place_of = {t.number: place for place, t in enumerate(history)}
        self._known = set(first)
        new = np.array([first[key] == place_of[t.number] for key, t in zip(self._keys(codes), trials, strict=True)])
        timed = np.array([t.state == "complete" and t.seconds > 0 for t in trials])
        self._model: GaussianProcess | None = None
        if timed.sum() >= FEWEST_TIMED:
            seconds = np.array([t.seconds for t in trials])[timed]
            marked = np.column_stack([codes, new])[timed]
            self._model = GaussianProcess(marked, [*lattice.squared, NEW_OR_NOT], np.log(seconds), OF_SECONDS)

    def log_seconds(self, rows: Codes) -> FloatArray:
        if self._model is None:
            return np.zeros(len(rows))
        new = np.array([key not in self._known for key in self._keys(rows)])
        return self._model.predict(np.column_stack([rows, new]))[0]

    def _keys(self, codes: Codes) -> list[tuple[int, ...]]:
        return [tuple(row) for row in codes[:, self._keyed].tolist()]


def log_improvement(mean: FloatArray, spread: FloatArray, best: float) -> FloatArray:
    """Logarithm of E max(0, y - best) of normal y; exact far below ``best`` too, where E is 0.0."""
    z = (mean - best) / spread
    density = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        tail = 1 + math.sqrt(math.pi / 2) * z * erfcx(-z / math.sqrt(2))
        far = -2 * np.log(np.abs(z))
        value = np.where(z > -1e3, density + np.log(np.maximum(tail, 1e-300)), density + far)
    return np.asarray(value + np.log(spread))


def _is_positive(score: float | None) -> bool:
    """Whether it can be modelled: a configuration that held no rate at all says so in its constraints."""
    return score is not None and math.isfinite(score) and score > 0


def _grade(violation: float | None) -> float:
    """A violation as a number around 0: broken ones are above, held ones below, by half to 1."""
    if violation is None:
        return HELD - 0.5
    return BROKEN + 0.5 * min(violation, 1.0) if violation > 0 else HELD + 0.5 * max(violation, -1.0)
