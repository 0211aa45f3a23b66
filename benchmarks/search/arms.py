"""Who searches: ours, random in our laboratory, and what peers do. Each gives the launches of one search.

Knows nothing of truths. Peers are written from what they do, not run: vLLM's `auto_tune.sh` (commit 01277f9), and
Optuna's TPE as the usual wrapper around a benchmark tool has it.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import optuna

from harness import plugins
from scenarios.space import SearchSpace, ServingConfig, Value
from search.courses import Launch, Search, launched
from search.laboratory import ALL_ON, Rules, VirtualLaboratory
from search.prober import Memory, VirtualProber
from search.worlds import World
from tuners.base import Expecting, Trial
from tuners.results import TrialResult
from tuners.study import Asked, Study

GRID_LOAD_REQUESTS, GRID_REQUESTS = 1000, 100  # of auto_tune.sh: at an infinite rate, and at each lower one
GRID_SHARES = 0.98, 0.90, 0.01  # of memory: first tried, last, step
GRID_PAUSE_S = 15.0  # 5 s before a run at a lower rate, 10 s after the server is killed: as the script sleeps
BISECTION_WIDTH, BISECTION_MOST = 1.05, 12
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
            winner = study.run() if self.finals else _searched(study)
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

    study.laboratory.final = stop  # type: ignore[method-assign]
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


def plain_tpe(world: World, traffic: int, seed: int, seconds: float, memory: Memory) -> Search:
    """Optuna's TPE with its own defaults: failures told as FAIL, no planner, no racing, bisection of whole holds."""
    laboratory = _laboratory(world, traffic, memory)
    bench = Bench(laboratory)
    first = bench.launch(world.space.default())
    launches = [first]
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    start_s = bench.clock_s
    while bench.clock_s - start_s < seconds:
        trial = study.ask()
        launches.append(bench.launch(suggested(world.space, trial), launches[0].score))
        if launches[-1].score is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, launches[-1].score)
    return Search(_from(launches, start_s))


def vllm_grid(world: World, traffic: int, seed: int, seconds: float, memory: Memory) -> Search:
    """max_num_seqs x max_num_batched_tokens, each from an infinite rate downwards, one request a second at a time."""
    del seed  # nothing is drawn
    laboratory = _laboratory(world, traffic, memory)
    bench = Bench(laboratory)
    space = world.space
    bench.launch(space.default())
    start_s = bench.clock_s
    launches = [Launch(space.default().short, start_s, None, wasted=False)]  # the script knows no default to beat
    seqs, tokens = (sorted(space[name].choices) for name in ("max_num_seqs", "max_num_batched_tokens"))
    most = space.default().with_knobs(max_num_seqs=seqs[-1], max_num_batched_tokens=tokens[-1])
    share = GRID_SHARES[0]
    while share >= GRID_SHARES[1] - 1e-9:  # the largest share of the memory that starts
        config = most.with_knobs(gpu_memory_utilization=round(share, 2))
        if bench.starts(config):
            break
        launches.append(Launch(config.short, bench.clock_s, None, wasted=True))
        share -= GRID_SHARES[2]
    for n in seqs:
        for m in tokens:
            if bench.clock_s - start_s >= seconds:
                return Search(_from(launches, start_s))
            config = most.with_knobs(max_num_seqs=n, max_num_batched_tokens=m, gpu_memory_utilization=round(share, 2))
            launches.append(bench.from_above(config))
    return Search(_from(launches, start_s))


class Bench:
    """As peers measure: one launch, then runs of a fixed length at one rate after another."""

    def __init__(self, laboratory: VirtualLaboratory) -> None:
        self._laboratory = laboratory
        self.clock_s = 0.0

    def starts(self, config: ServingConfig) -> bool:
        seconds, died = self._laboratory.launch(config)
        self.clock_s += seconds
        return died is None

    def launch(self, config: ServingConfig, guess_rps: float | None = None) -> Launch:
        """The highest rate that held, by doubling or halving and geometric bisection."""
        if not self.starts(config):
            return Launch(config.short, self.clock_s, None, wasted=True)
        prober = self._prober(config)
        self.clock_s += self._laboratory.world.scenario.budget.warmup_s
        rate = guess_rps or 1 / prober.alone_s()["e2e"]
        low, high = 0.0, math.inf
        for attempt in range(BISECTION_MOST):
            if prober.hold(rate, attempt).passed:
                low = rate
            else:
                high = rate
            if high <= BISECTION_WIDTH * low:
                break
            rate = 2 * low if math.isinf(high) else high / 2 if low == 0 else math.sqrt(low * high)
        self.clock_s += prober.elapsed_s
        return Launch(config.short, self.clock_s, low or None, wasted=False)

    def from_above(self, config: ServingConfig) -> Launch:
        """auto_tune.sh: throughput at an infinite rate; then from there down until the percentiles hold."""
        if not self.starts(config):
            self.clock_s += GRID_PAUSE_S
            return Launch(config.short, self.clock_s, None, wasted=True)
        prober = self._prober(config)
        held, throughput_rps = prober.batch(math.inf, GRID_LOAD_REQUESTS)
        rate = math.floor(throughput_rps) + 1
        while not held and rate > 0:
            prober.elapsed_s += GRID_PAUSE_S / 3
            held, throughput_rps = prober.batch(rate, GRID_REQUESTS)
            rate -= 1
        self.clock_s += prober.elapsed_s + GRID_PAUSE_S
        return Launch(config.short, self.clock_s, throughput_rps if held else None, wasted=False)

    def _prober(self, config: ServingConfig) -> VirtualProber:
        lab = self._laboratory
        return VirtualProber(lab.world, lab.world.law(config), lab.memory, lab.traffic_seed, adaptive=False)


def _from(launches: Sequence[Launch], start_s: float) -> tuple[Launch, ...]:
    return tuple(replace(launch, ended_s=launch.ended_s - start_s) for launch in launches)


def _laboratory(world: World, traffic: int, memory: Memory) -> VirtualLaboratory:
    return VirtualLaboratory(world, traffic, Path(), memory=memory)


def suggested(space: SearchSpace, trial: optuna.Trial) -> ServingConfig:
    """As people write it: numbers and words alike are categories; conditional knobs are asked for when they apply."""
    values: dict[str, Value] = {}
    for knob in space.knobs:
        if knob.active(values):
            one = len(knob.choices) == 1
            values[knob.name] = knob.choices[0] if one else trial.suggest_categorical(knob.name, knob.choices)
    return ServingConfig(space.engine, values)


def _fast_folder() -> str | None:
    """In memory, where there is such a place: nothing in it is kept."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


_RANDOM = ("tuners.random_tuner",)
_TPE = ("tuners.optuna_tuner",)
_GP = ("tuners.gp_tuner", "tuners.gaussian_process", "tuners.lattice", "tuners.recall")
_STAGED = (*_GP, "tuners.staged_tuner")

_ARMS = (
    Arm("vllm grid", vllm_grid, "vLLM's auto_tune.sh: a grid of two knobs, rates lowered until the targets hold"),
    Arm("plain tpe", plain_tpe, "Optuna's TPE, failures told as FAIL, no planner, no racing, bisection"),
    Arm("random", StudyArm("random"), "uniform random in our laboratory: same planner, estimate, racing", _RANDOM),
    Arm("tpe", StudyArm("tpe"), "our laboratory with multivariate TPE, constraints graded", _TPE),
    Arm("gp", StudyArm("gp"), "our laboratory with Gaussian processes over score, constraints and seconds", _GP),
    Arm("staged", StudyArm("staged"), "the same in stages", _STAGED),
)
ARMS = {arm.name: arm for arm in _ARMS}
OURS = "gp"  # what `search.tuner` is where a scenario does not say

_ABLATIONS = (
    Arm("no racing", StudyArm(OURS, Rules(racing=False)), "every configuration gets all its holds", _GP),
    Arm("no planner", StudyArm(OURS, Rules(planner=False)), "what cannot be planned is launched, and dies", _GP),
    Arm("no guess", StudyArm(OURS, Rules(guess=False)), "ramps begin near the default's capacity", _GP),
)
ABLATIONS = {arm.name: arm for arm in _ABLATIONS}
