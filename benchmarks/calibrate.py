"""How often is the verdict wrong, and how many requests does it need? Simulated queues whose truth is known.

    python benchmarks/calibrate.py [--quick] [--runs N] [--workers N]

Every cell of {server} x {utilisation} x {how often the target is truly missed} is played `--runs` times, up to
`CAP` requests each, and judged by `harness.judge.evidence` itself, beside the same test without deflation. Writes
benchmarks/results/calibration.{json,md,svg} (--quick: prints only) and exits 1 when a bound is broken. An
interrupted run is taken up where it was, unless what is calibrated has changed. `--truth` simulates again the
latencies that are exceeded with the asked probability, where no formula gives them.
"""

import argparse
import hashlib
import json
import multiprocessing as mp
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import filling
import numpy as np
import parallel_queues
from parallel_queues import LAWS, simulate

from harness import judge
from harness.observe import Target
from harness.stats import autocorrelation, intervals, sequential, steady
from harness.stats.autocorrelation import deflation, latency_time
from harness.stats.intervals import binomial_upper, percentile_interval
from harness.stats.sequential import log_e_fail, log_e_pass
from harness.stats.steady import steadiness
from queues import mmk_sojourn_quantile

ALPHA = 0.05
CAP = 4000
UTILISATIONS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
MISS_RATES = (0.01, 0.05, 0.10, 0.20)  # the target holds easily, exactly, not, not at all
RUNS = 2000
QUICK_RUNS, QUICK_UTILISATIONS = 1000, (0.3, 0.8, 0.95)
OVERLOADS = (1.1, 1.3)  # utilisations at which there is no steady state
OVERLOAD_REQUESTS = 1000
INTERVAL_REQUESTS = 1000
SEED = 20

NAMES = {
    "mm1": "M/M/1",
    "mm8": "M/M/8",
    "batch": "batch server",
    "scheduler": "continuous batching, TTFT",
    "scheduler_e2e": "continuous batching, E2E",
}

# Bounds of the exact one-sided 95 % upper limit of each rate.
FALSE_PASS_AT_TARGET = 2 * ALPHA
FALSE_PASS_IF_BAD = ALPHA / 5
FALSE_FAIL_AT_TARGET = 2 * ALPHA
FALSE_FAIL_IF_GOOD = ALPHA
FALSE_SATURATION = ALPHA
SATURATION_SEEN = 0.9  # of the runs 30 % above capacity

RESULTS = Path(__file__).parent / "results"
TRUTHS = RESULTS / "calibration_truth.json"
PARTIAL = RESULTS / "calibration.partial.jsonl"


def limits_of(law: str, utilisation: float) -> list[float]:
    """The latency that a share of each of `MISS_RATES` exceeds."""
    if law in {"mm1", "mm8"}:
        servers = {"mm1": 1, "mm8": 8}[law]
        return [mmk_sojourn_quantile(1 - miss, utilisation, servers) for miss in MISS_RATES]
    kept = json.loads(TRUTHS.read_text(encoding="utf-8"))
    return [row["latency"] for row in kept[f"{law} {utilisation:g}"]]


def long_simulation(law: str, utilisation: float) -> list[dict[str, float]]:
    """Latencies and the standard errors of their miss rates, from independent runs 4 to 10 million requests long."""
    n = max(4000, int(60 / (1 - utilisation) ** 2))
    parts = [simulate(law, utilisation, n, 500, [1, round(utilisation * 100), part]).latency for part in (0, 1)]
    latency = np.concatenate(parts)
    at = np.quantile(latency, 1 - np.array(MISS_RATES))
    return [
        {
            "miss_rate": miss,
            "latency": float(f"{limit:.6g}"),
            "standard_error": float(f"{(latency > limit).mean(axis=1).std(ddof=1) / len(latency) ** 0.5:.2g}"),
        }
        for miss, limit in zip(MISS_RATES, at, strict=True)
    ]


def measure(task: tuple[str, float, int]) -> dict[str, Any]:
    """All cells of one server at one utilisation."""
    law, utilisation, runs = task
    if utilisation > 1:
        return {"law": law, "utilisation": utilisation, "runs": runs, **overload(law, utilisation, runs)}
    limits = limits_of(law, utilisation)
    seed = [SEED, sorted(LAWS).index(law), round(utilisation * 100)]
    drawn = simulate(law, utilisation, CAP, runs, seed)
    outcomes = np.empty((len(limits), runs), dtype="<U9")
    needed = np.empty((len(limits), runs))
    covered = 0
    for run, latency in enumerate(drawn.latency):
        tau = judge.look_times(latency)
        for row, limit in enumerate(limits):
            found = judge.evidence(latency, Target("ttft", 95, limit), ALPHA, tau=tau)
            outcomes[row, run] = found.outcome
            needed[row, run] = found.n if found.outcome != "UNDECIDED" else np.inf
        covered += covers(latency[:INTERVAL_REQUESTS], limits[MISS_RATES.index(0.05)])
    windows = [
        steadiness(arrived, completed, (arrived[0] - 1e-9, arrived[INTERVAL_REQUESTS - 1]))
        for arrived, completed in zip(drawn.arrived, drawn.completed, strict=True)
    ]
    raw = uncorrected(drawn.latency, limits)
    return {
        "law": law,
        "utilisation": utilisation,
        "runs": runs,
        "interval_covers": covered,
        "called_saturated": sum(w.saturated for w in windows if w),
        "called_steady": sum(w.steady for w in windows if w),
        "cells": [
            {
                "miss_rate": miss,
                "seen": round(float((drawn.latency > limits[row]).mean()), 5),
                "passed": int((outcomes[row] == "PASS").sum()),
                "failed": int((outcomes[row] == "FAIL").sum()),
                "median_requests": finite(float(np.median(needed[row]))),
                "uncorrected_passed": raw[row][0],
                "uncorrected_failed": raw[row][1],
            }
            for row, miss in enumerate(MISS_RATES)
        ],
    }


def overload(law: str, utilisation: float, runs: int) -> dict[str, Any]:
    """Above what the server can do: is saturation seen, after a quarter as much warm-up?"""
    n = OVERLOAD_REQUESTS
    rng = np.random.default_rng([SEED, sorted(LAWS).index(law), round(utilisation * 100)])
    rate = utilisation * parallel_queues.CAPACITY[law]
    arrived = np.cumsum(rng.exponential(1 / rate, (runs, n + n // 4)), axis=1)
    completed, _ = LAWS[law](arrived, rng)
    windows = [steadiness(due, done, (due[n // 4 - 1], due[-1])) for due, done in zip(arrived, completed, strict=True)]
    return {"called_saturated": sum(w.saturated for w in windows if w), "cells": []}


def covers(latency: np.ndarray, truth: float) -> bool:
    """Whether the interval of the P95 holds the true one, as observe.py makes it."""
    found = percentile_interval(latency, 95, n_effective=latency.size / deflation(latency_time(latency)))
    low, high = found.low, found.high
    return (low is None or low <= truth) and (high is None or truth <= high)


def uncorrected(latency: np.ndarray, limits: list[float]) -> list[tuple[int, int]]:
    """Passes and fails of the same test on raw counts."""
    sizes = np.array(judge.looks(latency.shape[1]))
    decided = np.log(1 / ALPHA)
    counted = []
    for limit in limits:
        misses = np.cumsum(latency > limit, axis=1)[:, sizes - 1]
        passes, fails = log_e_pass(misses, sizes) >= decided, log_e_fail(misses, sizes) >= decided
        first = np.argmax(passes | fails, axis=1)
        row = np.arange(len(misses))
        counted.append((int(passes[row, first].sum()), int((fails & ~passes)[row, first].sum())))
    return counted


def finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


# -- what must hold ----------------------------------------------------------------------------------------------


def broken(rows: list[dict[str, Any]], passed: str = "passed", failed: str = "failed") -> list[str]:
    """The bounds that do not hold, in words."""
    found = []
    for row in rows:
        where = f"{NAMES[row['law']]} at {row['utilisation']:g}"
        for cell in row["cells"]:
            miss, runs = cell["miss_rate"], row["runs"]
            wrong_passes = {0.05: FALSE_PASS_AT_TARGET, 0.10: FALSE_PASS_IF_BAD, 0.20: FALSE_PASS_IF_BAD}
            wrong_fails = {0.01: FALSE_FAIL_IF_GOOD, 0.05: FALSE_FAIL_AT_TARGET}
            for kind, limits, count in (("PASS", wrong_passes, cell[passed]), ("FAIL", wrong_fails, cell[failed])):
                upper = binomial_upper(count, runs)
                if upper > limits.get(miss, 1.0):
                    found.append(
                        f"{where}, missed by {miss:.0%}: {count} of {runs} a wrong {kind}, "
                        f"upper bound {upper:.2%} > {limits[miss]:.0%}"
                    )
    return found


def broken_steadiness(rows: list[dict[str, Any]]) -> list[str]:
    found = []
    for row in rows:
        share = row["called_saturated"] / row["runs"]
        where = f"{NAMES[row['law']]} at {row['utilisation']:g}"
        if row["utilisation"] < 1 and share > FALSE_SATURATION:
            found.append(f"{where}: stable, called saturated in {share:.1%} of the runs")
        if row["utilisation"] == max(OVERLOADS) and share < SATURATION_SEEN:
            found.append(f"{where}: saturated, seen in {share:.1%} of the runs only")
    return found


# -- the report --------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        (
            "| server | utilisation | wrong PASS at the target | 10 % | 20 % | wrong FAIL at the target | 1 % "
            "| right PASS 1 % | requests | right FAIL 10 % | requests | right FAIL 20 % | requests "
            "| uncorrected: wrong PASS at the target | 10 % | 20 % |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not row["cells"]:
            continue
        good, at, bad, worse = row["cells"]

        def share(count: int, runs: int = row["runs"]) -> str:
            return f"{100 * count / runs:.1f} %"

        def median(cell: dict[str, Any]) -> str:
            return "–" if cell["median_requests"] is None else f"{cell['median_requests']:.0f}"

        shown = [
            NAMES[row["law"]],
            f"{row['utilisation']:g}",
            *(share(cell["passed"]) for cell in (at, bad, worse)),
            *(share(cell["failed"]) for cell in (at, good)),
            share(good["passed"]),
            median(good),
            share(bad["failed"]),
            median(bad),
            share(worse["failed"]),
            median(worse),
            *(share(cell["uncorrected_passed"]) for cell in (at, bad, worse)),
        ]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def other_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        (
            f"| server | utilisation | P95 interval of {INTERVAL_REQUESTS:,} requests holds the truth "
            "| called saturated | called steady |"
        ),
        "|---|---|---|---|---|",
    ]
    for row in rows:
        runs = row["runs"]
        covers_, steady_ = (
            f"{row[key] / runs:.1%}" if key in row else "–" for key in ("interval_covers", "called_steady")
        )
        lines.append(
            f"| {NAMES[row['law']]} | {row['utilisation']:g} | {covers_} | {row['called_saturated'] / runs:.1%} "
            f"| {steady_} |"
        )
    return "\n".join(lines)


def document(
    rows: list[dict[str, Any]], filled: list[dict[str, Any]], faults: list[str], faults_uncorrected: list[str]
) -> str:
    runs = rows[0]["runs"]
    return f"""# Calibration of the verdict

Written by `make calibrate`. α = {ALPHA:g}, P95 targets, at most {CAP:,} requests, {runs:,} runs per cell. "At the
target": the target is the true P95; 1, 10, 20 %: how often the target is truly missed. Requests: the median run,
– where less than half of the runs decide. Uncorrected: the same test on raw counts.

Bounds, each on the exact one-sided 95 % upper limit: wrong PASS {FALSE_PASS_AT_TARGET:.0%} at the target,
{FALSE_PASS_IF_BAD:.0%} at 10 and 20 %; wrong FAIL {FALSE_FAIL_AT_TARGET:.0%} at the target, {FALSE_FAIL_IF_GOOD:.0%}
at 1 %. Broken by the verdict: {len(faults)}. Broken by the uncorrected test: {len(faults_uncorrected)}.

{table(rows)}

Intervals and steadiness, on the first {INTERVAL_REQUESTS:,} requests of each run. Above a utilisation of 1 there
is no steady state.

{other_table(rows)}

{filling.document(filled)}
"""


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - only the full run draws

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "calibration"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(2, len(NAMES), figsize=(15, 6), sharex=True, sharey="row", layout="constrained")
    for column, (law, name) in enumerate(NAMES.items()):
        mine = [row for row in rows if row["law"] == law and row["cells"]]
        at = [row["utilisation"] for row in mine]
        errors, lengths = axes[0, column], axes[1, column]
        for index, (label, colour) in enumerate((("1 %", "C2"), ("at target", "C1"), ("10 %", "C3"), ("20 %", "C5"))):
            cells = [row["cells"][index] for row in mine]
            if index:
                upper = [100 * binomial_upper(c["passed"], row["runs"]) for c, row in zip(cells, mine, strict=True)]
                raw = [100 * c["uncorrected_passed"] / row["runs"] for c, row in zip(cells, mine, strict=True)]
                errors.plot(at, np.maximum(upper, 0.1), "o-", color=colour, label=f"{label}, upper bound")
                errors.plot(at, np.maximum(raw, 0.1), ":", color=colour, label=f"{label}, uncorrected")
            if index != 1:
                lengths.plot(at, [c["median_requests"] or np.nan for c in cells], "o-", color=colour, label=label)
        errors.axhline(100 * FALSE_PASS_AT_TARGET, color="C1", lw=0.7, ls="--")
        errors.axhline(100 * FALSE_PASS_IF_BAD, color="C3", lw=0.7, ls="--")
        errors.set(title=name, yscale="log", ylim=(0.1, 100))
        lengths.set(xlabel="utilisation", yscale="log")
    axes[0, 0].set_ylabel("wrong PASS, % of runs (dashed: bounds)")
    axes[1, 0].set_ylabel("median requests to decide")
    axes[0, -1].legend(fontsize=7)
    axes[1, -1].legend(fontsize=7, title="truly missed by")
    figure.savefig(path, metadata={"Date": None})


# -- running -----------------------------------------------------------------------------------------------------


def digest() -> str:
    """Of everything whose change would change the result."""
    modules = (judge, autocorrelation, sequential, intervals, steady, parallel_queues, filling, sys.modules[__name__])
    return hashlib.sha256(b"".join(Path(str(m.__file__)).read_bytes() for m in modules)).hexdigest()[:16]


def done_before(wanted: Iterable[tuple[str, float, int]], stamp: str) -> dict[tuple[str, float, int], dict[str, Any]]:
    if not PARTIAL.exists():
        return {}
    lines = [json.loads(line) for line in PARTIAL.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    rows = {(row["law"], row["utilisation"], row["runs"]): row for row in lines if row["digest"] == stamp}
    return {task: rows[task] for task in wanted if task in rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a part of the cells, in about two minutes")
    parser.add_argument("--runs", type=int, help="of each cell")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--truth", action="store_true", help="simulate the true latencies again")
    asked = parser.parse_args()
    started = time.monotonic()

    with mp.get_context("spawn").Pool(asked.workers) as pool:
        if asked.truth:
            keys = [(law, u) for law in NAMES if law not in {"mm1", "mm8"} for u in UTILISATIONS]
            found = pool.starmap(long_simulation, keys, chunksize=1)
            kept = {f"{law} {u:g}": rows for (law, u), rows in zip(keys, found, strict=True)}
            TRUTHS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        runs = asked.runs or (QUICK_RUNS if asked.quick else RUNS)
        utilisations = (*(QUICK_UTILISATIONS if asked.quick else UTILISATIONS), *OVERLOADS)
        tasks = [(law, u, runs) for law in NAMES for u in utilisations]
        stamp = digest()
        filling_cells = pool.map_async(filling.fill, filling.CELLS, chunksize=1)
        rows = done_before(tasks, stamp)
        left = sorted((task for task in tasks if task not in rows), key=lambda task: -task[1])
        for row in pool.imap_unordered(measure, left):
            rows[row["law"], row["utilisation"], row["runs"]] = row
            with PARTIAL.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"digest": stamp, **row}) + "\n")
            seconds = time.monotonic() - started
            print(
                f"{len(rows)}/{len(tasks)} {NAMES[row['law']]} at {row['utilisation']:g}, {seconds:.0f} s", flush=True
            )

        filled = filling_cells.get()

    ordered = [rows[task] for task in tasks]
    faults = broken(ordered) + broken_steadiness(ordered) + filling.broken(filled)
    faults_uncorrected = broken(ordered, "uncorrected_passed", "uncorrected_failed")
    if not faults_uncorrected:
        faults.append("the uncorrected test holds every bound: this suite can tell nothing")
    if not filling.broken(filled, "nothing_left_out"):
        faults.append("nothing need be left out while an engine fills: these cells can tell nothing")
    text = document(ordered, filled, faults, faults_uncorrected)
    print(text)
    if not asked.quick:
        result = {"alpha": ALPHA, "cap": CAP, "runs": runs, "digest": stamp}
        result |= {"rows": ordered, "filling": filled, "broken": faults}
        (RESULTS / "calibration.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "calibration.md").write_text(text, encoding="utf-8")
        plot(ordered, RESULTS / "calibration.svg")
    PARTIAL.unlink(missing_ok=True)
    for fault in faults:
        print(f"BROKEN  {fault}")
    print(f"{len(faults)} bounds broken; the uncorrected test breaks {len(faults_uncorrected)}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
