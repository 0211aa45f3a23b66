"""The recorded table of a real llama.cpp engine, replayed: the sixth world, and the only one that is not simulated.

`benchmarks/llamacpp_table.py` measured every configuration of one space, several rounds each. The truth of one is the
mean of its rounds; a trial draws from it with the spread that the rounds have, and costs the seconds that it cost. What
missed a target or lost accuracy is infeasible, graded as it was. Knows nothing of how searches are judged.
"""

import json
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna

from harness import plugins
from scenarios.space import Effect, Knob, SearchSpace, ServingConfig
from search.arms import launches_of
from search.courses import Search
from search.peers import suggested
from tuners.base import Trial

PATH = Path(__file__).parents[1] / "results" / "llamacpp_table.json"
NAME = "llamacpp"
ARMS = ("random", "tpe", "gp", "staged", "plain tpe")
HOURS = 0.13  # some 40 launches
EFFECTS: dict[str, Effect] = {
    "variant": "precision",
    "slots": "batching",
    "ubatch": "batching",
    "threads": "compute",
    "kv_layout": "memory",
}
LENIENCY = 2.5  # times the recorded targets: at 1, 2 of the 160 keep them, and not the defaults
DIED_S = 1.0  # of a launch of which no seconds were recorded


@dataclass(frozen=True, slots=True)
class Entry:
    """One configuration, over its rounds. ``score`` None: it did not run."""

    config: ServingConfig
    score: float | None
    constraints: dict[str, float]
    seconds: float
    launch_s: float

    @property
    def feasible(self) -> bool:
        return self.score is not None and all(v <= 0 for v in self.constraints.values())


@dataclass(frozen=True)
class Table:
    """What was measured. ``document``: the file."""

    document: Mapping[str, Any]

    @cached_property
    def space(self) -> SearchSpace:
        asked = self.document["scenario"]["search"]["knobs"]
        default = self.document["default"]
        knobs = []
        for name, value in default.items():
            choices = tuple(
                dict.fromkeys([*(_plain(v) for v in asked.get(name, ())), *(() if name in asked else (value,))])
            )
            knobs.append(Knob(name, choices, value, EFFECTS.get(name, "compute"), ""))
        return SearchSpace("llamacpp", tuple(knobs))

    @cached_property
    def entries(self) -> dict[str, Entry]:
        rounds: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in self.document["rows"]:
            if row["state"] != "void":  # the machine's doing: nobody is told
                rounds[ServingConfig("llamacpp", row["knobs"]).digest].append(row)
        return {key: self._entry(rows) for key, rows in rounds.items()}

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the logarithm of one round's score, from the configurations with several."""
        rounds: dict[str, list[float]] = defaultdict(list)
        for row in self.document["rows"]:
            if row["state"] == "complete":
                rounds[ServingConfig("llamacpp", row["knobs"]).digest].append(math.log(row["score_rps"]))
        off = [(x - fmean(xs)) ** 2 for xs in rounds.values() if len(xs) > 1 for x in xs]
        free = sum(len(xs) - 1 for xs in rounds.values())
        return math.sqrt(sum(off) / free) if free else 0.0

    @cached_property
    def truths(self) -> dict[str, float]:
        """Short digest -> answers/s of what keeps every promise."""
        return {e.config.short: e.score for e in self.entries.values() if e.feasible and e.score is not None}

    def _entry(self, rows: Sequence[Mapping[str, Any]]) -> Entry:
        complete = [r for r in rows if r["state"] == "complete"]
        quality = self.document["quality"].get(str(rows[0]["knobs"]["variant"]), {"violation": 0.0})
        constraints = {"engine": 1.0}
        if complete:
            metrics = complete[0]["violation"]
            slo = max((1 + fmean(r["violation"][m] for r in complete)) / LENIENCY - 1 for m in metrics)
            constraints = {"quality": quality["violation"], "slo": slo}
        return Entry(
            config=ServingConfig("llamacpp", dict(rows[0]["knobs"])),
            score=fmean(r["score_rps"] for r in complete) if complete else None,
            constraints=constraints,
            seconds=fmean(r.get("seconds") or DIED_S for r in rows),
            launch_s=fmean(r.get("launch_s") or 0.0 for r in rows),
        )

    def trial(self, number: int, config: ServingConfig, rng: random.Random) -> Trial:
        """As it was measured, give or take what its rounds differ by."""
        entry = self.entries[config.digest]
        state = "complete" if entry.score is not None else "infeasible"
        return Trial(
            number=number,
            knobs=dict(config.knobs),
            config_digest=config.digest,
            state=state,
            score=None if entry.score is None else entry.score * math.exp(rng.gauss(0.0, self.spread)),
            constraints=entry.constraints,
            seconds=entry.seconds,
            launch_s=entry.launch_s,
            failure=None if state == "complete" else "crashed",
        )


def table(path: Path = PATH) -> Table:
    return Table(json.loads(path.read_text(encoding="utf-8")))


def searched(at: Table, tuner: str, seed: int, seconds: float) -> Search:
    """A tuner on the table: the defaults, then what it asks for until the time is over or all was tried."""
    rng = random.Random(seed)
    asked = plugins.load("tuners", tuner)(at.space, seed)
    history = [at.trial(0, at.space.default(), rng)]
    spent = 0.0
    while spent < seconds:
        config = asked.ask(history, lambda c: c.digest in at.entries)
        if config is None:
            break
        history.append(at.trial(len(history), config, rng))
        spent += history[-1].seconds
    return Search(launches_of(history))


def plain_tpe(at: Table, seed: int, seconds: float) -> Search:
    """Optuna's own, failures and broken promises told as FAIL; what it asks for twice is measured twice."""
    rng = random.Random(seed)
    trials = [at.trial(0, at.space.default(), rng)]
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    spent = 0.0
    while spent < seconds:
        asked = study.ask()
        config = suggested(at.space, asked)
        if config.digest not in at.entries:  # every attempt to measure it was void
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
            continue
        trials.append(at.trial(len(trials), config, rng))
        spent += trials[-1].seconds
        if trials[-1].feasible:
            study.tell(asked, trials[-1].score)
        else:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
    return Search(launches_of(trials))


def _plain(value: Any) -> Any:
    """Variants are spelled in capitals in the store, and small in a configuration."""
    return value.lower() if isinstance(value, str) else value
