"""Every configuration once, in the order in which the knobs list their values.

Knows nothing of scores or seeds.
"""

from scenarios.space import SearchSpace, ServingConfig
from tuners.base import Possible, Trial, everything


class GridTuner:
    def __init__(self, space: SearchSpace, seed: int) -> None:  # noqa: ARG002 - the contract's shape
        self.space = space

    def ask(self, history: list[Trial], possible: Possible = everything) -> ServingConfig | None:
        tried = {trial.config_digest for trial in history}
        return next((c for c in self.space.enumerate() if c.digest not in tried and possible(c)), None)
