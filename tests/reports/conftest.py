"""A synthetic study, step by step in its ledger; its runs are those of queue_runs.py."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from harness.ledger import Ledger
from harness.measurement import (
    EngineIdentity,
    Host,
    QualityComparison,
    QualityVerdict,
)
from harness.stats.intervals import ratio_interval
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
    StudyStart,
    TrialResult,
    Winner,
)

sys.path.insert(0, str(Path(__file__).parent))
from queue_runs import BYTES_PER_WEIGHT, TARGETS_MS, capacity_rate, write_run

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
        gains = {n: ratio_interval(list(zip(scores[n], scores[0], strict=True))) for n in finalists}
        best = max((n for n in finalists if quality[n].passed), key=lambda n: gains[n].value)
        certified = None
        if certify and outcome == "tuned":
            rate = round(0.6 * float(np.mean(scores[best])), 2)
            knobs = trials[best].trial.knobs
            run = write_run(root, f"trials/{best:03d}/certify-0", knobs, rate, seconds=90, seed=4242)
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
