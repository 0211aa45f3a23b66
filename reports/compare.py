"""Two studies side by side: their answers, what differs beyond luck, and whether they may be compared at all.

Reads raw records where they are still there. Knows nothing of terminals or HTML.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.measurement import Host
from harness.stats.intervals import ratio_interval
from harness.versus import Difference, differences, reread
from reports.quantity import Quantity, jsonable, ratio
from reports.records import StudyRecords
from reports.view import Answer, answer

FEWEST_BLOCKS = 2


@dataclass(frozen=True, slots=True)
class KnobDifference:
    """A knob whose value is not the same in both answers; None: it has no meaning there."""

    knob: str
    first: Any
    second: Any


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    first: Quantity | None
    second: Quantity | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """``caveats``: why the figures may not be put beside each other; empty: they may.

    ``gain``: score of the second / score of the first, over blocks of the same traffic; None: there are not two.
    ``beyond_luck``: figures of one hold of both, at one rate on the same requests; empty: there is none.
    """

    first: Answer
    second: Answer
    rows: tuple[Row, ...]
    differences: tuple[KnobDifference, ...]
    caveats: tuple[str, ...]
    gain: Quantity | None = None
    beyond_luck: tuple[Difference, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = jsonable(asdict(self))
        return document


def compare(first: StudyRecords, second: StudyRecords) -> Comparison:
    one, two = answer(first), answer(second)
    return Comparison(
        one,
        two,
        _rows(one, two),
        _differences(first, one, second, two),
        _caveats(first, second),
        _gain(_scores(first, one), _scores(second, two)),
        _beyond_luck(_holds(first, one), _holds(second, two)),
    )


def _scores(records: StudyRecords, found: Answer) -> dict[tuple[int, int], float]:
    """Block and seed -> score of the answer when it was measured again."""
    return {(f.block, f.seed): f.score for f in records.finals if f.trial == (found.trial or 0)}


def _gain(first: dict[tuple[int, int], float], second: dict[tuple[int, int], float]) -> Quantity | None:
    pairs = [(second[block], score) for block, score in first.items() if second.get(block, 0) > 0 and score > 0]
    return ratio(ratio_interval(pairs)) if len(pairs) >= FEWEST_BLOCKS else None


def _holds(records: StudyRecords, found: Answer) -> dict[tuple[Any, ...], Path]:
    """What was sent -> the folder of the answer's hold under it."""
    holds = [p.run for p in records.runs() if p.trial == (found.trial or 0) and p.run.measurement.kind == "hold"]
    return {
        (m.rate_rps, m.seed, m.workload_digest): records.folder / run.folder for run in holds for m in [run.measurement]
    }


def _beyond_luck(first: dict[tuple[Any, ...], Path], second: dict[tuple[Any, ...], Path]) -> tuple[Difference, ...]:
    """Of the hold with most requests under which both answers were."""
    both = ((reread(first[sent]), reread(second[sent])) for sent in first if sent in second)
    whole = [(a, b) for a, b in both if a is not None and b is not None]
    return differences(*max(whole, key=lambda pair: pair[0].measurement.n_judged)) if whole else ()


def _rows(one: Answer, two: Answer) -> tuple[Row, ...]:
    def own(found: Answer) -> dict[str, Quantity | None]:
        shown = {row.label: row.default if found.trial in (None, 0) else row.winner for row in found.rows}
        return {"Gain over its defaults": found.gain, **shown}

    first, second = own(one), own(two)
    rows = (Row(label, first.get(label), second.get(label)) for label in {**first, **second})
    return tuple(row for row in rows if row.first or row.second)


def _differences(first: StudyRecords, one: Answer, second: StudyRecords, two: Answer) -> tuple[KnobDifference, ...]:
    def knobs(records: StudyRecords, found: Answer) -> dict[str, Any]:
        result = records.trial(found.trial or 0)
        return dict(result.trial.knobs) if result else {}

    a, b = knobs(first, one), knobs(second, two)
    return tuple(KnobDifference(name, a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name))


def _caveats(first: StudyRecords, second: StudyRecords) -> tuple[str, ...]:
    """What must be equal for a difference to be the configurations'."""
    one, two = first.start, second.start
    sides: dict[str, tuple[Any, Any]] = {
        "different machines": (_machine(one.host), _machine(two.host)),
        "different kernels": (one.host.kernel, two.host.kernel),
        "different frequency governors": (one.host.governor, two.host.governor),
        "one of them simulated": (first.simulated, second.simulated),
        "different accelerators": (_accelerators(one.scenario), _accelerators(two.scenario)),
        "different engine versions": (one.engine_version, two.engine_version),
        "different models": (one.scenario["model"], two.scenario["model"]),
        "different traffic": (one.scenario["workload"], two.scenario["workload"]),
        "different targets": (first.targets_ms, second.targets_ms),
        "different objectives": (one.scenario["objective"], two.scenario["objective"]),
    }
    return tuple(what for what, (a, b) in sides.items() if a != b)


def _accelerators(scenario: Mapping[str, Any]) -> tuple[Any, ...]:
    """Those that a simulated engine stands for."""
    return tuple(scenario["engine"].get(key) for key in ("accelerator", "accelerators", "version"))


def _machine(host: Host) -> tuple[Any, ...]:
    return host.hostname_hash, host.cpu, host.cores, host.memory_bytes, host.gpus
