"""Every configuration of one llama.cpp space, measured: the recorded table that `make bench-search` replays.

    benchmarks/llamacpp_table.py [--rounds N] [--seconds S] [--fresh]

Each is launched, warmed up and loaded by a dozen users who ask again as soon as they are answered: its score is the
answers per second, its constraints are the P95 of TTFT and TPOT over their targets. A closed loop, because a few
seconds of it tell a rate within some per cent; a capacity would take minutes, times 160. Every round measures all in
another random order, so that drift of the machine is noise and no pattern. Accuracy is judged once for each precision
of the weights. What is measured is kept in runs/llamacpp-table/measured.jsonl: an interrupted run goes on, --seconds
stops one in time. Writes results/llamacpp_table.json.
"""

import argparse
import json
import random
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from harness.bench import Loaded, session
from harness.errors import ConfigurationImpossible, TrialInfeasible, TrialVoid
from harness.host import fingerprint
from harness.load.records import LiveCounters
from harness.quality.runner import ReferenceAnswers, judge_quality
from harness.stats.intervals import METHOD
from harness.subject import Subject, prepare
from scenarios.load import load
from scenarios.space import SearchSpace, ServingConfig
from scenarios.spec import Scenario
from tuners.laboratory import Laboratory
from tuners.results import Reference
from tuners.settle import resolved

RESULTS = Path(__file__).parent / "results" / "llamacpp_table.json"
RUN = Path("runs/llamacpp-table")
MEASURED = RUN / "measured.jsonl"
KNOBS: dict[str, list[Any]] = {
    "variant": ["F16", "Q8_0", "Q4_1", "Q4_0"],
    "slots": [1, 2, 4, 8, 16],
    "ubatch": [64, 512],
    "threads": [1, 2],
    "kv_layout": ["unified", "split"],
}
USERS = 12
HOLD_S = 6.0
WARMUP_S = 1.0  # of the engine, and of the hold
SEED = 10_000
VOID_TRIES = 6
BEYOND = 3.0  # a violation says "far too slow" there, not how far
Row = dict[str, Any]


class Silent:
    """An observer that is told and tells nothing."""

    def begin(self, what: str, seconds: float | None) -> None: ...

    def live(self, counters: LiveCounters) -> None: ...

    def note(self, line: str) -> None: ...


def scenario() -> Scenario:
    """The quickstart's texts and promises over a wider space, from users instead of at a rate."""
    document = load("quickstart").to_dict()
    document["name"] = "llamacpp-table"
    document["objective"] = "meet"
    document["workload"]["arrivals"] = {"process": "closed", "concurrency": USERS}
    document["search"]["knobs"] = KNOBS
    document["budget"].update(warmup_s=WARMUP_S, hold_s=HOLD_S, holds=1)
    return Scenario.model_validate(document)


def reference_of(laboratory: Laboratory) -> Reference:
    """Words, targets and reference answers: settled by the first run, kept for all that go on."""
    path = RUN / "reference.json"
    if not path.exists():
        path.write_text(laboratory.reference().model_dump_json(indent=1), encoding="utf-8")
    return Reference.model_validate_json(path.read_text(encoding="utf-8"))


def measure(subject: Subject, config: ServingConfig, number: int) -> Row:
    """One configuration in round ``number``, as a trial would see it; void measurements are repeated."""
    row: Row = {"knobs": dict(config.knobs), "round": number, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    folder = RUN / "engine"
    for attempt in range(VOID_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        row["voided"] = attempt
        started = time.monotonic()
        try:
            with session(subject, config, folder) as s:
                s.warm_up(SEED + 900)
                row |= of_users(s.closed(HOLD_S, SEED + number, "users"))
                row["launch_s"] = round(s.running.cold_start_s, 3)
        except TrialVoid as err:
            print(f"  void, repeated: {err}", flush=True)
            continue
        except TrialInfeasible as err:
            row |= {"state": "infeasible", "failure": err.failure, "why": str(err).splitlines()[0]}
        shutil.rmtree(folder)
        return row | {"seconds": round(time.monotonic() - started, 3)}
    return row | {"state": "void"}


def of_users(loaded: Loaded) -> Row:
    """``violation``: P95 / target - 1 of every target. Who was still waiting as the loop ended is not judged."""
    m, violation = loaded.measurement, {}
    for count in m.slo:
        latency_ms = loaded.observed.series[count.metric]
        cut_off = np.isinf(latency_ms) & (np.arange(len(latency_ms)) >= len(latency_ms) - USERS)
        p95_ms = np.quantile(latency_ms[~cut_off], count.percentile / 100, method=METHOD)
        violation[count.metric] = round(min(float(p95_ms) / count.target_ms - 1, BEYOND), 4)
    return {
        "state": "complete",
        "score_rps": round(m.throughput_rps, 4),
        "violation": violation,
        "output_tps": round(m.throughput_output_tps, 2),
        "n": m.n_judged,
        "errors": m.errors,
        "steal_share": m.audit.steal_share,
    }


def accuracy(subject: Subject, space: SearchSpace, reference: Reference) -> dict[str, Row]:
    """Every item of every quality task, for each precision of the weights."""
    assert reference.quality_file is not None
    answers = ReferenceAnswers.load(RUN / reference.quality_file)
    found = {}
    for variant in space["variant"].choices:
        folder = RUN / f"quality-{variant}"
        with session(subject, space.complete({"variant": variant}), folder) as s:
            verdict = judge_quality(
                s.running.endpoint,
                subject.scenario.quality,
                answers,
                level="full",
                answers_path=folder / "answers.json",
                concurrency=4,
            )
        found[str(variant)] = {
            "passed": verdict.passed,
            "violation": verdict.violation,
            "accuracy": {task.task: task.accuracy for task in verdict.tasks},
        }
    return found


def plannable(subject: Subject, space: SearchSpace) -> list[ServingConfig]:
    """Every configuration that the engine does not refuse to plan."""
    configs = []
    for config in space.enumerate():
        try:
            subject.plan(config)
        except ConfigurationImpossible:
            continue
        configs.append(config)
    return configs


def rest(configs: list[ServingConfig], rows: list[Row], number: int) -> list[ServingConfig]:
    """Those that round ``number`` has not measured yet, in its order."""
    done = {ServingConfig(configs[0].engine, r["knobs"]).digest for r in rows if r["round"] == number}
    return [c for c in random.Random(number).sample(configs, len(configs)) if c.digest not in done]


def keep(rows: list[Row], row: Row) -> None:
    rows.append(row)
    with MEASURED.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def line(row: Row, space: SearchSpace) -> str:
    knobs = " ".join(f"{knob.name}={row['knobs'][knob.name]}" for knob in space.free)
    said = f"{row['score_rps']:6.2f} requests/s" if row["state"] == "complete" else row["state"]
    return f"{said}  {row.get('violation', '')}  {row.get('seconds', 0):5.1f} s  voided {row['voided']}  {knobs}"


def document(
    subject: Subject, space: SearchSpace, reference: Reference, rows: list[Row], quality: dict[str, Row]
) -> str:
    """One line for each measurement, so that a diff of the file can be read."""
    head = {
        "host": fingerprint().model_dump(mode="json", exclude={"hostname_hash", "kernel"}),
        "engine": subject.engine_version,
        "scenario": subject.scenario.to_dict(),
        "targets_ms": reference.targets_ms,
        "default": dict(space.default().knobs),
        "quality": quality,
    }
    parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    listed = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    return "{\n" + ",\n".join([*parts, f' "rows": [\n{listed}\n ]']) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each configuration")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long; calling again goes on")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two measurements, for others")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured")
    asked = parser.parse_args()
    if asked.fresh:
        shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + asked.seconds
    subject = prepare(scenario(), RUN, Silent(), build=True)
    space = subject.space().narrowed({name: tuple(choices) for name, choices in KNOBS.items()})
    reference = reference_of(Laboratory(subject, space))
    subject = resolved(subject, reference)
    rows = [json.loads(text) for text in MEASURED.read_text(encoding="utf-8").splitlines()] if MEASURED.exists() else []
    configs = plannable(subject, space)
    for number in range(1, asked.rounds + 1):
        for config in rest(configs, rows, number):
            if time.monotonic() > until:
                break
            keep(rows, measure(subject, config, number))
            time.sleep(asked.pause)
            print(f"{len(rows):4d} {line(rows[-1], space)}", flush=True)
    RESULTS.write_text(document(subject, space, reference, rows, accuracy(subject, space, reference)), encoding="utf-8")
    print(f"{len(rows)} measurements of {len(configs)} configurations: {RESULTS}")


if __name__ == "__main__":
    main()
