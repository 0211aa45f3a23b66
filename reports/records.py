"""A run folder, read: the ledger's steps as typed records, and the raw requests as arrays.

Knows nothing of what is shown, and decides nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from harness import ledger, observe
from harness.measurement import Measurement, QualityVerdict
from scenarios.errors import UserError
from tuners.results import Certification, FinalsRun, Reference, Run, StudyStart, TrialResult, Winner

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PlacedRun:
    """A load run and where in the study it belongs: `trial`, `control`, `finals` or `certify`."""

    stage: str
    trial: int
    run: Run

    @property
    def rate_rps(self) -> float | None:
        return self.run.measurement.rate_rps


@dataclass(frozen=True, slots=True)
class StudyRecords:
    """Everything a study has recorded so far. ``winner`` None: it is not finished."""

    folder: Path
    start: StudyStart
    scenario_yaml: str
    reference: Reference | None
    trials: tuple[TrialResult, ...]
    control: tuple[TrialResult, ...]  # of the control arm, which searched again at random; empty: none was asked for
    finals: tuple[FinalsRun, ...]
    full_quality: Mapping[int, QualityVerdict]
    certifications: tuple[Certification, ...]
    winner: Winner | None
    tracked: Mapping[str, tuple[bool, str]]

    @property
    def name(self) -> str:
        return str(self.start.scenario.get("name", self.folder.name))

    @property
    def simulated(self) -> bool:
        """Whether a stated law was measured, not hardware."""
        measured = [self.reference, *self.trials]
        return any(m is not None and m.identity is not None and m.identity.simulated for m in measured)

    @property
    def dummy_weights(self) -> bool:
        """Whether the weights were random: the speed is real, the answers are noise."""
        return bool(self.start.scenario["model"].get("weights") == "dummy")

    @property
    def targets_ms(self) -> dict[str, float]:
        """Metric -> resolved target; empty before the reference was measured."""
        return dict(self.reference.targets_ms) if self.reference else {}

    def percentile(self, metric: str) -> float:
        """Of the promise called ``metric``: `ttft`, or `chat.ttft` of the traffic class chat."""
        traffic_class, _, latency = metric.rpartition(".")
        classes = self.start.scenario["workload"].get("classes", ()) if traffic_class else ()
        slo = next((c["slo"] for c in classes if c["name"] == traffic_class), self.start.scenario["slo"])
        return float(slo[latency]["percentile"])

    def trial(self, number: int) -> TrialResult | None:
        return next((t for t in self.trials if t.trial.number == number), None)

    def quality(self, number: int) -> QualityVerdict | None:
        """The furthest the cascade went for a trial, its own or taken over from an equal one."""
        if number in self.full_quality:
            return self.full_quality[number]
        result = self.trial(number)
        if result is None or result.quality is not None or result.quality_from is None:
            return result.quality if result else None
        return next((t.quality for t in self.trials if t.folder == result.quality_from), None)

    def runs(self) -> Iterator[PlacedRun]:
        """Every judged load run, in the order of the study."""
        for result in self.trials:
            yield from (PlacedRun("trial", result.trial.number, run) for run in result.runs)
        for result in self.control:
            yield from (PlacedRun("control", result.trial.number, run) for run in result.runs)
        for final in self.finals:
            yield from (PlacedRun("finals", final.trial, run) for run in final.runs)
        for certification in self.certifications:
            parts = (*certification.earlier, certification.run)
            yield from (PlacedRun("certify", certification.trial, run) for run in parts)

    def nearest_run(self, trial: int, rate_rps: float | None) -> PlacedRun | None:
        """The trial's valid hold whose rate is nearest to ``rate_rps``, later stages first at equal distance."""
        holds = [
            r
            for r in self.runs()
            if r.trial == trial and r.run.measurement.kind == "hold" and r.run.verdict.outcome != "VOID"
        ]
        if rate_rps is None:
            return holds[-1] if holds else None
        return min(reversed(holds), key=lambda r: abs((r.rate_rps or 0.0) - rate_rps), default=None)


def read(run_folder: Path) -> StudyRecords:
    """The records of a study, finished or not. Raises UserError where there is none, or it cannot be read."""
    steps = ledger.read(run_folder / "ledger.jsonl")
    if "study" not in steps:
        raise UserError(f"{run_folder} holds no finished step yet: nothing to report")
    try:
        return _typed(run_folder, steps)
    except ValidationError as err:
        raise UserError(f"{run_folder}/ledger.jsonl was written by another version of autotune: {err}") from err


def _typed(folder: Path, steps: Mapping[str, ledger.JSONDict]) -> StudyRecords:
    def of(kind: str) -> list[tuple[list[str], ledger.JSONDict]]:
        found = [(step.split("/")[1:], result) for step, result in steps.items() if step.startswith(f"{kind}/")]
        return sorted(found, key=lambda f: [int(part) if part.isdigit() else -1 for part in f[0]])

    finals = [FinalsRun.model_validate(result) for _, result in of("finals")]
    scenario = folder / "scenario.yaml"
    return StudyRecords(
        folder=folder,
        start=StudyStart.model_validate(steps["study"]),
        scenario_yaml=scenario.read_text(encoding="utf-8") if scenario.exists() else "",
        reference=Reference.model_validate(steps["reference"]) if "reference" in steps else None,
        trials=tuple(TrialResult.model_validate(result) for _, result in of("trial")),
        control=tuple(TrialResult.model_validate(result) for _, result in of("control")),
        finals=tuple(sorted(finals, key=lambda f: (f.block, f.position))),
        full_quality={int(key[0]): QualityVerdict.model_validate(result) for key, result in of("quality")},
        certifications=tuple(Certification.model_validate(result) for _, result in of("certify")),
        winner=Winner.model_validate(steps["winner"]) if "winner" in steps else None,
        tracked={key[0]: (bool(result["ok"]), str(result["message"])) for key, result in of("tracked")},
    )


@dataclass(frozen=True, slots=True)
class Requests:
    """The judged requests of one run, by intended send time. ``inf``: failed. ``nan``: says nothing of the metric."""

    due_s: Floats
    latency_ms: Mapping[str, Floats]


def requests(folder: Path, measurement: Measurement) -> Requests | None:
    """Raw records inside the judged window, metrics as observe.py defines them; None where the file is gone."""
    path = folder / measurement.records_path
    if not path.exists():
        return None
    table = pq.read_table(path).sort_by([("t_int_ns", "ascending"), ("index", "ascending")])
    due_s = observe.column(table, "t_int_ns") / observe.NS_PER_S
    low_s, high_s = measurement.window_s
    inside = (due_s >= low_s) & (due_s < high_s)
    targets_ms = {count.metric: count.target_ms for count in measurement.slo}
    return Requests(due_s[inside], observe.latencies_ms(table.filter(pa.array(inside)), targets_ms))
