"""Loads one configuration in virtual time, as `tuners.evaluate` and `harness.bench` load a running engine.

A ramp is cut once a fifth of its requests missed, a hold once its misses are certain; what it costs is modelled
seconds. Knows nothing of launches, trials or searching.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from harness.bench import FEWEST_REQUESTS
from harness.engines.simulated.law import Law
from harness.engines.simulated.virtual import Requests, Served, serve
from harness.judge import allowed_misses
from harness.stats.steady import steadiness
from search.traffic import Traffic
from search.worlds import World
from tuners import capacity
from tuners.belief import Allowed
from tuners.evaluate import FIRST_REQUESTS, WAITED_FOR
from tuners.results import Probe

Floats = NDArray[np.float64]
T = TypeVar("T")

RAMP_DRAIN_S, PATIENCE_S = 1.0, 2.0  # as in harness.bench: after the last request; beyond the slowest target
RAMP_LOOKS = (0.5, 0.75, 1.0)  # of its duration: cut at the first at which enough has missed
ALONE, ALONE_RPS, ALONE_REQUESTS = 950, 1e-3, 24  # seed, rate and number of requests that meet no other


@dataclass(frozen=True, slots=True)
class Run:
    """One run of load. ``known_s``: when it is known of each request that it met or missed; inf: never was."""

    requests: Requests
    latency_s: dict[str, Floats]  # per target; nan: says nothing
    missed: NDArray[np.bool_]
    known_s: Floats
    done_s: Floats


@dataclass(slots=True)
class Memory:
    """What was served before, by everything that decides over it: studies of equal traffic need not serve it again."""

    traffic: dict[int, Traffic] = field(default_factory=dict)
    runs: dict[tuple[object, ...], tuple[object, float, dict[str, float]]] = field(default_factory=dict)


@dataclass(slots=True)
class VirtualProber:
    """`capacity.Prober`. ``seed``: of the study's traffic; runs have seeds of their own, the same in every trial.

    ``elapsed_s``: modelled seconds of load so far. ``adaptive`` False: no run is cut short.
    """

    world: World
    law: Law
    memory: Memory
    seed: int
    adaptive: bool = True
    elapsed_s: float = 0.0
    idle_s: dict[str, float] = field(default_factory=dict)

    @property
    def allowed(self) -> Allowed:
        waits = [
            Allowed(target_s, max(0.0, target_s - self.idle_s.get(metric, 0.0)))
            for metric, (target_s, _) in self.world.targets_s.items()
            if metric in WAITED_FOR
        ]
        return min(waits, key=lambda a: a.wait_s, default=Allowed(0.0, 0.0))

    def alone_s(self) -> dict[str, float]:
        """Median latencies of an idle engine."""
        run = self._run(self._traffic(ALONE).hold(ALONE_RPS, ALONE_REQUESTS / ALONE_RPS), math.inf)
        return {metric: float(np.nanmedian(values)) for metric, values in run.latency_s.items()}

    def batch(self, rate_rps: float, n: int) -> tuple[bool, float]:
        """``n`` requests, as peers send them: whether every percentile held, and completions/s. inf: all at once."""
        return self._once(("batch", rate_rps, n), lambda: self._batch(rate_rps, n))

    def _batch(self, rate_rps: float, n: int) -> tuple[bool, float]:
        requests = self._traffic(10).first(n, rate_rps)
        run = self._run(requests, math.inf)
        end_s = float(run.done_s.max())
        self.elapsed_s += end_s
        held = all(
            float(np.nanquantile(run.latency_s[metric], percentile / 100, method="inverted_cdf")) <= target_s
            for metric, (target_s, percentile) in self.world.targets_s.items()
        )
        return held, n / end_s

    def ramp(self, start_rps: float, end_rps: float, attempt: int) -> capacity.Ramp:
        return self._once(("ramp", start_rps, end_rps, attempt), lambda: self._ramp(start_rps, end_rps, attempt))

    def hold(self, rate_rps: float, attempt: int) -> Probe:
        return self._once(("hold", rate_rps, attempt, self.adaptive), lambda: self._hold(rate_rps, attempt))

    def _once(self, asked: tuple[object, ...], work: Callable[[], T]) -> T:
        key = (self.world.name, self.law.settings, self.seed, *asked)
        if key not in self.memory.runs:
            before_s, known = self.elapsed_s, self.idle_s
            self.idle_s = {}
            result = work()
            self.memory.runs[key] = result, self.elapsed_s - before_s, self.idle_s
            self.elapsed_s, self.idle_s = before_s, known
        result, seconds, idle_s = cast("tuple[T, float, dict[str, float]]", self.memory.runs[key])
        self.elapsed_s += seconds
        self.idle_s = {m: min(s, self.idle_s.get(m, s)) for m, s in {**self.idle_s, **idle_s}.items()}
        return result

    def _ramp(self, start_rps: float, end_rps: float, attempt: int) -> capacity.Ramp:
        mean_rps = (end_rps - start_rps) / math.log(end_rps / start_rps)
        seconds = max(self.world.scenario.budget.ramp_s, FEWEST_REQUESTS / mean_rps)
        requests = self._traffic(attempt).ramp(start_rps, end_rps, seconds)
        most = max(8, len(requests) // 5)
        for share in RAMP_LOOKS:  # what is due later changes nothing before
            until_s = share * seconds + (RAMP_DRAIN_S if share == 1 else 0.0)
            run = self._run(_due_by(requests, until_s), until_s)
            end_s = _nth(run.known_s[run.missed], most)
            if end_s <= until_s:
                break
        end_s = min(end_s, until_s)
        self.elapsed_s += end_s
        told = run.known_s <= end_s
        growth = math.log(end_rps / start_rps) / seconds
        rates_rps = start_rps * np.exp(growth * run.requests.arrival_s)
        return capacity.Ramp(rates_rps[told], run.missed[told], growth)

    def _hold(self, rate_rps: float, attempt: int) -> Probe:
        budget = self.world.scenario.budget
        warmup_s = budget.warmup_s
        end_s = warmup_s + max(budget.hold_s, FEWEST_REQUESTS / rate_rps)
        latest_s = end_s + PATIENCE_S + max(target_s for target_s, _ in self.world.targets_s.values())
        run = self._run(self._traffic(10 + attempt).hold(rate_rps, end_s), latest_s)
        judged = run.requests.arrival_s >= warmup_s
        now_s = self._certain_s(run, judged) if self.adaptive else math.inf
        cut_short = math.isfinite(now_s)
        if not cut_short:
            now_s = min(latest_s, max(end_s, float(run.done_s.max(initial=0.0))))
        self.elapsed_s += now_s
        return self._probe(run, judged & (run.known_s <= now_s), rate_rps, (warmup_s, min(end_s, now_s)), cut_short)

    def _probe(
        self, run: Run, judged: NDArray[np.bool_], rate_rps: float, window_s: tuple[float, float], cut_short: bool
    ) -> Probe:
        worst: tuple[capacity.Load, int, int, float] | None = None
        within = True
        for metric, (target_s, percentile) in self.world.targets_s.items():
            latency_s = run.latency_s[metric][judged]
            latency_s = latency_s[~np.isnan(latency_s)]
            if not len(latency_s):
                continue
            misses = int((latency_s > target_s).sum())
            within &= misses <= allowed_misses(len(latency_s), percentile)
            load = capacity.log_load(latency_s, target_s, percentile)
            if worst is None or load.log_load > worst[0].log_load:
                worst = load, misses, len(latency_s), percentile
        if worst is None:
            worst = capacity.Load(math.log(capacity.LOAD_CAP), 1.0, 2.0), 0, 0, 95.0
            within = False
        load, misses, n, percentile = worst
        steady = steadiness(run.requests.arrival_s, np.minimum(run.done_s, np.inf), window_s)
        saturated = steady is not None and steady.saturated
        start_s = steady.start_s if steady else window_s[0]
        done = int(((run.done_s >= start_s) & (run.done_s < window_s[1])).sum())
        seconds = window_s[1] - start_s
        limited = saturated and done > 0 and seconds > 0
        passed = within and not saturated and not cut_short
        told = math.exp(min(load.log_load, math.log(capacity.LOAD_CAP)))
        return Probe(
            kind="hold",
            rate_rps=rate_rps,
            n=n,
            misses=misses,
            load=told if passed else max(told, 1.0),
            passed=passed,
            tolerated=(100 - percentile) / 100,
            load_se=load.se,
            deflation=load.deflation,
            limit_rps=done / seconds if limited else None,
            limit_n=done if limited else 0,
        )

    def _certain_s(self, run: Run, judged: NDArray[np.bool_]) -> float:
        """When so many have missed one target that its percentile lies above it whatever the others do."""
        earliest = math.inf
        for metric, (target_s, percentile) in self.world.targets_s.items():
            latency_s = run.latency_s[metric]
            most = 1 + allowed_misses(int(judged.sum()), percentile)
            missed = judged & (latency_s > target_s)
            known_s = run.done_s if metric == "tpot" else run.requests.arrival_s + target_s
            earliest = min(earliest, _nth(known_s[missed], most))
        return earliest

    def _traffic(self, offset: int) -> Traffic:
        seed = self.seed + offset
        if seed not in self.memory.traffic:
            self.memory.traffic[seed] = Traffic(self.world.scenario.workload, seed)
        return self.memory.traffic[seed]

    def _run(self, requests: Requests, until_s: float) -> Run:
        served = serve(self.law, requests, self.seed, until_s)
        latency_s = latencies_s(requests, served)
        missed = np.zeros(len(requests), dtype=bool)
        known_s = served.done_s
        for metric, (target_s, _) in self.world.targets_s.items():
            values = latency_s[metric]
            over = values > target_s
            missed |= over
            if metric != "tpot":
                known_s = np.where(over, np.minimum(known_s, requests.arrival_s + target_s), known_s)
            first = values[:FIRST_REQUESTS]
            if len(first) and np.isfinite(idle := float(np.median(first))):
                self.idle_s[metric] = min(idle, self.idle_s.get(metric, idle))
        return Run(requests, latency_s, missed, known_s, served.done_s)


def latencies_s(requests: Requests, served: Served) -> dict[str, Floats]:
    """Per metric and request. An answer that never ended has inf, but for its time per token: nan."""
    return {
        "ttft": served.first_token_s - requests.arrival_s,
        "tpot": served.tpot_s,
        "e2e": served.done_s - requests.arrival_s,
    }


def _due_by(requests: Requests, until_s: float) -> Requests:
    n = int(np.searchsorted(requests.arrival_s, until_s, side="right"))
    return Requests(
        requests.arrival_s[:n],
        requests.prompt_tokens[:n],
        requests.output_tokens[:n],
        requests.prefix[:n],
        requests.prefix_tokens[:n],
    )


def _nth(times_s: Floats, n: int) -> float:
    return float(np.partition(times_s, n - 1)[n - 1]) if len(times_s) >= n else math.inf
