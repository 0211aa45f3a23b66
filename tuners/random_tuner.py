"""Uniform random search without repeats: the arm every claim is made against.

Knows nothing of scores: it never looks at them.
"""

import random

from scenarios.space import SearchSpace, ServingConfig, Value
from tuners.base import Possible, Trial, everything

DRAWS = 256  # before a nearly exhausted space is listed instead …
MOST_LISTED = 20_000  # … if it has no more configurations: a larger one is drawn from for as long


class RandomTuner:
    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.seed = seed

    def ask(self, history: list[Trial], possible: Possible = everything) -> ServingConfig | None:
        tried = {trial.config_digest for trial in history}
        return untried(self.space, tried, f"{self.seed}/{len(history)}", possible)


def untried(space: SearchSpace, tried: set[str], seed: int | str, possible: Possible) -> ServingConfig | None:
    """A possible configuration not in ``tried`` (digests), drawn uniformly knob by knob.

    None: there is none; or, in a space too large to list, none among MOST_LISTED draws from all of it.
    """
    rng = random.Random(seed)
    listable = space.size() <= MOST_LISTED
    for _ in range(DRAWS if listable else MOST_LISTED):
        config = _draw(space, rng)
        if config.digest not in tried and possible(config):
            return config
    if not listable:
        return None
    left = [config for config in space.enumerate() if config.digest not in tried]
    rng.shuffle(left)
    return next((config for config in left if possible(config)), None)


def _draw(space: SearchSpace, rng: random.Random) -> ServingConfig:
    values: dict[str, Value] = {}
    for knob in space.knobs:
        if knob.active(values):
            values[knob.name] = rng.choice(knob.choices)
    return ServingConfig(space.engine, values)
