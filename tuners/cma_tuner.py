"""CMA-ES with margin over the lattice: every knob a coordinate, in steps (Hamano et al. 2022, package cmaes).

Knows nothing of engines or load. A generation is as many trials as the strategy asks for, in the order of the
history; all of them are told anew at every ask.
"""

from typing import Any

import numpy as np
from cmaes import CMAwM
from numpy.typing import NDArray

from scenarios.space import SearchSpace, ServingConfig
from tuners.base import Possible, Trial, everything
from tuners.lattice import Lattice
from tuners.random_tuner import untried
from tuners.seeds import derived

FloatArray = NDArray[np.float64]

SIGMA = 0.3  # of the range of a knob
SAMPLES = 6  # by which it is seen whether a strategy is still …
LEAST_SPREAD, MOST_SPREAD = 0.01, 1.5  # … of use; else it begins anew at the best trial
ATTEMPTS = 64  # samples that were tried already, or are impossible, before the rest is drawn at random
MOST_GENERATIONS = 60  # that are told; older ones are history
BROKEN = 1e12  # ranks a trial that broke a constraint behind all that broke none


class CmaTuner:
    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.seed = seed
        self.lattice = Lattice(space)
        self.moving = [k for k, knob in enumerate(space.knobs) if len(knob.choices) > 1]

    def ask(self, history: list[Trial], possible: Possible = everything) -> ServingConfig | None:
        tried = {t.config_digest for t in history}
        if self.moving:
            strategy = self._told(history)
            strategy.reseed_rng(derived(self.seed, len(history)))
            for _ in range(ATTEMPTS):
                config = self._config(strategy.ask()[0])
                if config.digest not in tried and possible(config):
                    return config
        return untried(self.space, tried, derived(self.seed, len(history)), possible)

    def _told(self, history: list[Trial]) -> CMAwM:
        strategy = self._begun(self._place([dict(self.space.default().knobs)])[0])
        size = strategy.population_size
        whole = len(history) // size * size
        recent = history[max(0, whole - MOST_GENERATIONS * size) : whole]
        places, losses = self._place([t.knobs for t in recent]), [_loss(t) for t in recent]
        for first in range(0, len(recent), size):
            generation = slice(first, first + size)
            strategy.tell(list(zip(places[generation], losses[generation], strict=True)))
            if not self._sound(strategy):
                strategy = self._begun(places[int(np.argmin(losses[: first + size]))])
        return strategy

    def _begun(self, place: FloatArray) -> CMAwM:
        steps = np.array([1 / (len(self.space.knobs[k].choices) - 1) for k in self.moving])
        bounds = np.tile([0.0, 1.0], (len(self.moving), 1))
        return CMAwM(place, SIGMA, bounds, steps, seed=self.seed)

    def _sound(self, strategy: CMAwM) -> bool:
        """Whether its samples still differ, and lie in the space: trials that it did not draw may ruin it."""
        strategy.reseed_rng(self.seed)
        drawn = np.array([strategy.ask()[1] for _ in range(SAMPLES)])
        return bool(LEAST_SPREAD < np.std(drawn, axis=0).max() < MOST_SPREAD)

    def _place(self, knobs: list[dict[str, Any]]) -> FloatArray:
        """Coordinates in 0 … 1; a knob that is not active, or outside its choices, lies in the middle."""
        codes = self.lattice.codes(knobs)[:, self.moving]
        last = np.array([len(self.space.knobs[k].choices) - 1 for k in self.moving])
        return np.asarray(np.where(codes > last, 0.5, codes / last))

    def _config(self, place: FloatArray) -> ServingConfig:
        row = np.zeros((1, len(self.space.knobs)), dtype=np.int64)
        for k, coordinate in zip(self.moving, place, strict=True):
            row[0, k] = round(coordinate * (len(self.space.knobs[k].choices) - 1))
        return self.lattice.config(self.lattice.settled(row)[0])


def _loss(trial: Trial) -> float:
    if not trial.feasible or trial.score is None or not np.isfinite(trial.score):
        return BROKEN * (1 + sum(max(0.0, v) for v in trial.constraints.values()))
    return -trial.score
