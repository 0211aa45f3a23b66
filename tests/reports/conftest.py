"""A synthetic study: a FIFO queue with k servers makes real records, and everything else is computed from them."""

import heapq
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binom

from harness.ledger import Ledger
from harness.load.tables import RECORD_SCHEMA
from harness.measurement import (
    Audit,
    EngineIdentity,
    Estimate,
    EvidencePoint,
    Host,
    Measurement,
    QualityComparison,
    QualityVerdict,
    SloCount,
    SloVerdict,
    Telemetry,
    Verdict,
)
from harness.stats.sequential import log_e_fail, log_e_pass
from scenarios.space import ServingConfig
from scenarios.spec import Scenario
from tuners.base import Trial
from tuners.results import (
    Capacity,
    Certification,
    FinalistSummary,
    FinalsRun,
    Probe,
    Reference,
    Run,
    StudyStart,
    TrialResult,
    Winner,
)

TARGETS_MS = {"ttft": 400.0, "tpot": 40.0}
BYTES_PER_WEIGHT = {"f16": 16.0, "q8_0": 8.5, "q4_1": 5.0, "q4_0": 4.5}
ACCURACY = {"f16": 0.62, "q8_0": 0.615, "q4_1": 0.605, "q4_0": 0.45}
DEFAULTS = {"variant": "f16", "slots": 4, "micro_batch": 512, "flash_attention": True}
TRIED = [
    {},
    {"variant": "q8_0"},
    {"variant": "q4_0", "slots": 8},
    {"slots": 16, "micro_batch": 128},
    {"variant": "q8_0", "slots": 8},
    {"variant": "q8_0", "slots": 16, "flash_attention": False},
    {"variant": "q4_1", "slots": 8},
    {"variant": "q8_0", "slots": 8, "micro_batch": 128},
    {"variant": "q4_1", "slots": 2, "micro_batch": 128},
    {"variant": "f16", "slots": 8, "flash_attention": False},
]
CRASHED = 5
SPACE = [
    {"name": "variant", "choices": list(BYTES_PER_WEIGHT), "default": "f16", "effect": "precision", "doc": "Weights."},
    {"name": "slots", "choices": [2, 4, 8, 16], "default": 4, "effect": "batching", "doc": "Sequences at a time."},
    {"name": "micro_batch", "choices": [128, 512], "default": 512, "effect": "batching", "doc": "Prompt tokens."},
    {"name": "flash_attention", "choices": [True, False], "default": True, "effect": "compute", "doc": "Kernel."},
]


def knobs_of(changed):
    return {**DEFAULTS, **changed}


def scenario_of(name, description):
    return Scenario.model_validate(
        {
            "name": name,
            "description": description,
            "model": {"name": "smollm2-135m-instruct"},
            "workload": {
                "prompt_tokens": {"mean": 64},
                "output_tokens": {"distribution": "lognormal", "mean": 24, "cv": 0.5, "min": 2, "max": 96},
            },
            "slo": {metric: {"target_ms": target} for metric, target in TARGETS_MS.items()},
            "quality": {"tasks": [{"task": "cloze", "margin": 0.05}, {"task": "arithmetic", "margin": 0.05}]},
            "search": {"knobs": {k["name"]: k["choices"] for k in SPACE}},
            "budget": {"trials": len(TRIED) - 1},
        }
    )


def simulate(knobs, rate_rps, seconds, seed, failures=0.004):
    """Records of a FIFO queue with ``slots`` servers, Poisson arrivals and a step time that grows with the slots."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate_rps, size=max(8, int(rate_rps * seconds * 1.5))))
    arrivals = arrivals[arrivals < seconds]
    step_s = 0.0005 * BYTES_PER_WEIGHT[knobs["variant"]] * (1 + 0.22 * knobs["slots"])
    step_s *= 1.15 if not knobs["flash_attention"] else 1.0
    free = [0.0] * knobs["slots"]
    rows = []
    for index, intended in enumerate(arrivals):
        tokens = int(np.clip(rng.lognormal(3.0, 0.5), 2, 96))
        start = max(intended, heapq.heappop(free))
        first = start + 0.03 * (1 + 64 / knobs["micro_batch"]) * rng.lognormal(0, 0.15)
        gaps = step_s * rng.lognormal(0, 0.1, size=tokens - 1)
        stamps = [round(1e9 * t) for t in first + np.concatenate([[0.0], np.cumsum(gaps)])]
        heapq.heappush(free, stamps[-1] / 1e9)
        failed = rng.random() < failures
        rows.append(
            {
                "index": index,
                "t_int_ns": round(1e9 * intended),
                "t_send_ns": round(1e9 * (intended + 1e-4 * rng.random())),
                "t_first_ns": None if failed else stamps[0],
                "t_last_ns": None if failed else stamps[-1],
                "t_end_ns": stamps[-1],
                "chunk_ns": [] if failed else stamps,
                "prompt_tokens_asked": 64,
                "output_tokens_asked": tokens,
                "prompt_tokens": 64,
                "cached_tokens": 0,
                "output_tokens": None if failed else tokens,
                "finish_reason": None if failed else "length",
                "http_status": None if failed else 200,
                "error": "reset" if failed else None,
                "connection_reused": True,
                "bytes_received": 0 if failed else 100 * tokens,
                "traffic_class": "",
                "session": None,
                "turn": 0,
            }
        )
    return rows


def latencies(rows, metric):
    for row in rows:
        if row["error"]:
            yield math.inf
        elif metric == "ttft":
            yield (row["t_first_ns"] - row["t_int_ns"]) / 1e6
        elif metric == "tpot":
            yield (row["t_last_ns"] - row["t_first_ns"]) / (row["output_tokens"] - 1) / 1e6
        else:
            yield (row["t_last_ns"] - row["t_int_ns"]) / 1e6


def estimate(values, q, deflation):
    """Empirical quantile with an interval from order statistics, counts deflated."""
    ordered = np.sort(np.asarray(values))
    n = len(ordered)
    effective = n / deflation
    low, high = binom.ppf([0.025, 0.975], math.floor(effective), q) / math.floor(effective)
    at = lambda share: float(ordered[min(max(math.ceil(share * n) - 1, 0), n - 1)])  # noqa: E731
    value, bounds = at(q), [at(low), at(high)]
    bounds = [b if math.isfinite(b) else None for b in bounds]
    return Estimate(
        value=value if math.isfinite(value) else None, low=bounds[0], high=bounds[1], n=n, n_effective=effective
    )


def write_run(root, folder, knobs, rate_rps, *, seconds, seed, kind="hold", void=()):
    """Simulates a run, writes its Parquet file, and computes measurement and verdict from its records."""
    rows = simulate(knobs, rate_rps, seconds, seed)
    path = root / folder / "requests.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, RECORD_SCHEMA), path)
    judged = [r for r in rows if r["t_int_ns"] >= 1e9]
    deflation = 2.0
    metrics, counts, verdicts = {}, [], []
    for metric in ("ttft", "tpot", "e2e"):
        values = np.array(list(latencies(judged, metric)))
        for percentile in (50, 95):
            metrics[f"{metric}_p{percentile}_ms"] = estimate(values, percentile / 100, deflation)
        if metric not in TARGETS_MS:
            continue
        missed = values > TARGETS_MS[metric]
        counts.append(
            SloCount(
                metric=metric,
                percentile=95,
                target_ms=TARGETS_MS[metric],
                misses=int(missed.sum()),
                n=len(values),
                autocorrelation_time=1.0,
                deflation=deflation,
            )
        )
        trace, n = [], min(20, len(values))
        while n < len(values) * 1.15:
            k = min(int(n), len(values))
            t = int(missed[:k].sum())
            trace.append(
                EvidencePoint(
                    n=k,
                    misses=t,
                    log_e_pass=float(log_e_pass(t / deflation, k / deflation)),
                    log_e_fail=float(log_e_fail(t / deflation, k / deflation)),
                )
            )
            n *= 1.15
        last = trace[-1]
        failed = last.log_e_fail > math.log(40)
        outcome = "PASS" if last.log_e_pass > math.log(20) else "FAIL" if failed else "UNDECIDED"
        verdicts.append(
            SloVerdict(
                metric=metric,
                percentile=95,
                target_ms=TARGETS_MS[metric],
                outcome=outcome,
                log_e_pass=last.log_e_pass,
                log_e_fail=last.log_e_fail,
                n=last.n,
                misses=last.misses,
                deflation=deflation,
                requests_to_decide=None if outcome != "UNDECIDED" else 200,
                trace=tuple(trace),
            )
        )
    outcomes = {v.outcome for v in verdicts}
    overall = next((o for o in ("FAIL", "UNDECIDED") if o in outcomes), "PASS")
    overall = "VOID" if void else overall
    good = [
        r["error"] is None and all(v <= TARGETS_MS[m] for m in TARGETS_MS for v in latencies([r], m)) for r in judged
    ]
    window = (1.0, float(seconds))
    done = [r for r in judged if r["error"] is None]
    measurement = Measurement(
        kind=kind,
        rate_rps=rate_rps,
        seed=seed,
        workload_digest="w" * 64,
        started_at="2026-11-23T10:00:00+00:00",
        window_s=window,
        steady=True,
        saturated=False,
        n_sent=len(rows),
        n_judged=len(judged),
        errors={"reset": len(judged) - len(done)} if len(done) < len(judged) else {},
        metrics=metrics,
        throughput_rps=len(done) / (window[1] - window[0]),
        throughput_output_tps=sum(r["output_tokens"] for r in done) / (window[1] - window[0]),
        goodput_rps=sum(good) / (window[1] - window[0]),
        slo=tuple(counts),
        audit=Audit(
            offered_rps=len(rows) / seconds,
            achieved_rps=len(rows) / seconds,
            send_lateness_p50_ms=0.05,
            send_lateness_p99_ms=0.1,
            send_lateness_limit_ms=1.0,
            loop_lag_p99_ms=0.2,
            generator_cpu_share=0.04,
            connections_opened=12,
            stale_connections_replaced=0,
            steal_share=0.001,
            void_reasons=tuple(void),
        ),
        telemetry=Telemetry(rss_peak_bytes=int(2e7 * BYTES_PER_WEIGHT[knobs["variant"]] + 1e7 * knobs["slots"])),
        records_path=f"{folder}/requests.parquet",
        command=f"autotune bench {folder}",
        percentile_method="inverted_cdf",
    )
    reasons = tuple(f"{v.metric} P95 {v.outcome}" for v in verdicts)
    return Run(
        folder=folder, measurement=measurement, verdict=Verdict(outcome=overall, reasons=reasons, slo=tuple(verdicts))
    )


def quality_of(knobs, level, items, rng):
    tasks = []
    for task in ("cloze", "arithmetic"):
        reference = rng.random(items) < ACCURACY["f16"]
        flip = rng.random(items) < (0.01 + 1.2 * (ACCURACY["f16"] - ACCURACY[knobs["variant"]]))
        lost = int((reference & flip).sum())
        won = int((~reference & flip).sum() * 0.4)
        difference = (won - lost) / items
        half = 1.645 * math.sqrt(max(won + lost, 1)) / items
        tasks.append(
            QualityComparison(
                task=task,
                n=items,
                accuracy=float(reference.mean()) + difference,
                reference_accuracy=float(reference.mean()),
                difference=difference,
                difference_low=difference - half,
                difference_high=difference + half,
                lost=lost,
                won=won,
                margin=0.05,
                passed=difference - half > -0.05,
            )
        )
    violation = max(-t.margin - t.difference_low for t in tasks)
    return QualityVerdict(
        level=level, passed=violation < 0, agreement=0.97, tasks=tuple(tasks), violation=violation, reasons=()
    )


def capacity_rate(knobs):
    """Rate at about 80 % of the queue's limit."""
    step_s = 0.0005 * BYTES_PER_WEIGHT[knobs["variant"]] * (1 + 0.22 * knobs["slots"])
    step_s *= 1.15 if not knobs["flash_attention"] else 1.0
    return 0.8 * knobs["slots"] / (0.03 * (1 + 64 / knobs["micro_batch"]) + 23 * step_s)


def identity_of(knobs, text=""):
    return EngineIdentity(
        engine="llamacpp",
        version="xllamacpp 2026.10",
        argv=("llama-server", "--port", "{port}", "--parallel", str(knobs["slots"]), "--alias", f"a{text}"),
        env={"OMP_NUM_THREADS": "2"},
        model="smollm2-135m-instruct",
        model_digest="d" * 64,
        config_digest=ServingConfig("llamacpp", knobs).digest,
    )


def make_trial(root, number, changed, hostile):
    knobs = knobs_of(changed)
    folder = f"trials/{number:03d}"
    common = {"number": number, "knobs": knobs, "config_digest": ServingConfig("llamacpp", knobs).digest}
    if number == CRASHED:
        return TrialResult(
            trial=Trial(
                **common,
                state="infeasible",
                score=None,
                constraints={"engine": 1.0},
                seconds=6.5,
                failure="out_of_memory",
                why=f"The engine ran out of memory while loading.{hostile}",
            ),
            folder=folder,
            identity=identity_of(knobs, hostile),
            cold_start_s=None,
            expected_memory_bytes=5_000_000_000,
            capacity=None,
            runs=(),
            quality=None,
            quality_from=None,
            log_lines=(f"alloc: failed to allocate 4831838208 bytes{hostile}", "llama_init: out of memory"),
        )
    rate = capacity_rate(knobs)
    runs, probes = [], []
    for attempt, share in enumerate((0.9, 1.02, 1.12)):
        run = write_run(root, f"{folder}/hold-{attempt}", knobs, round(rate * share, 2), seconds=12, seed=attempt)
        runs.append(run)
        load = max((run.measurement.metrics[f"{m}_p95_ms"].value or math.inf) / t for m, t in TARGETS_MS.items())
        misses = max(c.misses for c in run.measurement.slo)
        probes.append(
            Probe(
                kind="hold",
                rate_rps=run.measurement.rate_rps,
                n=run.measurement.n_judged,
                misses=misses,
                load=load if math.isfinite(load) else None,
                passed=load <= 1,
            )
        )
    passed = [p.rate_rps for p in probes if p.passed]
    failed = [p.rate_rps for p in probes if not p.passed]
    score = max(passed) if passed else 0.6 * min(failed)
    quality = quality_of(knobs, "screen", 60, np.random.default_rng(number))
    naive = knobs["variant"] == "q4_0"
    return TrialResult(
        trial=Trial(
            **common,
            state="quality" if naive else "complete",
            score=score,
            constraints={"quality": quality.violation if naive else -0.01, "ttft": -0.1, "tpot": -0.2},
            seconds=41.0 + number,
            why="Its answers are worse than the margin allows." if naive else f"Held {score:.1f} requests/s.{hostile}",
        ),
        folder=folder,
        identity=identity_of(knobs, hostile),
        cold_start_s=1.25,
        expected_memory_bytes=300_000_000,
        capacity=Capacity(
            rate_rps=score,
            highest_passed_rps=max(passed) if passed else None,
            lowest_failed_rps=min(failed) if failed else None,
            raced=False,
            probes=(
                Probe(kind="ramp", rate_rps=round(rate, 2), n=80, misses=6, load=None, passed=True),
                *probes,
            ),
        ),
        runs=tuple(runs),
        quality=quality,
        quality_from=None,
        voided=2 if number == 3 else 0,
    )


def paired_gain(own, base):
    logs = np.log(np.array(own) / np.array(base))
    half = 4.303 * logs.std(ddof=1) / math.sqrt(len(logs))
    low, value, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
    return Estimate(
        value=value if math.isfinite(value) else None, low=low, high=high, n=len(logs), n_effective=len(logs)
    )


def make_study(root, *, outcome="tuned", until="winner", hostile="", name="quickstart", certify=True):
    """Writes a run folder. ``until`` trials: killed before the finals. ``hostile`` is put into every free text."""
    root.mkdir(parents=True, exist_ok=True)
    scenario = scenario_of(name, f"A small model on a laptop.{hostile}")
    (root / "scenario.yaml").write_text(f"name: {name}\ndescription: {json.dumps(scenario.description)}\n")
    with Ledger(root / "ledger.jsonl", clock=lambda: 1_780_000_000.0) as ledger:

        def record(step, result):
            ledger.once(step, lambda: result.model_dump(mode="json"))

        record(
            "study",
            StudyStart(
                scenario=scenario.to_dict(),
                scenario_digest=scenario.digest,
                scenario_file="quickstart.yaml",
                command=f"autotune tune quickstart.yaml{hostile}",
                started_at="2026-11-23T09:58:00+00:00",
                host=Host(
                    hostname_hash="5f3a",
                    cpu=f"Example CPU{hostile}",
                    cores=2,
                    memory_bytes=8 << 30,
                    gpus=(),
                    kernel="6.1",
                    governor=None,
                    python="3.11.9",
                    autotune_version="0.1.0",
                    packages={"xllamacpp": "2026.10"},
                ),
                engine_version="xllamacpp 2026.10",
                model_digests=dict.fromkeys(BYTES_PER_WEIGHT, "d" * 64),
                space=SPACE,
            ),
        )
        unloaded = write_run(root, "trials/ref/unloaded", DEFAULTS, 1.0, seconds=12, seed=99)
        record(
            "reference",
            Reference(
                identity=identity_of(DEFAULTS),
                unloaded=unloaded.measurement,
                unloaded_ms={m: unloaded.measurement.metrics[f"{m}_p50_ms"].value for m in ("ttft", "tpot", "e2e")},
                targets_ms=TARGETS_MS,
                accuracy={"cloze": 0.62, "arithmetic": 0.62},
                quality_file=None,
            ),
        )
        trials = [make_trial(root, number, changed, hostile) for number, changed in enumerate(TRIED)]
        for result in trials[: 5 if until == "trials" else None]:
            record(f"trial/{result.trial.number:03d}", result)
        if until == "trials":
            return root
        ranked = sorted((t.trial for t in trials if t.trial.feasible), key=lambda t: -t.score)
        finalists = [t.number for t in ranked[:2] if t.number != 0]
        scores = {number: [] for number in (0, *finalists)}
        for block in range(3):
            order = [0, *finalists] if block % 2 == 0 else [*reversed(finalists), 0]
            for position, number in enumerate(order):
                knobs = trials[number].trial.knobs
                score = capacity_rate(knobs) * float(np.random.default_rng([block, number]).normal(1.0, 0.05))
                folder = f"trials/{number:03d}/final-{block}"
                run = write_run(root, folder, knobs, round(score, 2), seconds=20, seed=1000 + block)
                scores[number].append(score)
                record(
                    f"finals/{block}/{number}",
                    FinalsRun(
                        block=block,
                        position=position,
                        trial=number,
                        seed=1000 + block,
                        score=score,
                        capacity=None,
                        runs=(run,),
                    ),
                )
        quality = {n: quality_of(trials[n].trial.knobs, "full", 600, np.random.default_rng(7 + n)) for n in finalists}
        for number, verdict in quality.items():
            record(f"quality/{number}", verdict)
        gains = {n: paired_gain(scores[n], scores[0]) for n in finalists}
        best = max((n for n in finalists if quality[n].passed), key=lambda n: gains[n].value)
        certified = None
        if certify and outcome == "tuned":
            rate = round(0.85 * float(np.mean(scores[best])), 2)
            knobs = trials[best].trial.knobs
            run = write_run(root, f"trials/{best:03d}/certify-0", knobs, rate, seconds=40, seed=4242)
            certified = Certification(trial=best, rate_rps=rate, run=run)
            record(f"certify/{best}/0", certified)
        tuned = outcome == "tuned"
        config = ServingConfig("llamacpp", trials[best].trial.knobs)
        winner = Winner(
            outcome=outcome,
            reason={
                "tuned": f"Trial {best} holds more than the defaults in every block.{hostile}",
                "keep_defaults": "The best challenger's gain is within the noise.",
                "none_feasible": "Every configuration misses a target.",
            }[outcome],
            objective="goodput",
            trial=best if tuned else 0 if outcome == "keep_defaults" else None,
            config=config.to_dict() if tuned else None,
            identity=identity_of(trials[best].trial.knobs, hostile) if tuned else None,
            default_config=ServingConfig("llamacpp", DEFAULTS).to_dict(),
            gain=gains[best] if tuned else None,
            score=float(np.mean(scores[best])) if tuned else None,
            default_score=float(np.mean(scores[0])),
            score_unit="requests/s",
            finalists=tuple(
                FinalistSummary(
                    trial=n,
                    knobs=trials[n].trial.knobs,
                    scores=tuple(scores[n]),
                    gain=gains.get(n),
                    changed_knobs=len(TRIED[n]),
                    quality_passed=quality[n].passed if n in quality else None,
                )
                for n in scores
            ),
            certified_rate_rps=certified.rate_rps if certified and certified.run.verdict.outcome == "PASS" else None,
            certification=certified.run.verdict if certified else None,
            certified=certified.run.measurement if certified else None,
            quality=quality[best] if tuned else None,
            nearest_miss="trial 004 came nearest: it missed ttft by 30%" if outcome == "none_feasible" else None,
            scenario_digest=scenario.digest,
            workload_digest="w" * 64,
            export={
                "llama-server": f"llama-server --model smollm2-q8_0.gguf --parallel 8{hostile}",
                "env": {"OMP_NUM_THREADS": "2"},
            },
        )
        record("winner", winner)
        ledger.once("tracked/mlflow", lambda: {"ok": False, "message": f"MLflow cannot be reached{hostile}"})
    return root


@pytest.fixture(scope="session")
def synthetic():
    """The generator, for tests that need a study of their own."""
    return SimpleNamespace(make_study=make_study, write_run=write_run, targets_ms=TARGETS_MS, crashed=CRASHED)


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory) -> Path:
    """A finished study. Read only."""
    return make_study(tmp_path_factory.mktemp("study") / "quickstart")
