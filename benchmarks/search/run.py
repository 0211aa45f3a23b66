"""Does the search beat its controls? Arms on simulated worlds whose optimum is known, over many seeds.

A seed is traffic and search together: seed k of every arm meets the same traffic. Finished cells (world, arm, seed) are
kept as long as what they depend on is unchanged: an interrupted run goes on. Writes results/search.{json,md,svg}.

    PYTHONPATH=benchmarks python -m search.run [--seeds 50] [--jobs 1] [--worlds chat rag] [--arms random gp] [--quick]
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from scenarios.space import digest
from search import recorded, report, truth
from search.ablations import ABLATIONS
from search.arms import ARMS
from search.courses import Course, Step, course
from search.prober import Memory
from search.worlds import BUDGETS, HOURS, world

RESULTS = Path(__file__).parents[1] / "results"
SEEDS, ABLATION_SEEDS, QUICK_SEEDS = 50, 10, 2
QUICK_SHARE = 0.15  # of the hours
SECONDS_PER_HOUR = 3600.0

EVERY = {**ARMS, **ABLATIONS}
COMMON = (  # what every cell depends on
    "harness.stats.steady",
    "search.arms",
    "search.courses",
    "search.laboratory",
    "search.prober",
    "search.traffic",
    "tuners.belief",
    "tuners.capacity",
)

RECORDED = ("search.recorded", "search.courses")
ALL_HOURS = {**HOURS, recorded.NAME: recorded.HOURS}

Cells = dict[str, Any]


def seed_cells(task: tuple[str, int, Sequence[str], float, bool]) -> list[tuple[str, dict[str, Any]]]:
    """All asked arms on one seed of one world; what one of them had served, another need not serve again."""
    name, seed, arms, hours, quick = task
    if name == recorded.NAME:
        return recorded_cells(seed, arms, hours)
    at, memory, found = world(name), Memory(), []
    truths = truth.quick(at) if quick else truth.known(at)
    seconds = hours * SECONDS_PER_HOUR
    for arm in arms:
        begun = time.process_time()
        search = EVERY[arm].run(at, seed + 1, seed, seconds, memory)
        found.append((key(name, arm, seed), _cell(course(search, truths, seconds), begun)))
    return found


def recorded_cells(seed: int, arms: Sequence[str], hours: float) -> list[tuple[str, dict[str, Any]]]:
    """The same on the table of a real engine, for the arms that have a meaning there."""
    at, seconds, found = recorded.table(), hours * SECONDS_PER_HOUR, []
    for arm in arms:
        begun = time.process_time()
        if arm == "plain tpe":
            search = recorded.plain_tpe(at, seed, seconds)
        else:
            search = recorded.searched(at, arm, seed, seconds)
        found.append((key(recorded.NAME, arm, seed), _cell(course(search, at.truths, seconds), begun)))
    return found


def _cell(told: Course, begun_s: float) -> dict[str, Any]:
    cell = asdict(told)
    steps = [[s["launches"], s["seconds"], s["regret"], s["pick"]] for s in cell.pop("steps")]
    return {**cell, "cpu_s": round(time.process_time() - begun_s, 2), "steps": steps}


def key(name: str, arm: str, seed: int) -> str:
    return f"{name}/{arm}/{seed}"


def read_course(cell: dict[str, Any]) -> Course:
    steps = tuple(Step(*step) for step in cell["steps"])
    return Course(steps, **{k: v for k, v in cell.items() if k not in {"steps", "cpu_s"}})


def missing(
    names: Sequence[str], arms: dict[str, int], hours: dict[str, float], done: Cells, *, quick: bool
) -> Iterator[Any]:
    """Tasks in order of seeds, so that an interrupted run has all worlds. ``arms``: name -> seeds."""
    for seed in range(max(arms.values())):
        for name in names:
            left = [a for a, seeds in arms.items() if seed < seeds and key(name, a, seed) not in done]
            if name == recorded.NAME:
                left = [a for a in left if a in recorded.ARMS]
            if left:
                yield name, seed, left, hours[name], quick


def load_cells(path: Path) -> Cells:
    """Cells whose world and arm are as they were: others are forgotten."""
    if not path.exists():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    now = digests({k.split("/")[0] for k in kept["cells"]} & ALL_HOURS.keys())
    return {k: v for k, v in kept["cells"].items() if kept["digests"].get(_pair(k)) == now.get(_pair(k), "")}


def digests(names: Iterable[str]) -> dict[str, str]:
    """world/arm -> of all that decides over its cells."""
    found = {}
    for name in names:
        if name == recorded.NAME:
            of_world = digest([recorded.PATH.read_text(encoding="utf-8"), ALL_HOURS[name], _sources(RECORDED)])
        else:
            of_world = digest([world(name).digest, BUDGETS[name], HOURS[name], _sources(COMMON)])
        found.update({f"{name}/{arm.name}": digest([of_world, _sources(arm.modules)])[:12] for arm in EVERY.values()})
    return found


def _sources(names: Sequence[str]) -> list[str]:
    return [Path(str(import_module(name).__file__)).read_text(encoding="utf-8") for name in names]


def _pair(name: str) -> str:
    return name.rpartition("/")[0]


def save_cells(path: Path, cells: Cells) -> None:
    """One line per cell."""
    now = digests({k.split("/")[0] for k in cells})
    kept = {pair: now[pair] for pair in sorted({_pair(k) for k in cells})}
    lines = [f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in sorted(cells.items())]
    head = f'{{"digests":{json.dumps(kept)},\n"hours":{json.dumps(ALL_HOURS)},\n"cells":{{\n'
    partial = path.with_suffix(".part")
    partial.write_text(head + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
    partial.replace(path)


def chosen(asked: argparse.Namespace) -> dict[str, int]:
    """Arm -> how many seeds."""
    seeds = QUICK_SEEDS if asked.quick else asked.seeds
    if asked.arms:
        return dict.fromkeys(asked.arms, seeds)
    main = dict.fromkeys(ARMS, seeds)
    return main if asked.quick else {**main, **dict.fromkeys(ABLATIONS, min(seeds, ABLATION_SEEDS))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", default=list(ALL_HOURS), choices=list(ALL_HOURS))
    parser.add_argument("--arms", nargs="*", choices=[*ARMS, *ABLATIONS])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} seeds, short; writes nothing")
    parser.add_argument("--fresh", action="store_true", help="forget the cells that are done")
    asked = parser.parse_args()
    path = RESULTS / "search.json"
    done = {} if asked.quick or asked.fresh else load_cells(path)
    hours = {name: ALL_HOURS[name] * (QUICK_SHARE if asked.quick else 1.0) for name in asked.worlds}
    tasks = list(missing(asked.worlds, chosen(asked), hours, done, quick=asked.quick))
    saved = time.monotonic()
    for name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
    ):  # of the processes below: small matrices, threads only fight
        os.environ.setdefault(name, "1")
    with get_context("spawn").Pool(asked.jobs) as pool:
        for n, cells in enumerate(pool.imap_unordered(seed_cells, tasks), 1):
            done.update(cells)
            cpu_s = sum(cell["cpu_s"] for _, cell in cells)
            print(f"{n:4d} of {len(tasks)}  {cells[0][0]} …  {cpu_s:.1f} s", file=sys.stderr, flush=True)
            if not asked.quick and (time.monotonic() - saved > 20 or n == len(tasks)):
                save_cells(path, done)
                saved = time.monotonic()
    courses = {k: read_course(v) for k, v in done.items()}
    hours = hours if asked.quick else {n: h for n, h in ALL_HOURS.items() if any(k.startswith(f"{n}/") for k in done)}
    told = report.summarise(courses, hours)
    text = report.markdown(told, report.summarise(report.of_ablated_seeds(courses), hours))
    print(text)
    if not asked.quick:
        (RESULTS / "search.md").write_text(text, encoding="utf-8")
        (RESULTS / "search.svg").write_text(report.drawn(courses, hours), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
