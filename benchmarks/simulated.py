"""How fast the simulated engine serves chat in virtual time, on one core, with and without numba.

Each figure comes from a process of its own. The first one with numba begins with no machine code: compiling is in its
time. Writes results/simulated.json and results/simulated.md. Exits 1 above the target.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from harness.engines.simulated import hardware, virtual
from harness.engines.simulated.law import Law, Settings
from harness.host import fingerprint

RESULTS = Path(__file__).parent / "results"
TARGET_S = 120.0  # for a million requests, compiling included
REQUESTS = 1_000_000
REQUESTS_INTERPRETED = 2_000
RATES_RPS = (10.0, 2.0, 20.0)  # the first one with compilation


def serve(rate_rps: float, n: int) -> dict[str, Any]:
    """Llama-3.1-8B's shape on one H100, vLLM's defaults: prompts of 1,000 tokens on average, answers of 200."""
    law = Law(Settings(), hardware.accelerator("h100"), hardware.model("8b"), 8192)
    requests = virtual.draw(n, rate_rps, np.random.default_rng(1))
    began, cpu = time.perf_counter(), time.process_time()
    served = virtual.serve(law, requests)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return {
        "rate_rps": rate_rps,
        "requests": n,
        "output_tokens_mean": float(requests.output_tokens.mean()),
        "seconds": seconds,
        "cpu_s": cpu_s,
        "requests_per_s": n / seconds,
        "requests_per_cpu_s": n / cpu_s,
        "steps": served.steps,
        "tokens_per_step": float(requests.output_tokens.sum()) / served.steps,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "ttft_p95_ms": float(np.percentile(served.first_token_s - requests.arrival_s, 95) * 1e3),
    }


def measured(rate_rps: float, n: int, cache: str, *, interpreted: bool = False) -> dict[str, Any]:
    argv = [sys.executable, __file__, "--serve", str(rate_rps), str(n)]
    settings = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    settings |= {"XDG_CACHE_HOME": cache, "NUMBA_DISABLE_JIT": str(int(interpreted))}
    told = subprocess.run(argv, check=True, stdout=subprocess.PIPE, env={**os.environ, **settings})
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def page(found: Mapping[str, Any]) -> str:
    rows = [*found["compiled"], found["interpreted"]]
    hows = ["numba, compiling included", *["numba"] * (len(rows) - 2), "no numba"]
    intro = (
        f"`make bench-simulated` on {found['machine']}, {found['measured_at']}. Llama-3.1-8B's shape on one "
        "*simulated* H100, default settings, Poisson arrivals, prompts of 1,000 and answers of 200 tokens on average "
        "(lognormal, CV 1, 8,192 together at most)."
    )
    lines = [
        "# The simulated engine in virtual time: requests per second of one core",
        "",
        intro,
        "",
        "| | arrivals/s | requests | tokens per step | wall-clock | CPU | requests per CPU second | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for how, r in zip(hows, rows, strict=True):
        lines.append(
            f"| {how} | {r['rate_rps']:g} | {r['requests']:,} | {r['tokens_per_step']:.1f} | {r['seconds']:.1f} s "
            f"| {r['cpu_s']:.1f} s | {r['requests_per_cpu_s']:,.0f} | {r['peak_memory_mib']:.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=2, metavar=("RATE", "N"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        print(json.dumps(serve(float(given.serve[0]), int(given.serve[1]))))
        return 0
    with tempfile.TemporaryDirectory() as cache:
        compiled = [measured(rate, REQUESTS, cache) for rate in RATES_RPS]
        interpreted = measured(RATES_RPS[0], REQUESTS_INTERPRETED, cache, interpreted=True)
    host = fingerprint()
    found = {
        "measured_at": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{host.cpu}, {host.cores} cores, Linux {host.kernel}",
        "target_s": TARGET_S,
        "compiled": compiled,
        "interpreted": interpreted,
    }
    (RESULTS / "simulated.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "simulated.md").write_text(page(found), encoding="utf-8")
    print(page(found))
    return int(compiled[0]["seconds"] > TARGET_S)


if __name__ == "__main__":
    sys.exit(main())
