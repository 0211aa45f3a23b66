"""Who searches: ours and random in our laboratory, and the peers. Each gives the launches of one search.

Knows nothing of truths.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from harness import plugins
from scenarios.space import SearchSpace, ServingConfig
from search.courses import Launch, Search, launched
from search.laboratory import ALL_ON, Rules, VirtualLaboratory
from search.peers import plain_tpe, vllm_grid
from search.prober import Memory
from search.worlds import World
from tuners.base import Expecting, Trial
from tuners.results import TrialResult
from tuners.study import Asked, Study

ALL_TRIALS = 1000  # the clock ends a search


@dataclass(frozen=True, slots=True)
class Arm:
    """``run``: (world, seed of the traffic, seed of the search, seconds, memory) -> what was launched."""

    name: str
    run: Callable[[World, int, int, float, Memory], Search]
    about: str
    modules: tuple[str, ...] = ()  # what its proposals come from


@dataclass(frozen=True, slots=True)
class StudyArm:
    """The whole of `autotune tune`: the real study with a real tuner, in the virtual laboratory."""

    tuner: str | Callable[[SearchSpace, int], Any]
    rules: Rules = ALL_ON
    finals: bool = False
    trials: int = ALL_TRIALS

    def __call__(self, world: World, traffic: int, seed: int, seconds: float, memory: Memory) -> Search:
        budget = {"trials": self.trials, "wall_clock_s": seconds}
        scenario = world.scenario.model_copy(update={"budget": world.scenario.budget.model_copy(update=budget)})
        world = replace(world, scenario=scenario)
        make = plugins.load("tuners", self.tuner) if isinstance(self.tuner, str) else self.tuner
        tuner = make(world.space, seed)
        with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
            laboratory = VirtualLaboratory(world, traffic, Path(folder), self.rules, memory=memory)
            if isinstance(tuner, Expecting):
                laboratory.expects = tuner.expects
            watch = Watch(laboratory.subject.observer)
            study = Study(laboratory, world.space, tuner, watch, Asked("", ""))
            winner = None
            if self.finals:
                winner = study.run()
            else:
                _searched(study)
        trials = [r.trial for r in watch.results]
        launches = launches_of(trials)
        if isinstance(tuner, Picking):
            launches = tuple(replace(x, pick=tuner.pick(trials[: n + 1])) for n, x in enumerate(launches))
        if winner is None:
            return Search(launches)
        deployed = ServingConfig(world.space.engine, winner.config["knobs"]).short if winner.config else None
        return Search(launches, winner.outcome, deployed)


@runtime_checkable
class Picking(Protocol):
    """A tuner that knows better than the scores which configuration is the best so far."""

    def pick(self, history: Sequence[Trial]) -> str | None:
        """Its digest, as `ServingConfig.short`; None: the best score."""


@dataclass(slots=True)
class Watch:
    """Hears of every trial."""

    other: Any
    results: list[TrialResult] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.other, name)

    def trial(self, result: TrialResult) -> None:
        self.results.append(result)


class _Searched(Exception):
    pass


def _searched(study: Study) -> None:
    """The search without its finals, which no regret is read from."""

    def stop(*_: object) -> Any:
        raise _Searched

    study.laboratory.final = stop  # type: ignore[assignment,method-assign]
    try:
        study.run()
    except _Searched:
        return


def launches_of(trials: Sequence[Trial]) -> tuple[Launch, ...]:
    """On the clock that begins after the first, the defaults."""
    clock_s = -trials[0].seconds
    found = []
    for trial in trials:
        found.append(launched(trial, clock_s))
        clock_s += trial.seconds
    return tuple(found)


def _fast_folder() -> str | None:
    """In memory, where there is such a place: nothing in it is kept."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


_PEERS = ("search.peers",)
_RANDOM = ("tuners.random_tuner",)
_TPE = ("tuners.optuna_tuner",)
GP_MODULES = ("tuners.gp_tuner", "tuners.gaussian_process", "tuners.lattice", "tuners.recall")
_STAGED = (*GP_MODULES, "tuners.staged_tuner")

_ARMS = (
    Arm("vllm grid", vllm_grid, "vLLM's auto_tune.sh: two knobs, rates lowered until the targets hold", _PEERS),
    Arm("plain tpe", plain_tpe, "Optuna's TPE, failures told as FAIL, no planner, no racing, bisection", _PEERS),
    Arm("random", StudyArm("random"), "uniform random in our laboratory: same planner, estimate, racing", _RANDOM),
    Arm("tpe", StudyArm("tpe"), "our laboratory with multivariate TPE, constraints graded", _TPE),
    Arm("gp", StudyArm("gp"), "our laboratory with Gaussian processes over score, constraints and seconds", GP_MODULES),
    Arm("staged", StudyArm("staged"), "the same in stages", _STAGED),
)
ARMS = {arm.name: arm for arm in _ARMS}
OURS = "gp"  # what `search.tuner` is where a scenario does not say
