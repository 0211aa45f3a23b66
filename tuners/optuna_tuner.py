"""Optuna's TPE behind ask: multivariate and grouped, constraints graded, conditional knobs conditional.

Knows nothing of engines or load. The Optuna study is rebuilt from the history at every ask, with a seed
that is a function of (seed, length of history): there is no state that a killed study could lose.
"""

import math
import warnings
from typing import cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from scenarios.space import Knob, SearchSpace, ServingConfig, Value
from tuners.base import Possible, Trial, everything, infeasible
from tuners.lattice import ordered
from tuners.random_tuner import untried
from tuners.recall import recalled
from tuners.seeds import derived

STARTUP_TRIALS = 4  # drawn at random before TPE models anything; the control is not one of them
ATTEMPTS = 32  # configurations tried already, or impossible, before the rest is drawn at random
MOST_TRIALS = 300  # that TPE is told

optuna.logging.set_verbosity(optuna.logging.WARNING)


class OptunaTuner:
    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.seed = seed

    def ask(self, history: list[Trial], possible: Possible = everything) -> ServingConfig | None:
        tried = {trial.config_digest for trial in history}
        known = recalled(history, MOST_TRIALS)
        for attempt in range(ATTEMPTS):
            config = self._suggest(self._study(known, derived(self.seed, len(history), attempt)).ask())
            if config.digest in tried:
                continue
            if possible(config):
                return config
            known.append(infeasible(len(known), config, "impossible", "its plan rules it out"))  # for this ask alone
        return untried(self.space, tried, derived(self.seed, len(history), ATTEMPTS), possible)

    def _study(self, history: list[Trial], seed: int) -> optuna.Study:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`, for conditional knobs
            sampler = optuna.samplers.TPESampler(seed=seed, group=True, n_startup_trials=STARTUP_TRIALS)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        measured = [t.score for t in history if t.score is not None and math.isfinite(t.score)]
        worst = min(measured, default=0.0)
        for trial in history:
            params = {}
            distributions: dict[str, BaseDistribution] = {}
            for knob in self.space.free:
                # The control's value may lie outside what the scenario narrowed a knob to.
                if (value := trial.knobs.get(knob.name)) in knob.choices:
                    distributions[knob.name] = _distribution(knob)
                    params[knob.name] = _encode(knob, value)
            scored = trial.score is not None and math.isfinite(trial.score)
            study.add_trial(
                optuna.trial.create_trial(
                    params=params,
                    distributions=distributions,
                    value=trial.score if scored else worst,
                    constraints=trial.constraints,
                )
            )
        return study

    def _suggest(self, trial: optuna.Trial) -> ServingConfig:
        values: dict[str, Value] = {}
        for knob in self.space.knobs:
            if not knob.active(values):
                continue
            if len(knob.choices) == 1:
                values[knob.name] = knob.choices[0]
            elif ordered(knob):
                values[knob.name] = knob.choices[trial.suggest_int(knob.name, 0, len(knob.choices) - 1)]
            else:
                values[knob.name] = cast("Value", trial.suggest_categorical(knob.name, knob.choices))
        return ServingConfig(self.space.engine, values)


def _distribution(knob: Knob) -> BaseDistribution:
    return IntDistribution(0, len(knob.choices) - 1) if ordered(knob) else CategoricalDistribution(knob.choices)


def _encode(knob: Knob, value: Value) -> Value:
    return knob.choices.index(value) if ordered(knob) else value
