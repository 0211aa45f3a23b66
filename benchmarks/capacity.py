"""How well the capacity search finds the capacity of queues whose capacity is known, and at what cost.

Every cell of {law} x {tightness of the target} x {goodness of the first guess} is searched --runs times, and once
as often by the usual bisection with 1000 requests a probe. Writes results/capacity.json, .md and .svg, prints the
table, and exits 1 when a target is missed by all runs together. Cells that are done are kept: an interrupted run
goes on; --fresh forgets.
"""

import argparse
import hashlib
import inspect
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np

import queues
from queues import MD1, Batch, Law, MMk, Scheduler
from tuners import belief, capacity
from tuners.belief import Allowed
from tuners.results import Probe

RESULTS = Path(__file__).parent / "results"
LAWS: tuple[Law, ...] = (MMk(), MMk(8), MD1(), Batch(), Scheduler())
TIGHTNESS = (3.0, 5.0, 8.0)  # P95 target / P95 of an idle server
GUESSES = (0.125, 1.2, 4.0)  # first guess / capacity
RUNS, QUICK_RUNS = 300, 24
QUICK_SLACK = 1.3  # so few runs scatter

MEDIAN_ERROR, WITHIN, ABOVE, COST = 0.05, 0.95, 0.05, 0.40  # what is asked of all runs together
WIDE, HIGH = 0.15, 1.05

PRECISION = 0.075  # relative standard error at which a search ends
MOST_HOLDS = 14
PERCENTILE = 95

BISECTION_REQUESTS = 1000  # a probe of the usual bisection
BISECTION_WIDTH = 1.025  # its last bracket: half of the median error that is asked for
BISECTION_MOST = 40


@dataclass(frozen=True, slots=True)
class Cell:
    law: Law
    tightness: float
    guess: float

    @property
    def name(self) -> str:
        return f"{self.law.name} x{self.tightness:g} guess {self.guess:g}"


class Simulated:
    """`capacity.Prober` on a law. Counts the requests that an engine would have been sent."""

    RAMP_REQUESTS = 300
    FIRST_LOOK, GROWTH, MOST = 60, 1.25, 800  # requests of a hold at its looks
    FIRST_PASS = 200  # a queue that begins empty passes too easily
    WARMUP = 0.15  # share of a hold that is not judged
    CLEAR, SLACK = 2.5, 0.1  # standard errors and log load beyond which a hold is decided
    SATURATED = 0.35  # of the allowed wait: a server on which all wait so long is never idle
    FIRST_REQUESTS = 8

    def __init__(self, law: Law, target_s: float, rng: np.random.Generator) -> None:
        self.law, self.target_s, self.rng = law, target_s, rng
        self.sent = 0
        self.idle_s = math.inf

    @property
    def allowed(self) -> Allowed:
        idle_s = self.idle_s if math.isfinite(self.idle_s) else 0.0
        return Allowed(self.target_s, max(0.0, self.target_s - idle_s))

    def _learn_idle(self, latency_s: queues.Floats) -> None:
        self.idle_s = min(self.idle_s, float(np.median(latency_s[: self.FIRST_REQUESTS])))

    def ramp(self, start_rps: float, end_rps: float, attempt: int) -> capacity.Ramp:
        """Ends as `harness.bench.Session.ramp` does: once a fifth of all its requests is known to have missed."""
        del attempt
        growth = (end_rps - start_rps) / self.RAMP_REQUESTS
        due = queues.ramp(start_rps, end_rps, math.log(end_rps / start_rps) / growth, self.rng)
        latency = self.law.serve(due, self.rng).ttft_s
        missed = latency > self.target_s
        known = due + np.minimum(latency, self.target_s)
        most = max(8, len(due) // 5)
        end = np.sort(known[missed])[most - 1] if missed.sum() >= most else math.inf
        self.sent += int((due <= end).sum())
        told = known <= end
        self._learn_idle(latency)
        return capacity.Ramp((start_rps * np.exp(growth * due))[told], missed[told], growth)

    def hold(self, rate_rps: float, attempt: int) -> Probe:
        """From empty; ends as soon as it is decided, at the latest after MOST requests."""
        del attempt
        due = queues.poisson(rate_rps, 2 * self.MOST, self.rng)
        served = self.law.serve(due, self.rng)
        size = float(self.FIRST_LOOK)
        while True:
            n = min(int(size), self.MOST)
            judged = served.ttft_s[int(self.WARMUP * n) : n]
            load = capacity.log_load(judged, self.target_s, PERCENTILE)
            if n == self.MOST or self._decided(load, served.ttft_s[:n], rate_rps):
                break
            size *= self.GROWTH
        now = due[n - 1] + min(served.ttft_s[n - 1], self.target_s)
        self.sent += int((due <= now).sum())
        self._learn_idle(served.ttft_s)
        limit_rps, limit_n = self._limit(due, served, n, now)
        return Probe(
            kind="hold",
            rate_rps=rate_rps,
            n=len(judged),
            misses=int((judged > self.target_s).sum()),
            load=math.exp(load.log_load),
            passed=load.log_load <= 0,
            load_se=load.se,
            deflation=load.deflation,
            limit_rps=limit_rps,
            limit_n=limit_n,
        )

    def _decided(self, load: capacity.Load, latency_s: queues.Floats, rate_rps: float) -> bool:
        fails = load.log_load - self.CLEAR * load.se
        missed = int((latency_s > self.target_s).sum())
        if fails > self.SLACK or (fails > 0 and missed > self.MOST * (1 - PERCENTILE / 100)):
            return True
        waiting = rate_rps * max(0.0, self.target_s * math.exp(load.log_load) - self.target_s + self.allowed.wait_s)
        short = float(belief.shortfall(np.array(waiting), len(latency_s)))
        passes = load.log_load + short + self.CLEAR * math.hypot(load.se, 0.5 * short)
        return len(latency_s) >= self.FIRST_PASS and passes < -self.SLACK

    def _limit(self, due: queues.Floats, served: queues.Served, n: int, now: float) -> tuple[float | None, int]:
        """Completions/s over the last two thirds, if everybody waited."""
        start = n // 3
        allowed = self.allowed
        busy = allowed.target_s - (1 - self.SATURATED) * allowed.wait_s
        done = int(((served.done_s > due[start]) & (served.done_s <= now)).sum())
        if done < 20 or np.percentile(served.ttft_s[start:n], 5) <= busy:
            return None, 0
        return done / (now - due[start]), done


def bisected(law: Law, target_s: float, guess_rps: float, rng: np.random.Generator) -> tuple[float, int]:
    """The usual way: doubling or halving from the guess to a bracket, then geometric bisection. Rate, requests."""
    low, high, rate, probes = 0.0, math.inf, guess_rps, 0
    while probes < BISECTION_MOST and high > BISECTION_WIDTH * low:
        probes += 1
        latency = law.serve(queues.poisson(rate, BISECTION_REQUESTS, rng), rng).ttft_s
        if np.percentile(latency, PERCENTILE) <= target_s:
            low = rate
        else:
            high = rate
        rate = 2 * low if math.isinf(high) else high / 2 if low == 0 else math.sqrt(low * high)
    return rate, probes * BISECTION_REQUESTS


def measured(task: tuple[Cell, float, float, int]) -> tuple[str, dict[str, Any]]:
    """All runs of one cell."""
    cell, target_s, truth_rps, runs = task
    found, usual = [], []
    for run in range(runs):
        seed = [run, *hashlib.sha256(cell.name.encode()).digest()[:8]]
        prober = Simulated(cell.law, target_s, np.random.default_rng([*seed, 1]))
        guess = cell.guess * truth_rps
        told = capacity.estimate(prober, holds=MOST_HOLDS, guess_rps=guess, precision=PRECISION)
        holds = sum(p.kind == "hold" for p in told.probes)
        low, high = told.rate_low_rps or 0.0, told.rate_high_rps or 0.0
        found.append((told.rate_rps / truth_rps, low / truth_rps, high / truth_rps, prober.sent, holds))
        rate, sent = bisected(cell.law, target_s, guess, np.random.default_rng([*seed, 2]))
        usual.append((rate / truth_rps, sent))
    ratio, low, high, sent, holds = np.array(found).T
    other, other_sent = np.array(usual).T
    return cell.name, {
        "law": cell.law.name,
        "tightness": cell.tightness,
        "guess": cell.guess,
        "target_s": target_s,
        "capacity_rps": truth_rps,
        "utilisation": truth_rps / cell.law.max_rps,
        "runs": runs,
        "ratios": [round(float(x), 4) for x in ratio],
        "bisection_ratios": [round(float(x), 4) for x in other],
        "requests": float(sent.mean()),
        "bisection_requests": float(other_sent.mean()),
        "holds": float(holds.mean()),
        "interval_covers": float(((low <= 1) & (high >= 1)).mean()),
    }


@dataclass(frozen=True, slots=True)
class Score:
    """Of the runs of some cells together."""

    median_error: float
    within: float
    above: float

    @classmethod
    def of(cls, ratios: np.ndarray) -> "Score":
        off = np.abs(ratios - 1)
        return cls(float(np.median(off)), float((off <= WIDE).mean()), float((ratios > HIGH).mean()))

    def __str__(self) -> str:
        return f"median error {self.median_error:.1%}, within 15 % {self.within:.1%}, above +5 % {self.above:.1%}"

    def missed(self, slack: float = 1.0) -> list[str]:
        checks = {
            f"median error {self.median_error:.1%} > {MEDIAN_ERROR:.0%}": self.median_error > slack * MEDIAN_ERROR,
            f"{self.within:.1%} < {WITHIN:.0%} of runs within {WIDE:.0%}": 1 - self.within > slack * (1 - WITHIN),
            f"{self.above:.1%} > {ABOVE:.0%} of runs above the truth by more than 5 %": self.above > slack * ABOVE,
        }
        return [text for text, broken in checks.items() if broken]


def pooled(cells: list[dict[str, Any]], of: str = "ratios") -> Score:
    return Score.of(np.concatenate([cell[of] for cell in cells]))


def cost(cells: list[dict[str, Any]]) -> float:
    return float(sum(c["requests"] for c in cells) / sum(c["bisection_requests"] for c in cells))


def table(cells: list[dict[str, Any]]) -> str:
    head = (
        "| law | target / idle P95 | utilisation | guess / truth | median error | within 15 % | above +5 % "
        "| interval covers | holds | requests | of bisection | bisection: median error | above +5 % |"
    )
    rows = [head, "|" + "---|" * 13]
    for c in cells:
        own, usual = pooled([c]), pooled([c], "bisection_ratios")
        rows.append(
            f"| {c['law']} | {c['tightness']:g} | {c['utilisation']:.2f} | {c['guess']:g} | {own.median_error:.1%} "
            f"| {own.within:.0%} | {own.above:.1%} | {c['interval_covers']:.0%} | {c['holds']:.1f} "
            f"| {c['requests']:.0f} | {cost([c]):.0%} | {usual.median_error:.1%} | {usual.above:.0%} |"
        )
    return "\n".join(rows)


def summary(cells: list[dict[str, Any]]) -> list[str]:
    own, usual = pooled(cells), pooled(cells, "bisection_ratios")
    runs = sum(c["runs"] for c in cells)
    return [f"search, {runs} runs: {own}, at {cost(cells):.0%} of the requests of bisection", f"bisection: {usual}"]


def misses(cells: list[dict[str, Any]], slack: float = 1.0) -> list[str]:
    """What is asked of all runs together and is missed. ``slack``: so many times the error, cost and risk will do."""
    found = pooled(cells).missed(slack)
    if cost(cells) > slack * COST:
        found.append(f"{cost(cells):.0%} > {COST:.0%} of the requests of bisection")
    return found


def by_law(cells: list[dict[str, Any]]) -> list[str]:
    """The same for every law by itself: not asked, but worth knowing."""
    lines = []
    for law in dict.fromkeys(c["law"] for c in cells):
        own = [c for c in cells if c["law"] == law]
        short = pooled(own).missed()
        lines.append(
            f"{law} by itself: {pooled(own)}, at {cost(own):.0%}" + (" (short of the target)" if short else "")
        )
    return lines


def plot(cells: list[dict[str, Any]]) -> str:
    """SVG: per cell, the 5 to 95 % range, the middle half and the median of told / true; bisection in grey below."""
    left, row, width = 190, 26, 520
    height = 60 + row * len(cells)

    def x(ratio: float) -> float:
        return left + width * (min(max(ratio, 0.7), 1.4) - 0.7) / 0.7

    size = f'width="{left + width + 30}" height="{height}" font-family="sans-serif" font-size="11"'
    title = "capacity told / true: search blue, bisection grey; 5–95 %, middle half, median"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><rect width="100%" height="100%" fill="white"/>',
        f'<rect x="{x(0.85):.1f}" y="20" width="{x(1.15) - x(0.85):.1f}" height="{height - 50}" fill="#eef6ee"/>',
        f'<rect x="{x(0.95):.1f}" y="20" width="{x(1.05) - x(0.95):.1f}" height="{height - 50}" fill="#d9ecd9"/>',
        f'<text x="{left}" y="14">{title}</text>',
    ]
    for tick in (0.7, 0.85, 0.95, 1.0, 1.05, 1.15, 1.3):
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="20" y2="{height - 30}" stroke="#bbb"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 14}" text-anchor="middle">{tick:g}</text>')
    for i, cell in enumerate(cells):
        y = 32 + row * i
        label = f"{cell['law']} ×{cell['tightness']:g}, guess {cell['guess']:g}"
        parts.append(f'<text x="{left - 8}" y="{y + 6}" text-anchor="end">{label}</text>')
        for key, colour, drop in (("ratios", "#1f5fa8", 0), ("bisection_ratios", "#999", 9)):
            a, b, middle, c, d = (x(float(q)) for q in np.quantile(cell[key], [0.05, 0.25, 0.5, 0.75, 0.95]))
            at = y + drop
            parts.append(f'<line x1="{a:.1f}" x2="{d:.1f}" y1="{at}" y2="{at}" stroke="{colour}"/>')
            parts.append(f'<line x1="{b:.1f}" x2="{c:.1f}" y1="{at}" y2="{at}" stroke="{colour}" stroke-width="5"/>')
            parts.append(f'<circle cx="{middle:.1f}" cy="{at}" r="2.5" fill="white" stroke="{colour}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def digest() -> str:
    """Of everything that a cell's result depends on."""
    texts = [Path(module.__file__ or "").read_text(encoding="utf-8") for module in (queues, capacity, belief)]
    texts += [inspect.getsource(part) for part in (Cell, Simulated, bisected, measured)]
    texts.append(repr((PRECISION, MOST_HOLDS, PERCENTILE, BISECTION_REQUESTS, BISECTION_WIDTH, BISECTION_MOST)))
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} runs a cell; writes nothing")
    parser.add_argument("--fresh", action="store_true", help="measure the cells again that are already done")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    runs = QUICK_RUNS if asked.quick else asked.runs
    sources = digest()
    path = RESULTS / "capacity.json"
    done: dict[str, Any] = {}
    if path.exists() and not (asked.quick or asked.fresh):
        kept = json.loads(path.read_text(encoding="utf-8"))
        done = {k: v for k, v in kept["cells"].items() if kept["digest"] == sources and v["runs"] == runs}
    started = time.monotonic()
    cells = [Cell(law, tightness, guess) for law in LAWS for tightness in TIGHTNESS for guess in GUESSES]
    tasks = []
    for cell in cells:
        target_s = cell.tightness * queues.idle_latency_s(cell.law, PERCENTILE)
        tasks.append((cell, target_s, queues.capacity_rps(cell.law, target_s, PERCENTILE).value, runs))
    with Pool(asked.processes) as pool:
        for name, result in pool.imap_unordered(measured, [t for t in tasks if t[0].name not in done]):
            done[name] = result
            print(f"{len(done):3d} of {len(cells)}  {name}", file=sys.stderr)
            if not asked.quick:
                path.write_text(json.dumps({"digest": sources, "cells": done}) + "\n", encoding="utf-8")
    found = [done[cell.name] for cell in cells]
    broken = misses(found, QUICK_SLACK if asked.quick else 1.0)
    lines = [*summary(found), *by_law(found), *(f"MISSED {text}" for text in broken)]
    print(table(found), "", *lines, f"{time.monotonic() - started:.0f} s", sep="\n")
    if not asked.quick:
        path.write_text(json.dumps({"digest": sources, "summary": lines, "cells": done}) + "\n", encoding="utf-8")
        text = f"# Capacity search on queues of known capacity\n\n`make bench-capacity`\n\n{table(found)}\n\n"
        (RESULTS / "capacity.md").write_text(text + "".join(f"- {line}\n" for line in lines), encoding="utf-8")
        (RESULTS / "capacity.svg").write_text(plot(found), encoding="utf-8")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
