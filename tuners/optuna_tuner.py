"""Optuna's TPE behind ask: multivariate and grouped, constraints graded, conditional knobs conditional.

Knows nothing of engines or load. The Optuna study is rebuilt from the history at every ask, with a seed
that is a function of (seed, length of history): there is no state that a killed study could lose.
"""

import hashlib
import warnings
from typing import cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from scenarios.space import Knob, SearchSpace, ServingConfig, Value
from tuners.base import Trial
from tuners.random_tuner import untried

STARTUP_TRIALS = 4  # drawn at random before TPE models anything; the control is not one of them
ATTEMPTS = 32  # repeats of a configuration that was tried already, before the rest is drawn at random

optuna.logging.set_verbosity(optuna.logging.WARNING)


class OptunaTuner:
    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self.seed = seed

    def ask(self, history: list[Trial]) -> ServingConfig | None:
        tried = {trial.config_digest for trial in history}
        for attempt in range(ATTEMPTS):
            study = self._study(history, attempt)
            config = self._suggest(study.ask())
            if config.digest not in tried:
                return config
        return untried(self.space, tried, self._derived_seed(len(history), ATTEMPTS))

    def _study(self, history: list[Trial], attempt: int) -> optuna.Study:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`, for conditional knobs
            sampler = optuna.samplers.TPESampler(
                seed=self._derived_seed(len(history), attempt), group=True, n_startup_trials=STARTUP_TRIALS
            )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        measured = [trial.score for trial in history if trial.score is not None]
        worst = min(measured, default=0.0)
        for trial in history:
            params = {}
            distributions: dict[str, BaseDistribution] = {}
            for knob in self.space.free:
                # The control's value may lie outside what the scenario narrowed a knob to.
                if (value := trial.knobs.get(knob.name)) in knob.choices:
                    distributions[knob.name] = _distribution(knob)
                    params[knob.name] = _encode(knob, value)
            study.add_trial(
                optuna.trial.create_trial(
                    params=params,
                    distributions=distributions,
                    value=trial.score if trial.score is not None else worst,
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
            elif _ordered(knob):
                values[knob.name] = knob.choices[trial.suggest_int(knob.name, 0, len(knob.choices) - 1)]
            else:
                values[knob.name] = cast("Value", trial.suggest_categorical(knob.name, knob.choices))
        return ServingConfig(self.space.engine, values)

    def _derived_seed(self, asked: int, attempt: int) -> int:
        text = f"{self.seed}/{asked}/{attempt}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def _ordered(knob: Knob) -> bool:
    """Whether the values are numbers, whose order tells TPE which are near: their index is sampled."""
    return all(isinstance(c, int | float) and not isinstance(c, bool) for c in knob.choices)


def _distribution(knob: Knob) -> BaseDistribution:
    return IntDistribution(0, len(knob.choices) - 1) if _ordered(knob) else CategoricalDistribution(knob.choices)


def _encode(knob: Knob, value: Value) -> Value:
    return knob.choices.index(value) if _ordered(knob) else value
