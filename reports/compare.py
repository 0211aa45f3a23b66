"""Two studies side by side: their answers, their knobs, and whether they may be compared at all.

Pure. Knows nothing of terminals or HTML.
"""

from dataclasses import asdict, dataclass
from typing import Any

from harness.measurement import Host
from reports.quantity import Quantity, jsonable
from reports.records import StudyRecords
from reports.view import Answer, answer


@dataclass(frozen=True, slots=True)
class Difference:
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
    """``caveats``: why the figures may not be put beside each other; empty: they may."""

    first: Answer
    second: Answer
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    caveats: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = jsonable(asdict(self))
        return document


def compare(first: StudyRecords, second: StudyRecords) -> Comparison:
    one, two = answer(first), answer(second)
    return Comparison(one, two, _rows(one, two), _differences(first, one, second, two), _caveats(first, second))


def _rows(one: Answer, two: Answer) -> tuple[Row, ...]:
    def own(found: Answer) -> dict[str, Quantity | None]:
        shown = {row.label: row.default if found.trial in (None, 0) else row.winner for row in found.rows}
        return {"Gain over its defaults": found.gain, **shown}

    first, second = own(one), own(two)
    rows = (Row(label, first.get(label), second.get(label)) for label in {**first, **second})
    return tuple(row for row in rows if row.first or row.second)


def _differences(first: StudyRecords, one: Answer, second: StudyRecords, two: Answer) -> tuple[Difference, ...]:
    def knobs(records: StudyRecords, found: Answer) -> dict[str, Any]:
        result = records.trial(found.trial or 0)
        return dict(result.trial.knobs) if result else {}

    a, b = knobs(first, one), knobs(second, two)
    return tuple(Difference(name, a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name))


def _caveats(first: StudyRecords, second: StudyRecords) -> tuple[str, ...]:
    """What must be equal for a difference to be the configurations'."""
    one, two = first.start, second.start
    sides: dict[str, tuple[Any, Any]] = {
        "different machines": (_machine(one.host), _machine(two.host)),
        "different kernels": (one.host.kernel, two.host.kernel),
        "different frequency governors": (one.host.governor, two.host.governor),
        "different engine versions": (one.engine_version, two.engine_version),
        "different models": (one.scenario["model"], two.scenario["model"]),
        "different traffic": (one.scenario["workload"], two.scenario["workload"]),
        "different targets": (first.targets_ms, second.targets_ms),
        "different objectives": (one.scenario["objective"], two.scenario["objective"]),
    }
    return tuple(what for what, (a, b) in sides.items() if a != b)


def _machine(host: Host) -> tuple[Any, ...]:
    return host.hostname_hash, host.cpu, host.cores, host.memory_bytes, host.gpus
