"""A small study on disk: reference, control, a winner, a crash, finals, certification; written through the ledger."""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.ledger import Ledger
from harness.load.tables import RECORD_SCHEMA
from harness.measurement import (
    Audit,
    EngineIdentity,
    Estimate,
    Host,
    Measurement,
    QualityComparison,
    QualityVerdict,
    Telemetry,
    Verdict,
    dump,
)
from scenarios.space import ServingConfig
from scenarios.spec import Scenario
from tuners.base import Trial
from tuners.results import (
    ARM,
    Capacity,
    Certification,
    FinalistSummary,
    FinalsRun,
    Reference,
    Run,
    StudyStart,
    TrialResult,
    Winner,
)

SCENARIO = {
    "name": "tiny",
    "model": {"name": "smollm2-135m-instruct"},
    "workload": {"prompt_tokens": {"mean": 16}, "output_tokens": {"mean": 8}},
    "slo": {"ttft": {"times_unloaded": 6}, "tpot": {"target_ms": 90}},
    "quality": {"tasks": [{"task": "cloze", "margin": 0.03}]},
    "search": {"knobs": {"slots": [4, 8, 16]}},
}
RECORD = {
    "index": 0,
    "t_int_ns": 0,
    "t_send_ns": 100,
    "t_first_ns": 200,
    "t_last_ns": 300,
    "t_end_ns": 310,
    "chunk_ns": [200, 300],
    "prompt_tokens_asked": 16,
    "output_tokens_asked": 8,
    "prompt_tokens": 16,
    "cached_tokens": 0,
    "output_tokens": 8,
    "finish_reason": "length",
    "http_status": 200,
    "error": None,
    "connection_reused": True,
    "bytes_received": 512,
    "traffic_class": "",
    "session": None,
    "turn": 0,
}


def estimate(value, low=None, high=None):
    return Estimate(value=value, low=low, high=high, n=100, n_effective=50.0)


def config_of(slots):
    return ServingConfig("llamacpp", {"slots": slots})


class StudyWriter:
    """Writes one study step by step; ``finish`` continues a study that ``search`` began."""

    def __init__(self, folder, started_at="2026-01-02T03:04:05+00:00", outcome="tuned", *, dummy=False):
        self.folder = folder
        weights = {"model": {**SCENARIO["model"], "weights": "dummy"}, "quality": {"tasks": []}} if dummy else {}
        self.scenario = Scenario.model_validate({**SCENARIO, **weights})
        self.started_at = started_at
        self.outcome = outcome

    def search(self):
        self.folder.mkdir(parents=True)
        (self.folder / "scenario.yaml").write_text("name: tiny\n")
        reference = Reference(
            identity=self.identity(4),
            unloaded=self.run("trials/ref/unloaded", 1.0, "unloaded").measurement,
            unloaded_ms={"ttft": 30.0, "tpot": 10.0},
            targets_ms={"ttft": 180.0, "tpot": 90.0},
            accuracy={"cloze": 0.6},
            quality_file=None,
        )
        control = self.trial(0, 4, score=2.0)
        winner = self.trial(1, 8, score=3.0)
        crashed = TrialResult(
            trial=Trial(
                number=2,
                knobs=dict(config_of(16).knobs),
                config_digest=config_of(16).digest,
                state="infeasible",
                score=None,
                constraints={"engine": 1.0},
                seconds=5.0,
                failure="out_of_memory",
                why="llama-server: out of memory",
            ),
            folder=self.trial_folder(2),
            identity=self.identity(16),
            cold_start_s=None,
            expected_memory_bytes=10**9,
            capacity=None,
            runs=(),
            quality=None,
            quality_from=None,
            log_lines=("failed to allocate",),
        )
        self.append("study", self.start())
        self.append("reference", reference)
        for result in (control, winner, crashed):
            self.append(f"trial/{result.trial.number:03d}", result)

    def search_again(self):
        """The control arm: one trial after those of the search."""
        self.append("control/003", self.trial(3, 16, score=2.5).model_copy(update={"origin": ARM}))

    def finish(self):
        for block, (trial, score) in itertools.product(range(2), [(0, 2.0), (1, 3.1)]):
            final = FinalsRun(
                block=block, position=trial, trial=trial, seed=block, score=score + block / 10, capacity=None, runs=()
            )
            self.append(f"finals/{block}/{trial:03d}", final)
        self.append("quality/001", self.quality("full", 0.61))
        certified = self.run("trials/001/certify-0", 2.7)
        self.append("certify/001/0", Certification(trial=1, rate_rps=2.7, run=certified))
        winner = self.winner(certified)
        (self.folder / "winner.json").write_text(winner.model_dump_json())
        (self.folder / "report.html").write_text("<!doctype html><title>tiny</title>")
        self.append("winner", winner)

    def append(self, step, record):
        """Stamps are 10 s apart, the first 10 s after the start of 2026."""
        path = self.folder / "ledger.jsonl"
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        with Ledger(path, clock=lambda: 1_767_225_600.0 + 10 * (lines + 1)) as ledger:
            ledger.once(step, lambda: dump(record))

    def start(self):
        return StudyStart(
            scenario=self.scenario.to_dict(),
            scenario_digest=self.scenario.digest,
            scenario_file="tiny.yaml",
            command="autotune tune tiny.yaml",
            started_at=self.started_at,
            host=Host(
                hostname_hash="ab12",
                cpu="test cpu",
                cores=2,
                memory_bytes=8 * 2**30,
                gpus=(),
                kernel="6.1",
                governor=None,
                python="3.11",
                autotune_version="0.1.0",
                packages={},
            ),
            engine_version="b1234",
            model_digests={"q8_0": "d" * 64},
            space=[],
        )

    def identity(self, slots):
        return EngineIdentity(
            engine="llamacpp",
            version="b1234",
            argv=("llama-server", "--parallel", str(slots)),
            env={},
            model="smollm2-135m-instruct",
            model_digest="d" * 64,
            config_digest=config_of(slots).digest,
        )

    def trial_folder(self, number):
        folder = self.folder / "trials" / f"{number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "engine.log").write_text(f"log of trial {number}\n")
        return str(folder.relative_to(self.folder))

    def trial(self, number, slots, score):
        folder = self.trial_folder(number)
        return TrialResult(
            trial=Trial(
                number=number,
                knobs=dict(config_of(slots).knobs),
                config_digest=config_of(slots).digest,
                state="complete",
                score=score,
                constraints={"slo": -0.1, "quality": -0.01},
                seconds=4.0,
                why=f"holds {score} requests/s",
            ),
            folder=folder,
            identity=self.identity(slots),
            cold_start_s=0.5,
            expected_memory_bytes=10**9,
            capacity=Capacity(
                rate_rps=score, highest_passed_rps=score, lowest_failed_rps=score + 1, raced=False, probes=()
            ),
            runs=(
                self.run(f"{folder}/ramp", None, "ramp"),
                self.run(f"{folder}/hold-0", score),
                self.run(f"{folder}/hold-1", score + 1, outcome="FAIL"),
            ),
            quality=self.quality("screen", 0.59),
            quality_from=None,
        )

    def quality(self, level, accuracy):
        task = QualityComparison(
            task="cloze",
            n=60,
            accuracy=accuracy,
            reference_accuracy=0.6,
            difference=round(accuracy - 0.6, 3),
            difference_low=-0.02,
            difference_high=0.04,
            lost=1,
            won=1,
            margin=0.03,
            passed=True,
        )
        return QualityVerdict(level=level, passed=True, agreement=0.99, tasks=(task,), violation=-0.01)

    def run(self, folder, rate_rps, kind="hold", outcome="PASS"):
        (self.folder / folder).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([RECORD], RECORD_SCHEMA), self.folder / folder / "requests.parquet")
        measurement = Measurement(
            kind=kind,
            rate_rps=rate_rps,
            seed=1,
            workload_digest=self.scenario.workload.digest,
            started_at=self.started_at,
            window_s=(2.0, 8.0),
            steady=True,
            saturated=False,
            n_sent=100,
            n_judged=80,
            errors={"timeout": 2} if outcome == "FAIL" else {},
            metrics={
                "ttft_p95_ms": estimate(100.0 * (rate_rps or 9), 90.0, 330.0),
                "tpot_p95_ms": estimate(40.0),
                "e2e_p99_ms": estimate(None, 500.0, None),
            },
            throughput_rps=2.5,
            throughput_output_tps=20.0,
            goodput_rps=2.4,
            slo=(),
            audit=Audit(
                offered_rps=rate_rps,
                achieved_rps=rate_rps or 1.0,
                send_lateness_p50_ms=0.1,
                send_lateness_p99_ms=0.4,
                send_lateness_limit_ms=5.0,
                loop_lag_p99_ms=0.2,
                generator_cpu_share=0.1,
                connections_opened=4,
                stale_connections_replaced=0,
                steal_share=0.0,
            ),
            telemetry=Telemetry(rss_peak_bytes=300_000_000),
            records_path=f"{folder}/requests.parquet",
            command="autotune bench tiny.yaml",
            percentile_method="hazen",
        )
        verdict = Verdict(outcome=outcome, reasons=(), slo=())
        measurement.save(self.folder / folder / "measurement.json")
        (self.folder / folder / "verdict.json").write_text(verdict.model_dump_json())
        return Run(folder=folder, measurement=measurement, verdict=verdict)

    def winner(self, certified):
        chosen = {"tuned": 1, "keep_defaults": 0, "none_feasible": None}[self.outcome]
        return Winner(
            outcome=self.outcome,
            reason="Eight slots give 1.55 times the default's requests/s.",
            objective="goodput",
            trial=chosen,
            config=config_of(8).to_dict(),
            identity=self.identity(8) if chosen is not None else None,
            default_config=config_of(4).to_dict(),
            gain=Estimate(value=1.55, low=1.4, high=1.7, n=2, n_effective=2.0),
            score=3.15,
            default_score=2.05,
            score_unit="requests/s",
            finalists=(
                FinalistSummary(
                    trial=1,
                    knobs=dict(config_of(8).knobs),
                    scores=(3.1, 3.2),
                    gain=None,
                    changed_knobs=1,
                    quality_passed=True,
                ),
            ),
            certified_rate_rps=2.7,
            certification=certified.verdict,
            certified=certified.measurement,
            quality=None,
            nearest_miss=None,
            scenario_digest=self.scenario.digest,
            workload_digest=self.scenario.workload.digest,
            export={},
        )


@pytest.fixture
def begin_study(tmp_path):
    """``begin_study("name")``: a study whose search is over and that has no winner yet.

    The runs' folder has a space and an umlaut in its name: a path like that must survive every mirror.
    """

    def begin(name="tiny", **changes):
        writer = StudyWriter(tmp_path / "my rüns" / name, **changes)
        writer.search()
        return writer

    return begin


@pytest.fixture
def finished_study(begin_study):
    """``finished_study("name", started_at=..., outcome=...)``: the folder of a finished study."""

    def finished(name="tiny", **changes):
        writer = begin_study(name, **changes)
        writer.finish()
        return writer.folder

    return finished
