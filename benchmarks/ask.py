"""How long a tuner thinks: seconds of one `ask` after up to 10,000 trials, for every strategy that is installed.

    python benchmarks/ask.py [--write]

Exits with 1 when any takes longer than a second. `--write`: benchmarks/results/ask.json.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

from harness import host, plugins
from scenarios.space import Knob, SearchSpace, ServingConfig, Value
from tuners.base import Trial

LIMIT_S = 1.0
LENGTHS = (10, 100, 1000, 10_000)
REPEATS = 5
RESULTS = Path(__file__).parent / "results" / "ask.json"


def space(knobs: int, choices: int) -> SearchSpace:
    numbers = tuple(2**i for i in range(choices))
    plain = tuple(Knob(f"knob{i}", numbers, numbers[0], "batching", "", recompiles=i == 0) for i in range(knobs - 2))
    draft = Knob("draft", ("none", "ngram", "model"), "none", "speculation", "")
    tokens = Knob("tokens", (2, 4), 2, "speculation", "", when=("draft", ("ngram", "model")))
    return SearchSpace("benchmark", (*plain, draft, tokens))


SPACES = {"listed": space(7, 4), "sampled": space(10, 6)}  # 6 thousand combinations, and 10 million


def history(of: SearchSpace, length: int) -> list[Trial]:
    rng = random.Random(length)
    trials = []
    for number in range(length):
        values: dict[str, Value] = {}
        for knob in of.knobs:
            if knob.active(values):
                values[knob.name] = rng.choice(knob.choices)
        config = ServingConfig(of.engine, values)
        crashed = rng.random() < 0.1
        trials.append(
            Trial(
                number=number,
                knobs=values,
                config_digest=config.digest,
                state="infeasible" if crashed else "complete",
                score=None if crashed else rng.lognormvariate(2, 0.5),
                constraints={"engine": 1.0} if crashed else {"slo": 0.0},
                seconds=rng.uniform(30, 200),
            )
        )
    return trials


def seconds_of_ask(name: str, of: SearchSpace, past: list[Trial]) -> float:
    """The median of a few, by the wall clock."""
    taken = []
    for seed in range(REPEATS):
        tuner = plugins.load("tuners", name)(of, seed)
        started = time.perf_counter()
        tuner.ask(past)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    rows, slow = [], False
    print(
        f"{'strategy':10}{'space':10}" + "".join(f"{n:>10,}" for n in LENGTHS) + "   trials so far; seconds of one ask"
    )
    for name in plugins.names("tuners"):
        plugins.load("tuners", name)(SPACES["listed"], 0).ask(history(SPACES["listed"], 10))  # imports are not thinking
        for label, of in SPACES.items():
            row = [seconds_of_ask(name, of, history(of, n)) for n in LENGTHS]
            rows.append({"strategy": name, "space": label, "seconds": dict(zip(map(str, LENGTHS), row, strict=True))})
            slow |= max(row) > LIMIT_S
            print(f"{name:10}{label:10}" + "".join(f"{s:>10.3f}" for s in row), flush=True)
    if write:
        document = {"limit_s": LIMIT_S, "cpu": host.fingerprint().cpu, "rows": rows}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
