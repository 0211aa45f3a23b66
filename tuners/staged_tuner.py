"""The expert's order: precision, then memory and batching, then speculation, then all knobs around the best two.

A stage varies its own knobs and keeps the best configuration's others. Which stage it is follows from the history
alone. Knows nothing of how a stage's candidates are weighed: gp_tuner.py.
"""

from collections.abc import Sequence

import numpy as np

from scenarios.space import SearchSpace, ServingConfig
from tuners.base import Possible, Trial, everything
from tuners.gp_tuner import Among, GpTuner

STAGES: tuple[tuple[frozenset[str], int], ...] = (  # effects of the knobs that vary, and most trials
    (frozenset({"precision"}), 3),
    (frozenset({"memory", "batching", "compute"}), 6),
    (frozenset({"speculation"}), 3),
)
JOINT_TRIALS, JOINT_CHANGES = 6, 2


class StagedTuner:
    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.gp = GpTuner(space, seed)

    def ask(self, history: list[Trial], possible: Possible = everything) -> ServingConfig | None:
        spent = max(0, len(history) - 1)
        for among, trials in self._stages(history):
            if spent < trials:
                if (config := self.gp.best_of(history, possible, among)) is not None:
                    return config
            else:
                spent -= trials
        return self.gp.ask(history, possible)

    def expects(self, history: Sequence[Trial], config: ServingConfig) -> float | None:
        return self.gp.expects(history, config)

    def _stages(self, history: list[Trial]) -> list[tuple[Among, int]]:
        """``best``: a default that the scenario took out of the space is nobody's to keep."""
        worthy = sorted((t for t in history if t.feasible and t.score), key=lambda t: -(t.score or 0.0))
        best = self.gp.lattice.codes([t.knobs for t in worthy[:2]] or [dict(self.space.default().knobs)])
        inside = best <= np.array([len(knob.choices) for knob in self.space.knobs])
        stages: list[tuple[Among, int]] = []
        for effects, most in STAGES:
            kept = [k for k, knob in enumerate(self.space.knobs) if knob.effect not in effects and inside[0, k]]
            if any(knob.effect in effects for knob in self.space.free):
                stages.append((lambda rows, kept=kept: (rows[:, kept] == best[0, kept]).all(axis=1), most))  # type: ignore[misc]
        stages.append(
            (
                lambda rows: (
                    np.min(
                        [(rows != row)[:, within].sum(axis=1) for row, within in zip(best, inside, strict=True)], axis=0
                    )
                    <= JOINT_CHANGES
                ),
                JOINT_TRIALS,
            )
        )
        return stages
