"""The capacity of every configuration of a world that starts, by long runs in virtual time: the ground truth.

Three passes, each with longer runs and a narrower bisection, over those that came near the best of the pass before.
All configurations get the same requests, so that what is common to them cancels. Knows nothing of searches.

    PYTHONPATH=benchmarks python -m search.truth [chat rag ...] [--fresh]
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.engines.simulated.law import Law
from harness.engines.simulated.virtual import serve
from scenarios.space import ServingConfig
from search.prober import latencies_s
from search.traffic import Traffic
from search.worlds import NAMES, World, world

PATH = Path(__file__).parents[1] / "results" / "search_truths.json"
SEED = (2026, 1)
CHECK_SEEDS = ((2026, 2), (2026, 3))  # other traffic, on which the optimum is looked at again
WARMUP = 0.1  # share of the requests that is not judged
START_STEP = 1.3  # between the rates tried until one holds and one does not
SLOWEST_RPS, FASTEST_RPS = 0.01, 1e4  # what does not hold at the first has capacity 0; no bisection leaves them
BURST_REQUESTS = 25  # traffic whose bursts are longer gets as many times the requests


@dataclass(frozen=True, slots=True)
class Pass:
    """``near``: share of the best so far that a configuration must have reached to be looked at again."""

    requests: int
    width: float  # upper / lower rate at which a bisection ends
    near: float
    most: int = 10_000  # of the best


PASSES = (Pass(600, 1.08, 0.0), Pass(4_000, 1.03, 0.88), Pass(24_000, 1.008, 0.95, 16))
SLOW_TO_SETTLE = {"agents", "batch"}  # the first pass flatters by up to a half: there the second looks at all …
SLOW_NEAR = 0.5  # … that are not far below
QUICK_PASSES = (Pass(150, 1.2, 0.0),)


def holds(at: World, law: Law, traffic: Traffic, rate_rps: float, n: int) -> bool:
    """Whether every percentile of the ``n`` requests, without the first, meets its target."""
    requests = traffic.first(n, rate_rps)
    slowest_s = max(target_s for target_s, _ in at.targets_s.values())
    served = serve(law, requests, until_s=float(requests.arrival_s[-1]) + slowest_s)
    latency_s = latencies_s(requests, served)
    begin = int(WARMUP * n)
    for metric, (target_s, percentile) in at.targets_s.items():
        values = latency_s[metric][begin:]
        values = values[~np.isnan(values)]
        if len(values) and float(np.quantile(values, percentile / 100, method="inverted_cdf")) > target_s:
            return False
    return True


def capacity_rps(holds_at: Callable[[float], bool], guess_rps: float, width: float, step: float = START_STEP) -> float:
    """The highest rate that holds, by steps from the guess and geometric bisection; 0.0: none does."""
    low, high, rate = 0.0, math.inf, guess_rps
    while high > width * low:
        if rate < SLOWEST_RPS:
            return 0.0
        if rate > FASTEST_RPS:
            raise ValueError(f"holds at {low:g} requests/s: runs are too short for this traffic")
        if holds_at(rate):
            low = rate
        else:
            high = rate
        rate = low * step if math.isinf(high) else high / step if low == 0 else math.sqrt(low * high)
    return math.sqrt(low * high)


def truths(
    at: World, passes: Iterable[Pass] = PASSES, tell: Callable[[str], None] = lambda _: None
) -> dict[str, float]:
    """Short digest of every configuration that starts -> requests/s."""
    configs = list(at.configurations())
    found: dict[str, float] = {}
    traffic = Traffic(at.scenario.workload, SEED)
    for number, one in enumerate(passes):
        near = SLOW_NEAR if number == 1 and at.name in SLOW_TO_SETTLE else one.near
        best, guess, looked = 0.0, 1.0, 0
        first = not found
        for config in sorted(configs, key=lambda c: -found.get(c.short, 0.0)):  # stable: neighbours stay neighbours
            if looked == one.most or (not first and found[config.short] < near * best):
                break  # what is said of the others by shorter runs is too low to matter
            guess = found.get(config.short, guess) or guess
            holding = _holding(at, config, traffic, one.requests)
            found[config.short] = capacity_rps(holding, guess, one.width, START_STEP if first else one.width**2)
            guess = found[config.short] or guess
            best, looked = max(best, found[config.short]), looked + 1
        tell(f"{at.name}: {looked} configurations by {one.requests} requests, best {best:.4g}/s")
        found = {short: min(rate, best) for short, rate in found.items()}  # a short run may flatter
        configs = [c for c in configs if found[c.short] >= near * best]
    return found


def quick(at: World) -> dict[str, float]:
    """A rough truth of a sample, for trying the benchmark out."""
    return truths(at, QUICK_PASSES)


def check(at: World, found: dict[str, float]) -> list[float]:
    """The best configuration's capacity on other traffic, as shares of the one told."""
    best, last = best_config(at, found), PASSES[-1]
    seeds = (Traffic(at.scenario.workload, seed) for seed in CHECK_SEEDS)
    rates = [
        capacity_rps(_holding(at, best, traffic, last.requests), found[best.short], last.width, last.width**2)
        for traffic in seeds
    ]
    return [round(rate / found[best.short], 4) for rate in rates]


def _holding(at: World, config: ServingConfig, traffic: Traffic, requests: int) -> Callable[[float], bool]:
    law = at.law(config)
    bursts = max(1.0, (at.scenario.workload.arrivals.gap_cv or 1.0) ** 2 / BURST_REQUESTS)
    return lambda rate_rps: holds(at, law, traffic, rate_rps, math.ceil(requests * bursts))


def read(path: Path = PATH) -> dict[str, dict[str, Any]]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def known(at: World, path: Path = PATH) -> dict[str, float]:
    """Raises SystemExit where there is no truth of this world as it is now."""
    entry = read(path).get(at.name)
    if entry is None or entry["digest"] != at.digest:
        raise SystemExit(f"no truth of {at.name} as it is now: PYTHONPATH=benchmarks python -m search.truth {at.name}")
    return dict(entry["capacity_rps"])


def write(entries: dict[str, dict[str, Any]], path: Path = PATH) -> None:
    """One line per world."""
    lines = [f"{json.dumps(name)}:{json.dumps(entry, separators=(',', ':'))}" for name, entry in entries.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def best_config(at: World, found: dict[str, float]) -> ServingConfig:
    return max(at.configurations(), key=lambda c: found[c.short])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("worlds", nargs="*", default=NAMES)
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    for name in asked.worlds:
        at, entries = world(name), read()
        if not asked.fresh and entries.get(at.name, {}).get("digest") == at.digest:
            continue
        begun = time.process_time()
        found = truths(at, tell=lambda line: print(line, file=sys.stderr, flush=True))
        told = {
            "digest": at.digest,
            "checked": check(at, found),
            "best": dict(best_config(at, found).knobs),
            "capacity_rps": {short: float(f"{rate:.5g}") for short, rate in found.items()},
        }
        write({**read(), at.name: told})
        print(f"{at.name}: {time.process_time() - begun:.0f} s, optimum {told['best']}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
