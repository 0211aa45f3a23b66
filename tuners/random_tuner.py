"""Uniform random search without repeats: the arm every claim is made against.

Knows nothing of scores: it never looks at them.
"""

import itertools
import random

from scenarios.space import SearchSpace, ServingConfig, Value
from tuners.base import Possible, Trial, everything

DRAWS = 256  # before a nearly exhausted space is listed instead …
MOST_LISTED = 20_000  # … as far as that takes seconds


class RandomTuner:
    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.seed = seed

    def ask(self, history: list[Trial], possible: Possible = everything) -> ServingConfig | None:
        tried = {trial.config_digest for trial in history}
        return untried(self.space, tried, f"{self.seed}/{len(history)}", possible)


def untried(space: SearchSpace, tried: set[str], seed: int | str, possible: Possible) -> ServingConfig | None:
    """A possible configuration not in ``tried`` (digests), drawn uniformly knob by knob; None: there is none."""
    rng = random.Random(seed)
    for _ in range(DRAWS):
        config = _draw(space, rng)
        if config.digest not in tried and possible(config):
            return config
    left = [config for config in itertools.islice(space.enumerate(), MOST_LISTED) if config.digest not in tried]
    rng.shuffle(left)
    return next((config for config in left if possible(config)), None)


def _draw(space: SearchSpace, rng: random.Random) -> ServingConfig:
    values: dict[str, Value] = {}
    for knob in space.knobs:
        if knob.active(values):
            values[knob.name] = rng.choice(knob.choices)
    return ServingConfig(space.engine, values)
