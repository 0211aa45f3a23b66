"""A/A: two real measurements of one configuration, many times. How often are they called different?

`make bench-aa`: pairs of short runs against the C stub with service noise and a queue, half of them on one schedule
(as in a search), half on two. Then the same against a stub that is slower: is that found? And the same statistics on
simulated queues at several utilisations. A run that is void is repeated, as everywhere; how many were is told.

    benchmarks/aa.py [--quick] [--pairs N] [--seconds S] [--fresh]

What is measured is kept in runs/aa/measured.jsonl: with --seconds the rest is measured by the next call.
"""

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy import stats

from harness.bench import session
from harness.engines.base import Endpoint, Engine, HostLimits, LaunchPlan, ResolvedModel
from harness.errors import TrialVoid
from harness.host import fingerprint, limits
from harness.load.priority import first_in_line
from harness.observe import Observed, Target
from harness.stats.autocorrelation import latency_time
from harness.stats.compare import batches, holm, percentile_change, rate_change, share_change
from harness.stats.intervals import binomial_upper, percentile
from harness.subject import Subject
from harness.versus import ALPHA, differences
from scenarios.space import SearchSpace, ServingConfig
from scenarios.spec import EngineSpec, Scenario
from scenarios.words import Words, candidates

sys.path.insert(0, str(Path(__file__).parent / "load"))
from stub import build

RESULTS = Path(__file__).parent / "results"
MEASURED = Path("runs/aa/measured.jsonl")
MODES = ("same schedule", "own schedules")
RATE_RPS = 400.0
HOLD_S = 1.6
WARMUP_S = 0.3
SERVERS = 26  # 80 % of them are busy
NOISE = 0.3  # sigma of the log of every request's TTFT and token gap
TTFT_MS, GAP_MS, TOKENS = 20.0, 5.0, 8
TARGETS = (Target("ttft", 95, 90.0), Target("tpot", 95, 8.2))
SLOWER = (1.1, 1.2)
SLOWER_EVERY = 10
VOID_TRIES = 1000  # of one measurement: a busy machine takes its time

SIMULATED_PAIRS = 1000
SIMULATED = [(u, k) for u in (0.5, 0.7, 0.8, 0.9, 0.95) for k in (1, 8)]
SIMULATED_WARMUP = 1500
SIMULATED_N = (600, 2000)
SIMULATED_STUB_PAIRS = 1500


@dataclass(frozen=True)
class Stub:
    """The C stub, as an engine: every time token k of a request is due, multiplied by ``times``."""

    times: float
    seed: int
    name: str = "stub"

    def plan(self, _spec: EngineSpec, _model: ResolvedModel, config: ServingConfig, _host: HostLimits) -> LaunchPlan:
        flags = {
            "ttft-ms": TTFT_MS * self.times,
            "gap-ms": GAP_MS * self.times,
            "noise": NOISE,
            "servers": SERVERS,
            "seed": self.seed,
            "max-seconds": 120,
        }
        with first_in_line() as granted:
            flags |= {"realtime": 1} if granted == "realtime" else {}
        argv = [str(build()), "--port", "{port}", *(str(part) for k, v in flags.items() for part in (f"--{k}", v))]
        return LaunchPlan(config, tuple(argv), {}, "http://127.0.0.1:{port}/v1", "stub", "/health", None, "")

    def classify(self, _log: str, _exit_code: int | None) -> None:
        return None

    def metrics(self, _endpoint: Endpoint) -> dict[str, float]:
        return {}


class Silent:
    def begin(self, *_: object) -> None: ...

    def live(self, *_: object) -> None: ...

    def note(self, *_: object) -> None: ...


def scenario() -> Scenario:
    return Scenario.model_validate(
        {
            "name": "aa",
            "model": {"name": "stub"},
            "workload": {
                "arrivals": {"process": "poisson", "rate": {"rps": RATE_RPS}},
                "prompt_tokens": {"mean": 16},
                "output_tokens": {"mean": TOKENS},
            },
            "slo": {t.metric: {"target_ms": t.target_ms} for t in TARGETS},
            "budget": {"warmup_s": WARMUP_S},
        }
    )


def measure(traffic: int, noise: int, times: float = 1.0) -> tuple[Observed, int]:
    """One measurement in a process tree of its own, and how often it was void before."""
    asked, root = scenario(), Path("runs/aa/now")
    model = ResolvedModel(asked.model, "stub", reference_variant="")
    subject = Subject(
        asked,
        cast("Engine", Stub(times, noise)),
        "1",
        model,
        limits(),
        root,
        Silent(),
        TARGETS,
        Words.build(candidates(), None),
    )
    for tries in range(VOID_TRIES):
        shutil.rmtree(root, ignore_errors=True)
        try:
            with session(subject, SearchSpace("stub", ()).default(), root / "engine") as s:
                return s.hold(RATE_RPS, HOLD_S, traffic, "hold", until_certain=False).observed, tries
        except TrialVoid as err:
            print(f"  void, repeated: {err}", flush=True)
    raise SystemExit(f"void {VOID_TRIES} times in a row: measure on a quieter machine")


def usual(first: Observed, second: Observed) -> float:
    """p-value of the usual test of two proportions, requests taken for independent: above the common P95 of TTFT."""
    a, b = first.series["ttft"], second.series["ttft"]
    limit = percentile(np.concatenate([a, b]), 95)
    table = [[int((x > limit).sum()), int((x <= limit).sum())] for x in (a, b)]
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def compared(number: int, mode: str) -> Iterator[dict[str, Any]]:
    """One pair; every tenth time also its first with slower stubs. The noise of the engine is never the same twice."""
    traffic, noise = 1000 + number, 10 * number
    first, voided = measure(traffic, noise)
    again = traffic if mode == MODES[0] else 500_000 + traffic
    others = [(again, 1.0)] + [(traffic, times) for times in SLOWER if number % SLOWER_EVERY == 1]
    for place, (seed, times) in enumerate(others, 1):
        second, more = measure(seed, noise + place, times)
        told = differences(first, second)
        yield {
            "number": number,
            "mode": mode if times == 1 else MODES[0],
            "times": times,
            "voided": more + (voided if place == 1 else 0),
            "usual_p": usual(first, second),
            "tau": latency_time(first.series["ttft"]),
            "n": int(first.series["ttft"].size),
            "figures": {
                d.name: {"significant": d.significant, "corrected_p": d.p_value, **asdict(d.change)} for d in told
            },
        }


def simulate() -> list[dict[str, Any]]:
    """False alarms where the truth is known: two independent M/M/k queues, and one schedule with its own services."""
    rng = np.random.default_rng(3)
    rows = []
    for utilisation, servers in SIMULATED:
        longest = max(SIMULATED_N)
        gaps = rng.exponential(1 / (utilisation * servers), (2, SIMULATED_WARMUP + longest, SIMULATED_PAIRS))
        runs = [sojourn(g, servers, rng)[:, SIMULATED_WARMUP:] for g in (gaps[0], gaps[1], gaps[0])]
        target = float(np.percentile(runs[0], 95))
        for n in SIMULATED_N:
            for mode, second in zip(MODES[::-1], runs[1:], strict=True):
                alarms: Counter[str] = Counter()
                for a, b in zip(runs[0][:, :n], second[:, :n], strict=True):
                    p95 = percentile_change(a, b, 95, interval=False).p_value
                    count = batches(a, b, rare=0.05)
                    alarms["p95"] += p95 is not None and p95 < ALPHA
                    missed = share_change(a > target, b > target, count).p_value
                    alarms["missed"] += missed is not None and missed < ALPHA
                    alarms["too short"] += p95 is None
                row = {"utilisation": utilisation, "servers": servers, "n": n, "mode": mode, "pairs": len(second)}
                rows.append({**row, **{name: alarms[name] for name in ("p95", "missed", "too short")}})
    return rows


def simulate_stub() -> dict[str, dict[str, int]]:
    """The stub's own law, many more pairs than can be measured: how often is any of the four figures significant?"""
    rng = np.random.default_rng(8)
    shape = (round(RATE_RPS * (WARMUP_S + HOLD_S) * 1.15), SIMULATED_STUB_PAIRS)
    gaps_ms = rng.exponential(1e3 / RATE_RPS, (2, *shape))
    runs = [stub_run(gaps, rng) for gaps in (gaps_ms[0], gaps_ms[0], gaps_ms[1])]
    window = (WARMUP_S, WARMUP_S + HOLD_S)
    found = {}
    for mode, second in zip(MODES, runs[1:], strict=True):
        significant = 0
        for j in range(SIMULATED_STUB_PAIRS):
            seen = []
            for due_s, ttft_ms, tpot_ms in (runs[0], second):
                inside = (due_s[:, j] >= window[0]) & (due_s[:, j] < window[1])
                seen.append((due_s[inside, j], ttft_ms[inside, j], tpot_ms[inside, j]))
            (due_a, *a), (due_b, *b) = seen
            missed_a, missed_b = ((x[0] > TARGETS[0].target_ms) | (x[1] > TARGETS[1].target_ms) for x in (a, b))
            count = batches(*a, *b)
            p_values = [percentile_change(x, y, 95, interval=False).p_value for x, y in zip(a, b, strict=True)]
            p_values.append(share_change(missed_a, missed_b, count).p_value)
            p_values.append(rate_change(due_a[~missed_a], due_b[~missed_b], [window] * 2, count).p_value)
            significant += any(p is not None and p < ALPHA for p in holm(p_values))
        found[mode] = {"pairs": SIMULATED_STUB_PAIRS, "significant": significant}
    return found


def stub_run(gaps_ms: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """When requests are due (s), their TTFT and TPOT (ms): what stub.c does, without a socket. Shapes (n, runs)."""
    ttft = TTFT_MS * np.exp(NOISE * rng.standard_normal(gaps_ms.shape))
    tpot = GAP_MS * np.exp(NOISE * rng.standard_normal(gaps_ms.shape))
    arrived, free_at = np.cumsum(gaps_ms, axis=0), np.zeros((gaps_ms.shape[1], SERVERS))
    first = np.empty_like(arrived)
    for i in range(gaps_ms.shape[0]):
        begun = np.maximum(arrived[i], free_at[:, 0])
        free_at[:, 0] = begun + ttft[i] + (TOKENS - 1) * tpot[i]
        free_at.sort(axis=1)
        first[i] = begun + ttft[i] - arrived[i]
    return arrived / 1e3, first, tpot


def sojourn(gaps: np.ndarray, servers: int, rng: np.random.Generator) -> np.ndarray:
    """Time in the system, unit service rate, first come first served; shape (runs, n). Kiefer and Wolfowitz 1955."""
    arrived, service = np.cumsum(gaps, axis=0), rng.exponential(1, gaps.shape)
    free_at, time_in = np.zeros((gaps.shape[1], servers)), np.empty_like(gaps)
    for i in range(gaps.shape[0]):
        done = np.maximum(arrived[i], free_at[:, 0]) + service[i]
        free_at[:, 0] = done
        free_at.sort(axis=1)
        time_in[i] = done - arrived[i]
    return time_in.T


def summary(
    measured: list[dict[str, Any]], simulated: list[dict[str, Any]], stub: dict[str, dict[str, int]]
) -> dict[str, Any]:
    def alarms(rows: list[dict[str, Any]]) -> dict[str, Any]:
        n = len(rows)
        figures = {
            name: sum(r["figures"][name]["p_value"] is not None and r["figures"][name]["p_value"] < ALPHA for r in rows)
            for name in (rows[0]["figures"] if rows else ())
        }
        significant = sum(any(f["significant"] for f in r["figures"].values()) for r in rows)
        return {
            "pairs": n,
            "significant": significant,
            "share": significant / n if n else None,
            "upper_95": binomial_upper(significant, n) if n else None,
            "each_figure_alone": figures,
            "too_short": sum(any(f["p_value"] is None for f in r["figures"].values()) for r in rows),
            "usual_test_significant": sum(r["usual_p"] < ALPHA for r in rows),
            "voided": sum(r["voided"] for r in rows),
        }

    same = [r for r in measured if r["times"] == 1]
    host = fingerprint()
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{host.cpu}, {host.cores} cores, Linux {host.kernel}",
        "setting": {
            "rate_rps": RATE_RPS, "hold_s": HOLD_S, "servers": SERVERS, "noise": NOISE,
            "ttft_ms": TTFT_MS, "gap_ms": GAP_MS, "tokens": TOKENS, "alpha": ALPHA,
            "median_tau": float(np.median([r["tau"] for r in same])) if same else None,
            "median_n": float(np.median([r["n"] for r in same])) if same else None,
        },
        "same": {"all": alarms(same), **{m: alarms([r for r in same if r["mode"] == m]) for m in MODES}},
        "slower": {str(t): alarms([r for r in measured if r["times"] == t]) for t in SLOWER},
        "simulated_stub": stub,
        "simulated": simulated,
    }  # fmt: skip


def page(found: Mapping[str, Any]) -> str:
    s = found["setting"]
    intro = (
        f"`make bench-aa` on {found['machine']}, {found['measured_at']}. C stub, {s['servers']} servers, TTFT "
        f"{s['ttft_ms']:g} ms, {s['tokens']} tokens {s['gap_ms']:g} ms apart, each request's times noisy "
        f"(log-normal, sigma {s['noise']:g}); {s['rate_rps']:g} requests/s Poisson for {s['hold_s']:g} s, a stub and a "
        f"load generator of its own for every measurement (median {s['median_n']:.0f} judged requests, autocorrelation "
        f"time {s['median_tau']:.1f}). Significant: any of TTFT P95, TPOT P95, missed share, goodput, corrected (Holm) "
        f"at {s['alpha']:.0%}. Usual test: two proportions above the common TTFT P95, requests taken for independent."
    )
    lines = [
        "# A/A: are two measurements of one configuration called different?",
        "",
        intro,
        "",
        "| measured pairs | significant | exact 95 % bound | usual test | too short | void runs, repeated |",
        "|---|---|---|---|---|---|",
    ]
    rows = {**{f"same configuration, {m}": v for m, v in found["same"].items()}}
    rows |= {f"{float(t) - 1:.0%} slower, same schedule": v for t, v in found["slower"].items()}
    for name, row in rows.items():
        if row["pairs"]:
            lines.append(
                f"| {name} | {row['significant']} of {row['pairs']} ({row['share']:.1%}) | ≤ {row['upper_95']:.1%} "
                f"| {row['usual_test_significant']} | {row['too_short']} | {row['voided']} |"
            )
    lines += [
        f"| the stub simulated, {mode} | {row['significant']} of {row['pairs']} "
        f"({row['significant'] / row['pairs']:.1%}) | ≤ {binomial_upper(row['significant'], row['pairs']):.1%} | | | |"
        for mode, row in found["simulated_stub"].items()
    ]
    lines += [
        "",
        "## Simulated queues: false alarms of one figure at 5 %",
        "",
        "| utilisation | servers | requests | schedules | pairs | P95 | missed share | too short to tell |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['utilisation']} | {r['servers']} | {r['n']} | {r['mode']} | {r['pairs']} | {r['p95'] / r['pairs']:.1%} "
        f"| {r['missed'] / r['pairs']:.1%} | {r['too short'] / r['pairs']:.0%} |"
        for r in found["simulated"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="six pairs, no simulation, nothing written")
    parser.add_argument("--seconds", type=float, help="stop after so long; the next call goes on")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    asked = parser.parse_args()
    pairs = 6 if asked.quick else asked.pairs
    if asked.fresh or asked.quick:
        MEASURED.unlink(missing_ok=True)
    MEASURED.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + (asked.seconds or float("inf"))
    measured = [json.loads(line) for line in MEASURED.read_text().splitlines()] if MEASURED.exists() else []
    done = {row["number"] for row in measured}
    for number in range(1, pairs + 1):
        if number in done:
            continue
        if time.monotonic() > until:
            print(f"{len(done)} of {pairs} pairs measured; call again for the rest")
            return
        rows = list(compared(number, MODES[number % 2]))
        done.add(number)
        measured += rows
        with MEASURED.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        for row in rows:
            told = [name for name, figure in row["figures"].items() if figure["significant"]]
            print(f"{number:4d}  {row['mode']}, x{row['times']}: {', '.join(told) or 'no difference'}", flush=True)
    found = summary(measured, *([], {}) if asked.quick else (simulate(), simulate_stub()))
    print(page(found))
    if not asked.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "aa.json").write_text(json.dumps({**found, "measured": measured}, indent=1) + "\n")
        (RESULTS / "aa.md").write_text(page(found))
    alarms = found["same"]["all"]
    if stats.binomtest(alarms["significant"], alarms["pairs"], ALPHA, "greater").pvalue < ALPHA:
        raise SystemExit(
            f"{alarms['significant']} of {alarms['pairs']} false alarms are more than {ALPHA:.0%} explains"
        )


if __name__ == "__main__":
    main()
