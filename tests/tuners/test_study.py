"""The loop, on a laboratory that follows a known law instead of measuring: the right answer is analytic.

Real engines are in tests/e2e. Here: order of steps, resume after a death at any point, who wins.
"""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from harness.errors import ConfigurationImpossible, HostDisturbed
from harness.ledger import read
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
from scenarios.errors import UserError
from scenarios.space import Knob, SearchSpace
from scenarios.spec import Scenario
from tuners.base import Trial
from tuners.laboratory import infeasible
from tuners.optuna_tuner import OptunaTuner
from tuners.results import Capacity, Certification, FinalsRun, Reference, Run, TrialResult
from tuners.study import CERTIFY_SHARES, Asked, Study

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
    from harness.engines.base import LaunchPlan

    if config.knobs["slots"] == 16:
        raise ConfigurationImpossible("too many slots for the law")
    flags = tuple(f"--{k}={v}" for k, v in config.knobs.items())
    return LaunchPlan(
        config, flags, {}, "http://127.0.0.1:{port}/v1", "m", "/health", 1, "", deploy_argv=("law", *flags)
    )


def study(root, *, space=SPACE, asked=None, **law) -> Study:
    wanted = asked or scenario()
    root.mkdir(exist_ok=True)
    model = SimpleNamespace(digests={"f16": "0" * 64})
    subject = SimpleNamespace(scenario=wanted, root=root, targets=(), plan=plan, engine_version="law 1", model=model)
    return Study(Law(subject, **law), space, OptunaTuner(space, 0), Silent(), Asked("law.yaml", "autotune tune law"))


def test_the_best_that_keeps_its_accuracy_wins(tmp_path):
    winner = study(tmp_path / "run").run()
    assert winner.outcome == "tuned"
    assert winner.config["knobs"] == {"variant": "q8", "slots": 8, "crash": False}
    assert winner.gain.value == pytest.approx(24 / 8)
    assert winner.gain.low == pytest.approx(3.0)
    assert winner.certified_rate_rps == pytest.approx(CERTIFY_SHARES[1] * 24 * 1.01), (
        "the first share was undecided, the second passed"
    )
    assert winner.export["law"] == "law --variant=q8 --slots=8 --crash=False"
    assert json.loads((tmp_path / "run" / "winner.json").read_text()) == winner.model_dump(mode="json")


def test_a_death_at_any_step_is_resumed_to_the_same_answer(tmp_path):
    whole = study(tmp_path / "whole")
    expected = whole.run()
    steps = whole.laboratory.done
    assert steps > 20
    for death in range(steps):
        root = tmp_path / f"dies-after-{death}"
        with pytest.raises(KeyboardInterrupt):
            study(root, die_after=death).run()
        assert not (root / "winner.json").exists()
        resumed = study(root)
        assert resumed.run() == expected
        assert resumed.laboratory.done == steps - death, "nothing is done twice"
        assert list(read(root / "ledger.jsonl")) == list(read(tmp_path / "whole" / "ledger.jsonl"))


def test_a_torn_last_line_is_one_step_done_again(tmp_path):
    root = tmp_path / "run"
    expected = study(root).run()
    ledger = root / "ledger.jsonl"
    content = ledger.read_bytes()
    ledger.write_bytes(content[: content.rindex(b'"step"') + 20])
    assert study(root).run() == expected


def test_a_finished_study_is_only_read(tmp_path):
    expected = study(tmp_path / "run").run()
    again = study(tmp_path / "run", die_after=0)
    assert again.run() == expected


def test_keep_the_defaults_when_nothing_is_better(tmp_path):
    winner = study(
        tmp_path / "run", speed={"f16": 9.0, "q8": 2.0, "q4": 1.0}, space=SPACE.narrowed({"variant": ("f16", "q8")})
    ).run()
    assert winner.outcome == "keep_defaults"
    assert winner.trial == 0
    assert "Keep the defaults" in winner.reason


def test_a_finalist_that_only_the_full_tasks_expose_is_passed_over(tmp_path):
    run = study(tmp_path / "run", screen_catches=False, asked=scenario(trials=20))
    winner = run.run()
    assert winner.config["knobs"]["variant"] != "q4"
    judged = [t for t in run.laboratory.told if t.startswith("quality")]
    assert judged
    lost = [f.trial for f in winner.finalists if f.quality_passed is False]
    assert lost
    assert all(f.knobs["variant"] == "q4" for f in winner.finalists if f.trial in lost)


def test_no_feasible_configuration_names_the_nearest_miss(tmp_path):
    class Slow(Law):
        def trial(self, number, config, earlier, reference):
            result = super().trial(number, config, earlier, reference)
            over = {"slo": 0.5 + 0.1 * number}
            broken = result.trial.model_copy(update={"constraints": over, "score": 0.0, "state": "complete"})
            return result.model_copy(update={"trial": broken})

    run = study(tmp_path / "run")
    run.laboratory = Slow(run.laboratory.subject)
    winner = run.run()
    assert winner.outcome == "none_feasible"
    assert "trial 000 came nearest: it missed slo by 50%" in winner.nearest_miss


def test_when_every_other_trial_fails_the_defaults_are_kept(tmp_path):
    class Fragile(Law):
        def trial(self, number, config, earlier, reference):
            if number == 0:
                return super().trial(number, config, earlier, reference)
            return super().trial(number, config.with_knobs(crash=True), earlier, reference)

    run = study(tmp_path / "run", asked=scenario(trials=3))
    run.laboratory = Fragile(run.laboratory.subject)
    winner = run.run()
    assert winner.outcome == "keep_defaults"
    assert winner.score == 8.0


def test_defaults_that_fail_are_not_kept_when_the_finalists_fail_too(tmp_path):
    class Fading(Law):
        def trial(self, number, config, earlier, reference):
            result = super().trial(number, config, earlier, reference)
            if number == 0:
                dead = result.trial.model_copy(update={"score": 0.0, "constraints": {"slo": 0.4}})
                return result.model_copy(update={"trial": dead})
            return result

        def final(self, block, position, trial, control):
            return super().final(block, position, trial, control).model_copy(update={"score": 0.0})

    run = study(tmp_path / "run")
    run.laboratory = Fading(run.laboratory.subject)
    assert run.run().outcome == "none_feasible"


def test_a_void_step_is_never_recorded(tmp_path):
    class Busy(Law):
        def trial(self, number, config, earlier, reference):
            if number == 3:
                raise HostDisturbed("busy")
            return super().trial(number, config, earlier, reference)

    run = study(tmp_path / "run")
    run.laboratory = Busy(run.laboratory.subject)
    with pytest.raises(HostDisturbed):
        run.run()
    assert "trial/003" not in read(tmp_path / "run" / "ledger.jsonl")
    assert study(tmp_path / "run").run() == study(tmp_path / "other").run()


def test_impossible_configurations_are_neither_launched_nor_paid_for(tmp_path):
    run = study(tmp_path / "run", asked=scenario(trials=20))
    run.run()
    steps = read(tmp_path / "run" / "ledger.jsonl")
    tried = [steps[s]["trial"]["knobs"]["slots"] for s in steps if s.startswith("trial/")]
    assert 16 not in tried
    assert len(tried) == 21


def test_the_wall_clock_budget_counts_what_the_ledger_says(tmp_path):
    study(tmp_path / "run", asked=scenario(wall_clock_s=35)).run()
    steps = [s for s in read(tmp_path / "run" / "ledger.jsonl") if s.startswith("trial/")]
    assert len(steps) == 1 + 4, "the control is outside the budget; the trial that crosses the limit is finished"


def test_a_folder_of_another_scenario_is_refused(tmp_path):
    study(tmp_path / "run").run()
    with pytest.raises(UserError, match="a study of another scenario"):
        study(tmp_path / "run", asked=scenario(trials=3)).run()
