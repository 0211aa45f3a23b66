"""Uniform random search without repeats: the arm every claim is made against.

Knows nothing of scores: it never looks at them.
"""

import random

from scenarios.space import SearchSpace, ServingConfig, Value
from tuners.base import Trial

DRAWS = 256  # before a nearly exhausted space is listed instead


class RandomTuner:
    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.seed = seed

    def ask(self, history: list[Trial]) -> ServingConfig | None:
        return untried(self.space, {trial.config_digest for trial in history}, f"{self.seed}/{len(history)}")


def untried(space: SearchSpace, tried: set[str], seed: int | str) -> ServingConfig | None:
    """A configuration drawn uniformly knob by knob that is not in ``tried`` (digests); None if there is none."""
    rng = random.Random(seed)
    for _ in range(DRAWS):
        config = _draw(space, rng)
        if config.digest not in tried:
            return config
    left = [config for config in space.enumerate() if config.digest not in tried]
    return rng.choice(left) if left else None


def _draw(space: SearchSpace, rng: random.Random) -> ServingConfig:
    values: dict[str, Value] = {}
    for knob in space.knobs:
        if knob.active(values):
            values[knob.name] = rng.choice(knob.choices)
    return ServingConfig(space.engine, values)
