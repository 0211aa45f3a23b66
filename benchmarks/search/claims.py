"""How often does a whole study claim a gain where there is none? Worlds whose defaults *are* the optimum.

The defaults of a world become its best configuration, so that whatever a study calls better is not. Search, finals on
held-out traffic and `select.choose` are the real ones. Writes results/search_claims.{json,md}; finished studies are
kept; exits 1 when more than the allowed share of the claims are false.

    PYTHONPATH=benchmarks python -m search.claims [--studies 40] [--jobs 1]
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from scenarios.space import digest
from search import truth
from search.arms import OURS, StudyArm
from search.prober import Memory
from search.regret import binomial_upper
from search.worlds import NAMES, World, world

RESULTS = Path(__file__).parents[1] / "results"
STUDIES = 40  # of each world: 200
TRIALS, FINALISTS, BLOCKS = 10, 2, 3
ALLOWED = 0.05
DAY_S = 86_400.0
FIRST_SEED = 1000  # none that the regret was measured on

Claims = dict[str, dict[str, Any]]


def at_its_best(name: str) -> World:
    """The world with its best configuration as the engine's defaults."""
    at = world(name)
    best = truth.read()[name]["best"]
    search = at.scenario.search.model_copy(update={"finalists": FINALISTS})
    budget = at.scenario.budget.model_copy(update={"finalist_blocks": BLOCKS})
    return replace(at, scenario=at.scenario.model_copy(update={"search": search, "budget": budget}), default=best)


def studied(task: tuple[str, int]) -> tuple[str, dict[str, Any]]:
    name, seed = task
    begun = time.process_time()
    found = StudyArm(OURS, finals=True, trials=TRIALS)(at_its_best(name), seed, seed, DAY_S, Memory())
    capacity = truth.known(world(name))
    gain = capacity.get(found.deployed or "", 0.0) / max(capacity.values())
    return f"{name}/{seed}", {
        "claim": found.claim,
        "true_gain": round(gain, 4),
        "cpu_s": round(time.process_time() - begun, 2),
    }


def markdown(claims: Claims) -> str:
    head = "| world | studies | claims of a gain | upper 95 % bound | median truth of what was claimed |"
    rows = [head, "|" + "---|" * 5]
    for name in [*NAMES, "all"]:
        own = [c for k, c in claims.items() if name == "all" or k.startswith(f"{name}/")]
        if own:
            rows.append(_row(name, own))
    return "\n".join(
        [
            "# Claims of a gain where the defaults are the optimum, simulated",
            "",
            "`make bench-search`. The defaults of each world are its best configuration of all: a study that says",
            '"tuned" is wrong. Exact one-sided bound (Clopper & Pearson).',
            "",
            *rows,
            "",
        ]
    )


def _row(name: str, own: Sequence[dict[str, Any]]) -> str:
    false = [c["true_gain"] for c in own if c["claim"] == "tuned"]
    middle = f"{sorted(false)[len(false) // 2]:.3f} of the defaults" if false else "—"
    return f"| {name} | {len(own)} | {len(false)} | {binomial_upper(len(false), len(own)):.1%} | {middle} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=STUDIES, help="of each world")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    path = RESULTS / "search_claims.json"
    now = digest([OURS, TRIALS, FINALISTS, BLOCKS, [world(n).digest for n in NAMES]])
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    done: Claims = kept["claims"] if kept.get("digest") == now else {}
    seeds = range(FIRST_SEED, FIRST_SEED + asked.studies)
    tasks = [(name, seed) for seed in seeds for name in NAMES if f"{name}/{seed}" not in done]
    with get_context("spawn").Pool(asked.jobs) as pool:
        for n, (key, claim) in enumerate(pool.imap_unordered(studied, tasks), 1):
            done[key] = claim
            print(f"{n:4d} of {len(tasks)}  {key}  {claim}", file=sys.stderr, flush=True)
            if n % 10 == 0 or n == len(tasks):
                lines = [f"{json.dumps(k)}:{json.dumps(v)}" for k, v in sorted(done.items())]
                text = f'{{"digest":"{now}","claims":{{\n' + ",\n".join(lines) + "\n}}\n"
                path.write_text(text, encoding="utf-8")
    told = markdown(done)
    print(told)
    (RESULTS / "search_claims.md").write_text(told, encoding="utf-8")
    false = sum(c["claim"] == "tuned" for c in done.values())
    return int(false > ALLOWED * len(done))


if __name__ == "__main__":
    sys.exit(main())
