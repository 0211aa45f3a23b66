"""`make bench-load`: this project's load generator and its peers, on one machine, against one server that keeps time.

Cells that are done are kept in runs/bench-load/cells.jsonl and not run again (--fresh: start over). Writes
benchmarks/results/load.{json,md,svg} and prints each target as met or not met.
"""

import argparse
import json
import os
import platform
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from asks import Ask, write_inputs
from cell import FREEZE_RATE_RPS, measure
from environments import PeerUnavailable, ensure, installed
from peers import OURS, PEERS, Peer
from plot import svg
from summary import Row, summarise, too_slow, verdicts
from table import markdown

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "runs" / "bench-load"
CELLS = WORK / "cells.jsonl"
RESULTS = ROOT / "benchmarks" / "results"
RATES_RPS = (50, 200, 500, 1000, 2000)
TWO_WORKERS_RATE_RPS = 4000
FREEZE_SECONDS = 12
_START_S = 20  # what a cell takes beside its load, about


class Cell(NamedTuple):
    kind: str  # "load" or "freeze"
    rate: float
    peer: str
    workers: int
    repeat: int


def wanted(names: list[str], rates: list[float], repeats: int) -> Iterator[Cell]:
    """The first round by ascending rate, so that what a generator cannot reach is known; then in any order."""
    shuffle = random.Random(0)
    for repeat in range(repeats):
        cells = [Cell("load", rate, name, 1, repeat) for name in names for rate in rates]
        cells += [Cell("freeze", FREEZE_RATE_RPS, name, 1, repeat) for name in names]
        if OURS in names:
            cells.append(Cell("load", TWO_WORKERS_RATE_RPS, OURS, 2, repeat))
        shuffle.shuffle(cells)
        yield from sorted(cells, key=lambda c: c.rate) if repeat == 0 else cells


def length_s(kind: str, seconds: float) -> float:
    return FREEZE_SECONDS if kind == "freeze" else seconds


def read_cells(versions: dict[str, str], seconds: float) -> list[Row]:
    """Those that are done, of these versions and this length: others are not to be mixed with them."""
    if not CELLS.exists():
        return []
    rows = [json.loads(line) for line in CELLS.read_text("utf-8").splitlines()]
    return [
        row
        for row in rows
        if row["version"] == versions.get(row["peer"]) and row["seconds"] == length_s(row["kind"], seconds)
    ]


def carry_out(cells: Iterator[Cell], versions: dict[str, str], seconds: float, budget_s: float) -> None:
    inputs = write_inputs(WORK / "inputs")
    deadline = time.monotonic() + budget_s
    for cell in cells:
        rows = read_cells(versions, seconds)
        if any(tuple(row[name] for name in Cell._fields) == tuple(cell) for row in rows):
            continue
        slow = too_slow(rows, cell.peer)
        if cell.peer != OURS and cell.kind == "load" and slow is not None and cell.rate > slow:
            continue
        load_s = length_s(cell.kind, seconds)
        if time.monotonic() + load_s + _START_S > deadline:
            print("the budget is used up; run again to go on")
            return
        ask = Ask(
            url="",
            rate_rps=cell.rate,
            count=round(cell.rate * load_s),
            seed=1000 + cell.repeat,
            folder=WORK / "cell" / f"{cell.peer}-{cell.kind}-{cell.rate:g}-{cell.workers}-{cell.repeat}",
            inputs=inputs,
            workers=cell.workers,
        )
        row = {**cell._asdict(), "version": versions[cell.peer], "seconds": load_s}
        row |= measure(PEERS[cell.peer], ask, freeze=cell.kind == "freeze")
        with CELLS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(line(row), flush=True)


def line(row: Row) -> str:
    head = f"{row['peer']:15} {row['kind']:6} {row['rate']:5g}/s ×{row['workers']} #{row['repeat'] + 1}  "
    if row["failed"]:
        return f"{head}FAILED: {row['failed']}"
    if row["kind"] == "freeze":
        return (
            f"{head}truth/reported P95 {row['truth_over_reported_p95']:.3f}  P99 {row['truth_over_reported_p99']:.3f}  "
            f"(from {row['truth_from']})"
        )
    inflated = "/".join(f"{row[f'ttft_inflation_p{p}_ms']:.2f}" for p in (50, 95, 99))
    distance = f"{row['arrival_distance']:.3f} ({row['arrival_noise']:.3f})"
    return (
        f"{head}{row['rate_rps']:7.1f}/s  D {distance}  TTFT +{inflated} ms  "
        f"TPOT P95 {row['tpot_inflation_p95_ms']:+.3f} ms  errors {row['errors']}  "
        f"CPU {row['cpu_ms_per_request'] or float('nan'):.2f} ms  {row['peak_pss_mb']:.0f} MB"
    )


def not_tried(cells: list[Row], names: list[str], rates: list[float]) -> dict[str, dict[str, str]]:
    reasons: dict[str, dict[str, str]] = {}
    for rate in rates:
        for name in names:
            slow = too_slow(cells, name)
            tried = any(c["peer"] == name and c["rate"] == rate and c["kind"] == "load" for c in cells)
            if not tried:
                got = max((c.get("rate_rps", 0) for c in cells if c["peer"] == name and c["rate"] == slow), default=0)
                reason = (
                    "not measured"
                    if slow is None or slow >= rate
                    else f"not tried: {got:.0f}/s when asked for {slow:g}"
                )
                reasons.setdefault(f"{rate:g}", {})[name] = reason
    return reasons


def host() -> dict[str, Any]:
    cpus = [line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if line.startswith("model name")]
    return {
        "cpu": cpus[0].partition(":")[2].strip() if cpus else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
    }


def without_folders(argv: Sequence[str]) -> list[str]:
    """Where this machine keeps its files is nobody's business, and different elsewhere."""
    return [re.sub(r"(?<![:/\w.])/(?:[^/\s=,]+/)+", "", word) for word in argv]


def write_results(
    about: dict[str, dict[str, Any]], versions: dict[str, str], rates: list[float], seconds: float
) -> bool:
    """True when no target was missed."""
    cells = read_cells(versions, seconds)
    summary = summarise(cells)
    found = verdicts(summary)
    examples = {cell["peer"]: without_folders(cell.pop("argv", None) or ()) for cell in reversed(cells)}
    document = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": host(),
        "settings": {"seconds": seconds, "freeze_seconds": FREEZE_SECONDS, "rates_rps": rates},
        "peers": {name: {**facts, "argv": examples.get(name)} for name, facts in about.items()},
        "targets": [verdict._asdict() for verdict in found],
        "not_tried": not_tried(cells, list(about), rates),
        "summary": summary,
        "cells": cells,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "load.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "load.md").write_text(markdown(document, found), encoding="utf-8")
    (RESULTS / "load.svg").write_text(svg(summary), encoding="utf-8")
    for verdict in found:
        word = {True: "met    ", False: "NOT MET", None: "unknown"}[verdict.met]
        print(f"{word}  {verdict.target}: {verdict.figure}")
    return all(verdict.met is not False for verdict in found)


def describe(peer: Peer, *, wanted: bool) -> dict[str, Any]:
    """Its settings, and its version or why it has none. Installs it where it is wanted."""
    facts = {"arrivals": peer.arrivals, "connections": peer.connections, "settings": peer.settings}
    try:
        version = ensure(peer) if wanted else installed(peer)
    except PeerUnavailable as err:
        print(f"{peer.name} is left out: {err}")
        return {"unavailable": str(err), **facts}
    return {"version": version, **facts} if version else {"unavailable": "not asked for", **facts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES_RPS), metavar="RPS")
    parser.add_argument("--seconds", type=float, default=10.0, help="of load in a cell")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=30.0, metavar="MINUTES", help="no cell is begun beyond it")
    parser.add_argument("--fresh", action="store_true", help="forget the cells that are done")
    parser.add_argument(
        "--show", action="store_true", help="measure nothing; write the results of the cells that are done"
    )
    options = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        print("two cores are needed: one for the server, one for the generator", file=sys.stderr)
        return 2
    WORK.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        CELLS.unlink(missing_ok=True)
    about = {name: describe(peer, wanted=name in options.only) for name, peer in PEERS.items()}
    versions = {name: facts["version"] for name, facts in about.items() if "version" in facts}
    names = [name for name in options.only if name in versions]
    if not options.show:
        carry_out(wanted(names, options.rates, options.repeats), versions, options.seconds, options.budget * 60)
    return int(not write_results(about, versions, options.rates, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
