"""What peers do: vLLM's `auto_tune.sh` (commit 01277f9), and Optuna's TPE as the usual wrapper around a benchmark.

Written from what they do, not run. Both launch what they choose without a plan, and load it with runs of a fixed
length. The script's shares of memory, in steps of 0.01, are those of the space here, so that each has a truth.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna

from scenarios.space import SearchSpace, ServingConfig, Value
from search.courses import Launch, Search
from search.laboratory import VirtualLaboratory
from search.prober import Memory, VirtualProber
from search.worlds import World

GRID_LOAD_REQUESTS, GRID_REQUESTS = 1000, 100  # of auto_tune.sh: at an infinite rate, and at each lower one
GRID_PAUSE_S = 15.0  # 5 s before a run at a lower rate, 10 s after the server is killed: as the script sleeps
BISECTION_WIDTH, BISECTION_MOST = 1.05, 12

optuna.logging.set_verbosity(optuna.logging.WARNING)


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
    for share in sorted(space["gpu_memory_utilization"].choices, reverse=True):  # the largest that starts
        config = most = most.with_knobs(gpu_memory_utilization=share)
        if bench.starts(config):
            break
        launches.append(Launch(config.short, bench.clock_s, None, wasted=True))
    for n in seqs:
        for m in tokens:
            if bench.clock_s - start_s >= seconds:
                return Search(_from(launches, start_s))
            config = most.with_knobs(max_num_seqs=n, max_num_batched_tokens=m)
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
            values[knob.name] = knob.choices[0] if one else trial.suggest_categorical(knob.name, knob.choices)  # type: ignore[assignment]
    return ServingConfig(space.engine, values)
