"""A study whose laboratory follows a known law instead of measuring: the right answer is analytic."""

from dataclasses import dataclass, field
from types import SimpleNamespace

from harness.engines.base import LaunchPlan
from harness.errors import ConfigurationImpossible
from harness.measurement import (
    Audit,
    EngineIdentity,
    Estimate,
    Measurement,
    QualityComparison,
    QualityVerdict,
    Telemetry,
    Verdict,
)
from scenarios.space import Knob, SearchSpace
from scenarios.spec import Scenario
from tuners.base import Trial, infeasible
from tuners.gp_tuner import GpTuner
from tuners.results import Capacity, Certification, FinalsRun, Reference, Run, TrialResult
from tuners.study import Asked, Study

SPACE = SearchSpace(
    "law",
    (
        Knob("variant", ("f16", "q8", "q4"), "f16", "precision", "", affects_output=True),
        Knob("slots", (1, 2, 4, 8, 16), 4, "batching", ""),
        Knob("crash", (False, True), False, "compute", ""),
    ),
)


def scenario(**budget) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "law",
            "model": {"name": "m"},
            "workload": {"prompt_tokens": {"mean": 8}, "output_tokens": {"mean": 8}},
            "slo": {"ttft": {"target_ms": 100}},
            "quality": {"tasks": [{"task": "cloze", "margin": 0.03}]},
            "budget": {"trials": 12, **budget},
        }
    )


def measurement(rate) -> Measurement:
    audit = Audit(
        offered_rps=rate, achieved_rps=rate, send_lateness_p50_ms=0, send_lateness_p99_ms=0, send_lateness_limit_ms=1,
        loop_lag_p99_ms=0, generator_cpu_share=0, connections_opened=1, stale_connections_replaced=0, steal_share=0,
    )  # fmt: skip
    value = Estimate(value=50.0, low=40.0, high=60.0, n=100, n_effective=50.0)
    return Measurement(
        kind="hold", rate_rps=rate, seed=1, workload_digest="w", started_at="2026-01-01T00:00:00Z", window_s=(0, 10),
        steady=True, saturated=False, n_sent=100, n_judged=100, errors={}, metrics={"e2e_p50_ms": value},
        throughput_rps=rate, throughput_output_tps=rate, goodput_rps=rate, slo=(), audit=audit, telemetry=Telemetry(),
        records_path="x", command="x", percentile_method="inverted_cdf",
    )  # fmt: skip


def quality(variant, level) -> QualityVerdict:
    bad = variant == "q4"
    comparison = QualityComparison(
        task="cloze", n=300, accuracy=0.4 if bad else 0.6, reference_accuracy=0.6, difference=-0.2 if bad else 0.0,
        difference_low=-0.25 if bad else -0.02, difference_high=-0.15 if bad else 0.02, lost=60 if bad else 3,
        won=0 if bad else 3, margin=0.03, passed=not bad,
    )  # fmt: skip
    reasons = ("cloze is worse",) if bad else ()
    return QualityVerdict(
        level=level,
        passed=not bad,
        agreement=0.5,
        tasks=(comparison,),
        violation=0.12 if bad else -0.01,
        reasons=reasons,
    )


@dataclass
class Law:
    """Capacity is 2 (f16), 3 (q8) or 4 (q4) times min(slots, 8), whatever the day."""

    subject: object
    speed: dict = field(default_factory=lambda: {"f16": 2.0, "q8": 3.0, "q4": 4.0})
    screen_catches: bool = True
    die_after: int | None = None
    done: int = 0
    told: list = field(default_factory=list)

    def capacity(self, knobs):
        return self.speed[knobs["variant"]] * min(knobs["slots"], 8)

    def _work(self, name):
        if self.die_after is not None and self.done >= self.die_after:
            raise KeyboardInterrupt
        self.done += 1
        self.told.append(name)

    def settle(self, reference):
        pass

    def asked_rate(self, control):
        return None

    def reference(self):
        self._work("reference")
        identity = EngineIdentity(
            engine="law", version="1", argv=(), env={}, model="m", model_digest=None, config_digest="d"
        )
        return Reference(
            identity=identity,
            unloaded=measurement(1.0),
            unloaded_ms={"ttft": 20.0},
            targets_ms={"ttft": 100.0},
            accuracy={"cloze": 0.6},
            quality_file="answers.json",
        )

    def trial(self, number, config, earlier, reference):
        self._work(f"trial {number}")
        common = {
            "folder": f"trials/{number:03d}", "identity": None, "cold_start_s": 1.0, "expected_memory_bytes": 1,
            "runs": (), "quality_from": None,
        }  # fmt: skip
        if config.knobs["crash"]:
            failed = infeasible(number, config, "crashed", "it crashed").model_copy(update={"seconds": 10.0})
            return TrialResult(trial=failed, capacity=None, quality=None, **common)
        verdict = quality(config.knobs["variant"], "screen") if self.screen_catches else None
        rate = self.capacity(config.knobs)
        bad = verdict is not None and not verdict.passed
        trial = Trial(
            number=number,
            knobs=dict(config.knobs),
            config_digest=config.digest,
            state="quality" if bad else "complete",
            score=None if bad else rate,
            constraints={"quality": verdict.violation if verdict else 0.0},
            seconds=10.0,
            why="as the law says",
        )
        capacity = Capacity(rate_rps=rate, highest_passed_rps=rate, lowest_failed_rps=None, raced=False, probes=())
        return TrialResult(trial=trial, capacity=capacity, quality=verdict, **common)

    def final(self, block, position, trial, control):
        self._work(f"final {block} {trial.number}")
        score = self.capacity(trial.knobs) * (1 + 0.01 * block)
        return FinalsRun(
            block=block, position=position, trial=trial.number, seed=block, score=score, capacity=None, runs=()
        )

    def full_quality(self, trial, reference):
        self._work(f"quality {trial.number}")
        return quality(trial.knobs["variant"], "full")

    def certify(self, trial, rate_rps, attempt):
        self._work(f"certify {trial.number} {attempt}")
        verdict = Verdict(outcome="PASS" if attempt == 1 else "UNDECIDED", reasons=(), slo=())
        run = Run(folder="x", measurement=measurement(rate_rps), verdict=verdict)
        return Certification(trial=trial.number, rate_rps=rate_rps, run=run)


class Silent:
    def begin(self, what, seconds): ...
    def live(self, counters): ...
    def note(self, line): ...
    def progress(self, done, total): ...
    def trial(self, result): ...


def plan(config):
    if config.knobs["slots"] == 16:
        raise ConfigurationImpossible("too many slots for the law")
    flags = tuple(f"--{k}={v}" for k, v in config.knobs.items())
    return LaunchPlan(
        config, flags, {}, "http://127.0.0.1:{port}/v1", "m", "/health", 1, "", deploy_argv=("law", *flags)
    )


def study(root, *, space=SPACE, asked=None, more=None, **law) -> Study:
    wanted = asked or scenario()
    root.mkdir(exist_ok=True)
    model = SimpleNamespace(digests={"f16": "0" * 64})
    subject = SimpleNamespace(scenario=wanted, root=root, targets=(), plan=plan, engine_version="law 1", model=model)
    how = Asked("law.yaml", "autotune tune law")
    return Study(Law(subject, **law), space, GpTuner(space, 0), Silent(), how, **(more or {}))
