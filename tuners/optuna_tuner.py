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
        worst = min((score for t in known if (score := _score(t)) is not None), default=0.0)
        study = optuna.create_study(direction="maximize")
        for trial in known:
            study.add_trial(self._told(trial, worst))
        for attempt in range(ATTEMPTS):
            study.sampler = _sampler(derived(self.seed, len(history), attempt))
            asked = study.ask()
            config = self._suggest(asked)
            study.tell(asked, state=optuna.trial.TrialState.FAIL)  # so that TPE learns from the history alone
            if config.digest in tried:
                continue
            if possible(config):
                return config
            study.add_trial(self._told(infeasible(len(known), config, "impossible", "its plan rules it out"), worst))
        return untried(self.space, tried, derived(self.seed, len(history), ATTEMPTS), possible)

    def _told(self, trial: Trial, worst: float) -> optuna.trial.FrozenTrial:
        params = {}
        distributions: dict[str, BaseDistribution] = {}
        for knob in self.space.free:
            # The control's value may lie outside what the scenario narrowed a knob to.
            if (value := trial.knobs.get(knob.name)) in knob.choices:
                distributions[knob.name] = _distribution(knob)
                params[knob.name] = _encode(knob, value)
        value = worst if (score := _score(trial)) is None else score
        return optuna.trial.create_trial(
            params=params, distributions=distributions, value=value, constraints=trial.constraints
        )

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


def _sampler(seed: int) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`, for conditional knobs
        return optuna.samplers.TPESampler(seed=seed, group=True, n_startup_trials=STARTUP_TRIALS)


def _score(trial: Trial) -> float | None:
    return trial.score if trial.score is not None and math.isfinite(trial.score) else None


def _distribution(knob: Knob) -> BaseDistribution:
    return IntDistribution(0, len(knob.choices) - 1) if ordered(knob) else CategoricalDistribution(knob.choices)


def _encode(knob: Knob, value: Value) -> Value:
    return knob.choices.index(value) if ordered(knob) else value
