"""What else could make a verdict need fewer requests? Each idea on the same simulated queues, at equal guarantee.

    python benchmarks/verdict_alternatives.py [--runs N]

A rule has one number that makes it stricter; it is raised until the rule is wrong in no cell more often than
allowed, and then the requests that it needs are compared. Ideas that are no rules of their own (control variates,
common random numbers, antithetic halves) are measured as what matters of them: the share of the variance of the
number of misses that they take away. Writes benchmarks/results/verdict_alternatives.{json,md}; what it taught: ADR 6.
"""

import argparse
import json
import math
import multiprocessing as mp
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import parallel_queues as pq
from calibrate import ALPHA, CAP, MISS_RATES, NAMES, RESULTS, UTILISATIONS, limits_of
from scipy import fft, stats

from harness.judge import FAIL_DEFLATION, FAIL_LEAST, OVERWHELMING_N, OVERWHELMING_SHARE, PASS_DEFLATION, looks
from harness.stats.sequential import log_e_fail, log_e_pass

FloatArray = npt.NDArray[np.float64]
SIZES = np.array(looks(CAP))
DECIDED = math.log(1 / ALPHA)
Q0 = 0.05
SEED = 77  # not that of the calibration: choosing and checking on the same runs would flatter the choice
STEPS = 10  # of strictness that are tried
LEAST_CYCLES = 10
STAKES = (0.25, 0.6, 0.95)  # of the most that may be bet against the share q0

# Allowed shares of wrong passes among the runs (500 of them), so that the exact bounds hold with some room.
AT_TARGET, IF_BAD = 0.074, 0.0045


# -- what a rule may look at: each of shape (runs, looks) --------------------------------------------------------


def correlations(x: FloatArray) -> FloatArray:
    centred = x - x.mean(axis=1, keepdims=True)
    n = x.shape[1]
    spectrum = fft.rfft(centred, fft.next_fast_len(2 * n, real=True), axis=1)
    covariance = fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :n]
    return np.asarray(covariance / np.maximum(covariance[:, :1], 1e-300))


def summed(rho: FloatArray, window_of: FloatArray | None = None) -> FloatArray:
    """Autocorrelation time with Sokal's window, or with that of another series."""
    deciding = 2 * np.cumsum(rho if window_of is None else window_of, axis=1) - 1
    closed = np.arange(rho.shape[1]) >= 5 * deciding
    lag = np.where(closed.any(axis=1), closed.argmax(axis=1), rho.shape[1] - 1)
    tau = 2 * np.cumsum(rho, axis=1) - 1
    return np.asarray(np.maximum(1.0, tau[np.arange(len(rho)), lag]))


def many_scales(x: FloatArray) -> FloatArray:
    """The largest of the times of x and of its means over 4, 16, 64, ... requests: noise hides slow waves."""
    n, best, size = x.shape[1], np.ones(len(x)), 1
    variance = np.maximum(x.var(axis=1), 1e-300)
    while n // size >= 24:
        means = x[:, n - n // size * size :].reshape(len(x), n // size, size).mean(axis=2)
        best = np.maximum(best, summed(correlations(means)) * size * means.var(axis=1) / variance)
        size *= 4
    return best


def exceedance_map() -> Callable[[FloatArray], FloatArray]:
    """Correlation of two exceedances of a 95 % quantile from that of two normal scores (bivariate normal law)."""
    grid = np.linspace(-0.999, 0.999, 201)
    z = stats.norm.ppf(1 - Q0)
    both = [stats.multivariate_normal.cdf([-z, -z], cov=[[1, r], [r, 1]]) for r in grid]
    mapped = (np.array(both) - Q0**2) / (Q0 * (1 - Q0))
    return lambda rho: np.interp(rho, grid, mapped)


def cycle_time(x: FloatArray, empty: npt.NDArray[np.bool_]) -> FloatArray:
    """Autocorrelation time from the sums over regeneration cycles, which begin where an arrival finds nobody."""
    n, tau = x.shape[1], np.full(len(x), np.inf)
    for run, (series, begins) in enumerate(zip(x, empty, strict=True)):
        starts = np.flatnonzero(begins)
        if starts.size > LEAST_CYCLES:
            centred = series - series.mean()
            sums = np.add.reduceat(centred, starts)
            tau[run] = max(1.0, float((sums**2).sum() / max(centred[starts[0] :] @ centred[starts[0] :], 1e-300)))
    return np.where(np.isfinite(tau), tau, float(n))


def features(latency: FloatArray, in_flight: FloatArray) -> dict[str, FloatArray]:
    mapped = exceedance_map()
    found: dict[str, list[FloatArray]] = {k: [] for k in ("log", "raw", "scales", "mapped", "in_flight", "cycles")}
    x = np.log(latency)
    for n in SIZES:
        rho = correlations(x[:, :n])
        found["log"].append(summed(rho))
        found["raw"].append(summed(correlations(latency[:, :n])))
        found["scales"].append(many_scales(x[:, :n]))
        found["mapped"].append(summed(mapped(rho), window_of=rho))
        found["in_flight"].append(summed(correlations(np.log1p(in_flight[:, :n]))))
        found["cycles"].append(cycle_time(x[:, :n], in_flight[:, :n] == 0))
    return {name: np.array(columns).T for name, columns in found.items()}


# -- the rules ---------------------------------------------------------------------------------------------------


def deflated(misses: npt.NDArray[Any], to_pass: FloatArray) -> FloatArray:
    return log_e_pass(misses / to_pass, SIZES / to_pass, Q0)


def tau_rule(name: str, seen: dict[str, FloatArray], strict: float, late: npt.NDArray[np.bool_]) -> FloatArray:
    misses = np.cumsum(late, axis=1)[:, SIZES - 1]
    return deflated(misses, np.maximum(1.0, strict * seen[name]))


def mixed_rule(seen: dict[str, FloatArray], strict: float, late: npt.NDArray[np.bool_]) -> FloatArray:
    """With a quarter of the weight (of the logarithm) on the memory of the number in flight."""
    tau = seen["log"] ** 0.75 * np.maximum(seen["log"], seen["in_flight"]) ** 0.25
    return deflated(np.cumsum(late, axis=1)[:, SIZES - 1], strict * tau)


def betting_rule(seen: dict[str, FloatArray], strict: float, late: npt.NDArray[np.bool_]) -> FloatArray:
    """Bets that the miss rate of a batch of ``strict`` x tau requests is below q0 (Waudby-Smith and Ramdas 2024).

    Wealth is the mean over fixed stakes of the product of 1 + stake (q0 - rate): a martingale at q0 for
    independent batches.
    """
    total = np.concatenate([np.zeros((len(late), 1)), np.cumsum(late, axis=1)], axis=1)
    wealth = np.empty((len(late), len(SIZES)))
    for look, n in enumerate(SIZES):
        size = np.maximum(1, np.ceil(strict * seen["log"][:, look])).astype(np.int64)
        ends = np.arange(1, n // size.min() + 1) * size[:, None]
        whole = ends <= n
        at = np.minimum(ends, n)
        row = np.arange(len(late))[:, None]
        rate = (total[row, at] - total[row, np.maximum(at - size[:, None], 0)]) / size[:, None]
        logs = [np.where(whole, np.log1p(stake / (1 - Q0) * (Q0 - rate)), 0.0).sum(axis=1) for stake in STAKES]
        wealth[:, look] = np.logaddexp.reduce(logs, axis=0) - math.log(len(STAKES))
    return wealth


Rule = Callable[[dict[str, FloatArray], float, npt.NDArray[np.bool_]], FloatArray]
RULES: dict[str, tuple[Rule, float, float]] = {
    "τ of log latency (adopted)": (partial(tau_rule, "log"), 2, 4),
    "τ of latency": (partial(tau_rule, "raw"), 2, 6),
    "τ of log latency, largest over scales": (partial(tau_rule, "scales"), 2, 4),
    "τ of the miss indicator, mapped from log latency": (partial(tau_rule, "mapped"), 2, 10),
    "τ of the number in flight": (partial(tau_rule, "in_flight"), 1, 3),
    "τ of log latency^¾ × in flight^¼": (mixed_rule, 1.5, 3),
    "regeneration cycles": (partial(tau_rule, "cycles"), 1, 6),
    "betting on batches of c τ": (betting_rule, 2, 8),
}


def fails(late: npt.NDArray[np.bool_], tau: FloatArray, *, before: bool) -> npt.NDArray[np.bool_]:
    """Looks at which FAIL is decided: by the adopted rule, or by 2 tau."""
    misses = np.cumsum(late, axis=1)[:, SIZES - 1]
    d = np.maximum(2.0, 2 * tau) if before else FAIL_DEFLATION * tau
    decided = log_e_fail(misses / d, SIZES / d, Q0) >= DECIDED
    overwhelming = (SIZES >= OVERWHELMING_N) & (misses >= OVERWHELMING_SHARE * SIZES)
    return np.asarray(decided & (before | (SIZES / d >= FAIL_LEAST) | overwhelming))


def first_decision(to_pass: FloatArray, failed: npt.NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """+1 PASS, -1 FAIL, 0 undecided; and the requests it took."""
    passes = to_pass >= DECIDED
    decided = passes | failed
    at, row = decided.argmax(axis=1), np.arange(len(passes))
    outcome = np.where(decided.any(axis=1), np.where(passes[row, at], 1.0, -1.0), 0.0)
    return outcome, np.where(outcome != 0, SIZES[at], np.inf)


# -- one cell ----------------------------------------------------------------------------------------------------

CELLS = [(law, utilisation) for law in NAMES for utilisation in UTILISATIONS]


def judged(task: tuple[str, float, int, dict[str, tuple[float, ...]]]) -> dict[str, list[list[float]]]:
    """Per rule and strictness: shares of wrong passes (at target, 10 %, 20 %), then what the others show."""
    law, utilisation, runs, tried = task
    drawn = pq.simulate(law, utilisation, CAP, runs, [SEED, sorted(pq.LAWS).index(law), round(100 * utilisation)])
    seen = features(drawn.latency, drawn.in_flight)
    late = [drawn.latency > limit for limit in limits_of(law, utilisation)]
    failed = {before: [fails(of, seen["log"], before=before) for of in late] for before in (True, False)}
    found: dict[str, list[list[float]]] = {}
    for name, ladder in tried.items():
        rule = RULES.get(name, RULES["τ of log latency (adopted)"])[0]
        found[name] = []
        for strict in ladder:
            rows = []
            for of, lost in zip(late, failed[name == "before"], strict=True):
                to_pass = rule(seen, strict, of)
                if name == "before":
                    d = np.maximum(2.0, 2 * seen["log"])
                    to_pass = deflated(np.cumsum(of, axis=1)[:, SIZES - 1], d)
                rows.append(first_decision(to_pass, lost))
            good, at, bad, worse = rows
            wrong = [float((outcome == 1).mean()) for outcome, _ in (at, bad, worse)]
            wrong_fails = [float((outcome == -1).mean()) for outcome, _ in (at, good)]
            right = [float((good[0] == 1).mean()), *(float((o == -1).mean()) for o, _ in (bad, worse))]
            medians = [float(min(CAP, np.median(n))) for _, n in (good, bad, worse)]
            found[name].append([*wrong, *wrong_fails, *right, *medians])
    return found


def holds(shares: FloatArray) -> bool:
    """shares: (cells, columns of `judged`)."""
    return bool((shares[:, 0] <= AT_TARGET).all() and (shares[:, 1:3] <= IF_BAD).all())


# -- variance that could be taken away ---------------------------------------------------------------------------


def workload(arrived: FloatArray, work: FloatArray) -> FloatArray:
    """Time in system of a single server fed with them (Lindley), work in seconds."""
    done = np.cumsum(work, axis=1)
    return np.asarray(done + np.maximum.accumulate(arrived - (done - work), axis=1) - arrived)


def shared_variance(a: FloatArray, b: FloatArray) -> float:
    return float(np.corrcoef(a, b)[0, 1] ** 2)


def variances(task: tuple[str, float, int]) -> dict[str, float]:
    """Of the number of misses in `CAP` requests, target at the true P95."""
    law, utilisation, runs = task
    limit = limits_of(law, utilisation)[MISS_RATES.index(0.05)]
    before = pq.settling(utilisation)
    shape = (runs, before + CAP)
    seed = [SEED, 1, sorted(pq.LAWS).index(law), round(100 * utilisation)]
    mean_gap = 1 / (utilisation * pq.CAPACITY[law])
    uniform = np.random.default_rng(seed).uniform(size=shape)

    def missed(gaps: FloatArray, service_seed: int, speed: float = 1.0) -> FloatArray:
        arrived = np.cumsum(gaps * speed, axis=1)  # a faster server is the same one with longer gaps
        _, answered = pq.LAWS[law](arrived, np.random.default_rng([*seed, service_seed]))
        return np.asarray(((answered - arrived)[:, before:] / speed > limit).sum(axis=1), dtype=np.float64)

    gaps, opposite = -mean_gap * np.log(uniform), -mean_gap * np.log1p(-uniform)
    other = np.random.default_rng([*seed, 9]).exponential(mean_gap, shape)
    mine = missed(gaps, 1)
    arrived = np.cumsum(gaps, axis=1)
    found = {
        "arrival rate": shared_variance(mine, arrived[:, -1] - arrived[:, before]),
        "antithetic": 1 + float(np.corrcoef(mine, missed(opposite, 2))[0, 1]),
        "common": float(
            np.var(mine - missed(gaps, 1, speed=1.05)) / (np.var(mine) + np.var(missed(other, 3, speed=1.05)))
        ),
        "common arrivals": float(
            np.var(mine - missed(gaps, 2, speed=1.05)) / (np.var(mine) + np.var(missed(other, 3, speed=1.05)))
        ),
    }
    known = {"arrival times": np.ones(shape)}
    if law.startswith("scheduler"):
        rng = np.random.default_rng([*seed, 1])  # the lengths, drawn as the scheduler draws them
        prompt_ms = pq.PROMPT_TOKEN_MS * rng.lognormal(math.log(pq.PROMPT_MEDIAN), pq.PROMPT_SIGMA, shape)
        known["arrival times and lengths"] = prompt_ms + rng.geometric(1 / pq.OUTPUT_MEAN, shape) * (
            pq.ITERATION_MS / pq.SLOTS + pq.SEQUENCE_MS
        )
    for what, work in known.items():
        best = 0.0
        for load in (0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98):
            time = workload(arrived, work * (load * mean_gap / work.mean()))[:, before:]
            best = max(best, shared_variance(mine, (time > np.quantile(time, 0.95)).sum(axis=1)))
        found[what] = best
    return found


# -- the report --------------------------------------------------------------------------------------------------


RULE_COLUMNS = (
    "worst wrong PASS at the target",
    "10 %",
    "20 %",
    "worst wrong FAIL at the target",
    "right PASS at 1 %",
    "requests",
    "right FAIL at 10 %",
    "requests",
    "right FAIL at 20 %",
    "requests",
)
VARIANCE_COLUMNS = (
    "arrival rate",
    "arrival times",
    "and lengths",
    "left by antithetic arrivals",
    "left in a difference of two configurations by common arrivals",
    "and common service",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    ladders = {name: tuple(np.geomspace(low, high, STEPS)) for name, (_, low, high) in RULES.items()}
    tried = {"before": (2.0,), **ladders}
    with mp.get_context("spawn").Pool(asked.workers) as pool:
        tasks = [(law, u, asked.runs, tried) for law, u in CELLS]
        cells = []
        for (law, u), cell in zip(CELLS, pool.imap(judged, tasks), strict=True):
            cells.append(cell)
            print(f"{NAMES[law]} at {u:g}", flush=True)
        varied = pool.map(variances, [(law, u, asked.runs) for law, u in CELLS], chunksize=1)

    lines = [
        "# What else could make a verdict need fewer requests",
        "",
        f"Written by `python benchmarks/verdict_alternatives.py`: {asked.runs} runs of each of {len(CELLS)} cells",
        f"(five servers, six utilisations), at most {CAP:,} requests. Every rule but the first is as strict as it",
        f"must be to pass wrongly in at most {AT_TARGET:.1%} of the runs with the target at the true P95 and",
        f"{IF_BAD:.2%} of those with a true miss rate of 10 or 20 %, in every cell. Requests: geometric mean over",
        f"cells of the median run, {CAP:,} where less than half decide.",
        "",
        "| rule | c | " + " | ".join(RULE_COLUMNS) + " |",
        "|---" * (2 + len(RULE_COLUMNS)) + "|",
    ]
    kept: dict[str, Any] = {}
    for name, ladder in tried.items():
        tables = np.array([[cell[name][step] for cell in cells] for step in range(len(ladder))])
        steps = [i for i in range(len(ladder)) if all(holds(later) for later in tables[i:])]
        step = steps[0] if steps and name != "before" else len(ladder) - 1
        rows = tables[step]
        worst, mean = rows.max(axis=0), rows.mean(axis=0)
        lengths = np.exp(np.log(rows[:, 8:]).mean(axis=0))
        strict = "2" if name == "before" else f"{ladder[step]:.2f}" if steps else f"> {ladder[step]:.0f}"
        title = "before: d = max(2, 2 τ), does not hold" if name == "before" else name
        shown = [title, strict, *(f"{100 * v:.1f} %" for v in worst[:4])]
        for share, length in zip(mean[5:8], lengths, strict=True):
            shown += [f"{100 * share:.0f} %", f"{length:,.0f}"]
        lines.append("| " + " | ".join(shown) + " |")
        kept[name] = {"c": ladder[step], "holds": bool(steps), "cells": rows.tolist()}
    lines += [
        "",
        f"Adopted for PASS: c = {PASS_DEFLATION:g}. FAIL is the adopted one in every row but the first:",
        f"c = {FAIL_DEFLATION:g} and at least {FAIL_LEAST:g} deflated requests.",
        "",
        "Share of the variance of the number of misses in 4,000 requests that is explained by what is known of the",
        "traffic, and variance that is left with pairs of runs (1: nothing gained). A test that used all of it would",
        "need 1 − share of the requests. Arrival times, lengths: through a single server fed with them.",
        "",
        "| server | utilisation | " + " | ".join(VARIANCE_COLUMNS) + " |",
        "|---" * (2 + len(VARIANCE_COLUMNS)) + "|",
    ]
    for (law, u), found in zip(CELLS, varied, strict=True):
        lengths_ = found.get("arrival times and lengths")
        shown = [NAMES[law], f"{u:g}", f"{found['arrival rate']:.2f}", f"{found['arrival times']:.2f}"]
        shown += ["–" if lengths_ is None else f"{lengths_:.2f}"]
        shown += [f"{found[key]:.2f}" for key in ("antithetic", "common arrivals", "common")]
        lines.append("| " + " | ".join(shown) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    (RESULTS / "verdict_alternatives.md").write_text(text, encoding="utf-8")
    kept["variance"] = {f"{law} {u:g}": found for (law, u), found in zip(CELLS, varied, strict=True)}
    (RESULTS / "verdict_alternatives.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
