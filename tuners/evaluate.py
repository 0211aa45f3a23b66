"""How good is one configuration, on one running engine, for one objective?

Knows nothing of searching or of the ledger. Seeds are passed in: equal seeds, equal traffic.
"""

from dataclasses import dataclass, field
from math import log

import numpy as np

from harness.bench import Loaded, Session
from harness.judge import allowed_misses
from harness.measurement import Measurement, SloCount
from harness.stats.autocorrelation import LEAST_DEFLATION
from scenarios.spec import Scenario
from tuners import capacity
from tuners.belief import Allowed
from tuners.results import Capacity, Probe, Run

WAITED_FOR = frozenset({"ttft", "e2e"})  # metrics that grow with the queue itself
FIRST_REQUESTS = 8
RETURN_SIGNIFICANT = 3.0  # standard errors
SCORE_UNITS = {"goodput": "requests/s", "meet": "x headroom", "latency": "answers/s of latency"}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``score``: higher is better. ``slo_violation``: graded, <= 0 when every target is met."""

    score: float
    slo_violation: float
    capacity: Capacity | None
    runs: tuple[Run, ...]
    passed: bool  # a sequential verdict of PASS at the asked rate (objectives meet and latency)
    why: str


@dataclass(frozen=True, slots=True)
class Hints:
    """What is known before: a rate to begin at, whether it is near, and what the best so far holds for certain."""

    guess_rps: float
    near: bool = False
    best_rps: float | None = None


def evaluate(
    session: Session, scenario: Scenario, *, rate_rps: float | None, seed: int, hints: Hints, prefix: str = ""
) -> Evaluation:
    """Capacity for objective goodput; one hold at ``rate_rps`` for the others (or at the asked concurrency)."""
    if scenario.objective == "goodput":
        return _goodput(session, scenario, seed, hints, prefix)
    seconds = scenario.budget.hold_s * scenario.budget.holds
    name = f"{prefix}hold"
    if scenario.workload.arrivals.process == "closed":
        loaded = session.closed(seconds, seed, name)
    else:
        assert rate_rps is not None
        loaded = session.hold(rate_rps, seconds, seed, name, until_certain=False)
    load = _load(loaded.measurement)
    violation = load - 1 if loaded.verdict.outcome != "FAIL" else max(load - 1, 0.01)
    if scenario.objective == "meet":
        score = 1 / load
    else:
        metric, target = next(iter(scenario.targets.items()))
        value_ms = _percentile_ms(loaded.measurement, metric, target.percentile)
        score = 1000 / value_ms if value_ms else 0.0
    return Evaluation(
        score=score,
        slo_violation=violation,
        capacity=None,
        runs=(recorded_run(loaded, session),),
        passed=loaded.verdict.outcome == "PASS",
        why=f"worst latency at {load:.2f} of its target; verdict {loaded.verdict.outcome}",
    )


def _goodput(session: Session, scenario: Scenario, seed: int, hints: Hints, prefix: str) -> Evaluation:
    prober = _Prober(session, scenario, seed, prefix)
    found = capacity.estimate(
        prober,
        holds=scenario.budget.holds,
        guess_rps=hints.guess_rps,
        near=hints.near,
        best_rps=hints.best_rps,
        on_probe=prober.tell,
    )
    if found.rate_rps > 0:
        violation = 0.0
        why = f"about {found.rate_rps:.2f} requests/s: too far behind the best to pursue"
        if not found.raced:
            why = f"holds {found.rate_rps:.2f} requests/s ({found.rate_low_rps:.2f} to {found.rate_high_rps:.2f})"
        if found.return_ratio and log(found.return_ratio) > RETURN_SIGNIFICANT * (found.return_ratio_se or 0.0):
            why += f"; after an overload its latency stayed {found.return_ratio:.1f} times as high"
    else:
        slowest = min((p for p in found.probes if p.kind == "hold"), key=lambda p: p.rate_rps)
        violation = max((slowest.load or capacity.LOAD_CAP) - 1, 0.01)
        why = f"misses its targets even at {slowest.rate_rps:.2f} requests/s"
    return Evaluation(found.rate_rps, violation, found, tuple(prober.runs), passed=False, why=why)


@dataclass(slots=True)
class _Prober:
    """`capacity.Prober` on a session. Ramps and holds have their own seeds, the same for every trial."""

    session: Session
    scenario: Scenario
    seed: int
    prefix: str
    runs: list[Run] = field(default_factory=list)
    idle_ms: dict[str, float] = field(default_factory=dict)  # latency that nothing delayed, per target

    @property
    def allowed(self) -> Allowed:
        """Of the tightest target on a latency that waiting is part of."""
        waits = [
            Allowed(t.target_ms / 1e3, max(0.0, t.target_ms - self.idle_ms.get(t.metric, 0.0)) / 1e3)
            for t in self.session.subject.targets
            if t.metric in WAITED_FOR
        ]
        return min(waits, key=lambda a: a.wait_s, default=Allowed(0.0, 0.0))

    def _learn_idle(self, loaded: Loaded) -> None:
        """The first requests of a run find the engine idle."""
        for metric, latency_ms in loaded.observed.series.items():
            if len(latency_ms) and np.isfinite(idle := float(np.median(latency_ms[:FIRST_REQUESTS]))):
                self.idle_ms[metric] = min(idle, self.idle_ms.get(metric, idle))

    def ramp(self, start_rps: float, end_rps: float, attempt: int) -> capacity.Ramp:
        loaded = self.session.ramp(start_rps, end_rps, self.seed + attempt, f"{self.prefix}ramp-{attempt}")
        self.runs.append(recorded_run(loaded, self.session))
        self._learn_idle(loaded)
        growth = float(np.log(end_rps / start_rps)) / self.session.ramp_seconds(start_rps, end_rps)
        rates_rps = start_rps * np.exp(growth * loaded.observed.t_int_s)
        return capacity.Ramp(rates_rps, loaded.observed.missed, growth)

    def hold(self, rate_rps: float, attempt: int) -> Probe:
        seconds = self.scenario.budget.hold_s
        name = f"{self.prefix}hold-{attempt}"
        loaded = self.session.hold(rate_rps, seconds, self.seed + 10 + attempt, name, until_certain=True)
        self.runs.append(recorded_run(loaded, self.session))
        self._learn_idle(loaded)
        return _probe(loaded, rate_rps)

    def tell(self, probe: Probe) -> None:
        outcome = "meets every target" if probe.passed else "misses a target"
        if probe.kind == "ramp":
            outcome = "knee of the ramp"
        self.session.subject.observer.note(f"  {probe.rate_rps:7.2f} requests/s  {outcome}")


def _probe(loaded: Loaded, rate_rps: float) -> Probe:
    m = loaded.measurement
    within = all(count.misses <= allowed_misses(count.n, count.percentile) for count in m.slo)
    cut_short = loaded.load.stopped_early in {"misses", "asked"}
    passed = within and m.n_judged > 0 and not m.saturated and not cut_short
    load = _load(m)
    count, worst = _worst(loaded)
    limit = loaded.observed.limit
    return Probe(
        kind="hold",
        rate_rps=rate_rps,
        n=m.n_judged,
        misses=count.misses,
        load=load if passed else max(load, 1.0),
        passed=passed,
        tolerated=(100 - count.percentile) / 100,
        load_se=worst.se if worst else None,
        deflation=worst.deflation if worst else LEAST_DEFLATION,
        limit_rps=limit.rps if limit else None,
        limit_n=limit.n if limit else 0,
    )


def _worst(loaded: Loaded) -> tuple[SloCount, capacity.Load | None]:
    """The target that is missed most, or nearest to it, and by how much; None when nothing was judged."""
    series = loaded.observed.series
    loads = {
        count: capacity.log_load(series[count.metric], count.target_ms, count.percentile)
        for count in loaded.measurement.slo
        if len(series[count.metric])
    }
    count = max(loads, key=lambda slo: loads[slo].log_load, default=loaded.measurement.slo[0])
    return count, loads.get(count)


def _load(m: Measurement) -> float:
    """Worst latency percentile as a multiple of its target; capped where requests failed or queues exploded."""
    loads = []
    for count in m.slo:
        if count.n == 0:  # a traffic class of which nothing came
            continue
        value_ms = _percentile_ms(m, count.metric, count.percentile)
        loads.append(capacity.LOAD_CAP if value_ms is None else value_ms / count.target_ms)
    return min(max(loads, default=capacity.LOAD_CAP), capacity.LOAD_CAP)


def _percentile_ms(m: Measurement, metric: str, percentile: float) -> float | None:
    found = m.metrics.get(f"{metric}_p{percentile:g}_ms")
    return found.value if found else None


def recorded_run(loaded: Loaded, session: Session) -> Run:
    folder = str(loaded.folder.relative_to(session.subject.root))
    return Run(folder=folder, measurement=loaded.measurement, verdict=loaded.verdict)
