"""`tuners.study.Measuring` in virtual time: what a study asks of a laboratory, with a modelled clock.

A trial is a launch (compiled code is kept from launch to launch), a warm-up, and the real capacity estimate. What does
not start costs what it takes to die. Knows nothing of which configuration is tried next, or why.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.engines.base import HostLimits
from harness.errors import TrialInfeasible
from harness.measurement import Audit, EngineIdentity, Estimate, Measurement, QualityVerdict, Telemetry
from harness.observe import Target
from harness.subject import Subject
from scenarios.space import ServingConfig
from search.prober import Memory, VirtualProber
from search.worlds import World
from tuners import capacity
from tuners.base import Trial, infeasible
from tuners.laboratory import SEED_FINALS, SEEDS_PER_WORKLOAD_SEED
from tuners.results import Capacity, Certification, FinalsRun, Reference, TrialResult

Expects = Callable[[Sequence[Trial], ServingConfig], float | None]
GUESS_STEP = 1.25  # guesses are rounded to powers of it, so that equal runs are asked for again


class Quiet:
    """An observer that nobody listens to."""

    def begin(self, what: str, seconds: float | None) -> None: ...
    def live(self, counters: Any) -> None: ...
    def note(self, line: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...
    def trial(self, result: TrialResult) -> None: ...


class Planner:
    """As much of an engine as a study needs that launches nothing. ``off``: everything is said to be possible."""

    name = "simulated"

    def __init__(self, world: World, *, off: bool = False) -> None:
        self._world = world
        self._off = off

    def plan(self, spec: object, model: object, config: ServingConfig, host: object) -> Any:
        del spec, model, host
        if self._off and self._world.impossible(config):
            return self._world.plan(self._world.space.default())
        return self._world.plan(config)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the laboratory does for whoever searches. All on: what `autotune tune` does."""

    planner: bool = True  # what cannot be planned is known beforehand
    racing: bool = True  # a configuration whose ramp ends far below the best is not pursued
    guess: bool = True  # a ramp begins near what the tuner's model expects, not near the default's capacity


ALL_ON = Rules()


@dataclass
class VirtualLaboratory:
    """One machine. ``seed``: of the workload, so that another study has other traffic."""

    world: World
    seed: int
    root: Path
    rules: Rules = ALL_ON
    expects: Expects | None = None
    memory: Memory = field(default_factory=Memory)
    compiled: set[tuple[object, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        scenario = self.world.scenario
        self.subject = Subject(
            scenario=scenario,
            engine=Planner(self.world, off=not self.rules.planner),  # type: ignore[arg-type]
            engine_version="simulated",
            model=self.world.model,
            host=HostLimits(1, 1),
            root=self.root,
            observer=Quiet(),
            targets=tuple(Target(m, q, 1e3 * t) for m, (t, q) in self.world.targets_s.items()),
        )

    def settle(self, reference: Reference) -> None:
        """Targets are absolute."""

    def reference(self) -> Reference:
        """The defaults, alone: outside every budget, the same for whoever searches."""
        prober = VirtualProber(self.world, self.world.law(self.world.space.default()), self.memory, self.seed)
        latency_s = prober.alone_s()
        return Reference(
            identity=self._identity(self.world.space.default()),
            unloaded=_measurement(1e3 * latency_s["e2e"]),
            unloaded_ms={m: 1e3 * latency_s[m] for m in self.world.targets_s},
            targets_ms={m: 1e3 * t for m, (t, _) in self.world.targets_s.items()},
            accuracy={},
            quality_file=None,
        )

    def trial(
        self, number: int, config: ServingConfig, earlier: Sequence[TrialResult], reference: Reference
    ) -> TrialResult:
        start_s, died = self.launch(config)
        if died is not None:
            failed = infeasible(number, config, died, "does not start").model_copy(update={"seconds": start_s})
            return self._result(failed, config, None, None)
        control = earlier[0] if earlier else None
        guess_rps = 1e3 / (reference.unloaded.metrics["e2e_p50_ms"].value or 1e3)
        if control and control.capacity and control.capacity.rate_rps > 0:
            guess_rps = control.capacity.rate_rps
        if self.rules.guess and self.expects is not None:
            guess_rps = self.expects([r.trial for r in earlier], config) or guess_rps
        best = max((r.certain_rps for r in earlier), default=0.0) or None
        found, seconds = self.estimate(
            config, self.traffic_seed, rounded(guess_rps), best_rps=best if self.rules.racing else None
        )
        violation = 0.0
        if found.rate_rps <= 0:
            slowest = min((p for p in found.probes if p.kind == "hold"), key=lambda p: p.rate_rps)
            violation = max((slowest.load or capacity.LOAD_CAP) - 1, 0.01)
        trial = Trial(
            number=number,
            knobs=dict(config.knobs),
            config_digest=config.digest,
            state="complete",
            score=found.rate_rps,
            constraints={"quality": 0.0, "slo": violation},
            seconds=round(start_s + seconds, 3),
            launch_s=start_s,
        )
        return self._result(trial, config, start_s, found)

    def final(self, block: int, position: int, trial: Trial, control: TrialResult) -> FinalsRun:
        config = ServingConfig(self.world.space.engine, trial.knobs)
        seed = self._seed(SEED_FINALS + 100 * block)
        blank = FinalsRun(
            block=block, position=position, trial=trial.number, seed=seed, score=0.0, capacity=None, runs=()
        )
        if self.launch(config)[1] is not None:
            return blank
        found, _ = self.estimate(config, seed, rounded(control.trial.score or trial.score or 1.0))
        return blank.model_copy(update={"score": found.rate_rps, "capacity": found})

    def full_quality(self, trial: Trial, reference: Reference) -> QualityVerdict:  # noqa: ARG002 - the contract's shape
        """No scenario here has a quality task, so a study never asks."""
        raise AssertionError(f"trial {trial.number}: quality was asked of {self.world.scenario.name}")

    def certify(self, trial: Trial, rate_rps: float, attempt: int) -> Certification:  # noqa: ARG002 - the contract's shape
        """Nothing is deployed here."""
        raise TrialInfeasible("not certified in virtual time")

    def asked_rate(self, control: TrialResult | None) -> float | None:
        """Objective goodput has none."""

    def launch(self, config: ServingConfig) -> tuple[float, str | None]:
        """Seconds of the launch, and the failure class when it died."""
        impossible = self.world.impossible(config)
        if impossible:
            return impossible.died_after_s, "start_failed"
        law = self.world.law(config)
        start_s = law.start_s(already_compiled=law.compile_key in self.compiled)
        self.compiled.add(law.compile_key)  # written before the memory is measured
        return start_s, None if law.memory.starts else "out_of_memory"

    def estimate(
        self,
        config: ServingConfig,
        seed: int,
        guess_rps: float,
        *,
        near: bool = False,
        best_rps: float | None = None,
    ) -> tuple[Capacity, float]:
        """The capacity on a running engine, and the seconds of warm-up and load."""
        prober = VirtualProber(self.world, self.world.law(config), self.memory, seed)
        budget = self.world.scenario.budget
        found = capacity.estimate(prober, holds=budget.holds, guess_rps=guess_rps, near=near, best_rps=best_rps)
        return found, budget.warmup_s + prober.elapsed_s

    @property
    def traffic_seed(self) -> int:
        """Of every trial's traffic."""
        return self._seed(0)

    def _seed(self, offset: int) -> int:
        return self.seed * SEEDS_PER_WORKLOAD_SEED + offset

    def _identity(self, config: ServingConfig) -> EngineIdentity:
        return EngineIdentity(
            engine="simulated",
            version="simulated",
            argv=(),
            env={},
            model=self.world.scenario.model.label,
            model_digest=None,
            config_digest=config.digest,
        )

    def _result(
        self, trial: Trial, config: ServingConfig, cold_start_s: float | None, found: Capacity | None
    ) -> TrialResult:
        return TrialResult(
            trial=trial,
            folder="",
            identity=self._identity(config),
            cold_start_s=cold_start_s,
            expected_memory_bytes=None,
            capacity=found,
            runs=(),
            quality=None,
            quality_from=None,
        )


def rounded(guess_rps: float) -> float:
    return float(GUESS_STEP ** round(math.log(guess_rps, GUESS_STEP)))


def _measurement(e2e_p50_ms: float) -> Measurement:
    """As much of one as a search reads."""
    audit = Audit(
        offered_rps=None,
        achieved_rps=0.0,
        send_lateness_p50_ms=0.0,
        send_lateness_p99_ms=0.0,
        send_lateness_limit_ms=1.0,
        loop_lag_p99_ms=0.0,
        generator_cpu_share=0.0,
        connections_opened=0,
        stale_connections_replaced=0,
    )
    return Measurement(
        kind="unloaded",
        rate_rps=None,
        seed=0,
        workload_digest="",
        started_at="",
        window_s=(0.0, 0.0),
        steady=True,
        saturated=False,
        n_sent=0,
        n_judged=0,
        errors={},
        metrics={"e2e_p50_ms": Estimate(value=e2e_p50_ms, low=None, high=None, n=0, n_effective=0.0)},
        throughput_rps=0.0,
        throughput_output_tps=0.0,
        goodput_rps=0.0,
        slo=(),
        audit=audit,
        telemetry=Telemetry(),
        records_path="",
        command="",
        percentile_method="",
    )
