"""A run folder as trackers tell it: flat parameters, metrics and tags of the study and of each trial.

Pure but for reading the ledger. Knows no tracker.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from harness import ledger
from harness.measurement import Estimate, Measurement, QualityVerdict
from scenarios.errors import UserError
from scenarios.space import digest
from scenarios.spec import Scenario
from tuners.results import ARM, Certification, FinalsRun, Reference, Run, StudyStart, TrialResult, Winner

Flat = dict[str, str | int | float | bool]
Metrics = dict[str, float]
Tags = dict[str, str]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a study has recorded so far. ``digest`` is the study's identity in every mirror."""

    run: Path
    digest: str
    start: StudyStart
    scenario: Scenario
    reference: Reference | None
    trials: tuple[TrialResult, ...]
    arm: tuple[TrialResult, ...]  # the control arm's: searched to compare with, never deployed
    finals: tuple[FinalsRun, ...]
    full_quality: dict[int, QualityVerdict]
    certifications: tuple[Certification, ...]
    winner: Winner | None
    stamps: dict[str, float]

    @classmethod
    def read(cls, run: Path) -> Self:
        """Raises UserError where ``run`` is not the folder of a study, or nothing is recorded yet."""
        path = run / "ledger.jsonl"
        steps = ledger.read(path)
        if "study" not in steps:
            raise UserError(f"{path}: nothing is recorded yet")
        try:
            return cls._typed(run, steps, ledger.stamps(path))
        except ValidationError as err:
            raise UserError(f"{path} was written by another version of autotune: {err}") from err

    @classmethod
    def _typed(cls, run: Path, steps: Mapping[str, ledger.JSONDict], stamps: dict[str, float]) -> Self:
        start = StudyStart.model_validate(steps["study"])
        named = _by_kind(steps)
        return cls(
            run=run,
            digest=digest(steps["study"]),
            start=start,
            scenario=Scenario.model_validate(start.scenario),
            reference=Reference.model_validate(steps["reference"]) if "reference" in steps else None,
            trials=tuple(TrialResult.model_validate(r) for _, r in named.get("trial", [])),
            arm=tuple(TrialResult.model_validate(r) for _, r in named.get("control", [])),
            finals=tuple(FinalsRun.model_validate(r) for _, r in named.get("finals", [])),
            full_quality={int(n[0]): QualityVerdict.model_validate(r) for n, r in named.get("quality", [])},
            certifications=tuple(Certification.model_validate(r) for _, r in named.get("certify", [])),
            winner=Winner.model_validate(steps["winner"]) if "winner" in steps else None,
            stamps=stamps,
        )

    @property
    def title(self) -> str:
        """The name under which mirrors gather the studies of one scenario."""
        return f"autotune-{self.scenario.name}"

    @property
    def deployable(self) -> bool:
        """Whether there is an answer that others may take from a registry."""
        return self.winner is not None and self.winner.outcome != "none_feasible" and not self.noise

    @property
    def count(self) -> str:
        """What there is, for people."""
        arm = f" and {len(self.arm)} of its control arm" if self.arm else ""
        return f"1 study, {len(self.trials)} trials{arm}"

    def ended_s(self, number: int) -> float:
        """When the trial, or that of the control arm, was recorded: Unix time."""
        kind = "trial" if number < len(self.trials) else "control"
        return self.stamps[f"{kind}/{number:03d}"]

    @property
    def simulated(self) -> bool:
        """Whether a stated law was measured, not hardware."""
        measured = [self.reference, *self.trials]
        return any(m is not None and m.identity is not None and m.identity.simulated for m in measured)

    @property
    def noise(self) -> str:
        """What is said before anything else of a study with dummy weights; else empty."""
        return "Dummy weights: every answer is noise. " if self.scenario.model.weights == "dummy" else ""

    def study_params(self) -> Flat:
        host = self.start.host.model_dump(include={"cpu", "cores", "memory_bytes", "gpus", "kernel"})
        told: dict[str, Any] = {
            **self.scenario.to_dict(),
            "engine_version": self.start.engine_version,
            "model_label": self.scenario.model.label,
            "host": host,
        }
        if self.reference is not None:
            told["resolved_target_ms"] = self.reference.targets_ms
        return dict(_flat(told))

    def study_metrics(self) -> Metrics:
        if self.winner is None:
            return {}
        metrics = _present(
            winner_score=self.winner.score,
            default_score=self.winner.default_score,
            certified_rate_rps=self.winner.certified_rate_rps,
        )
        if self.winner.gain is not None:
            metrics |= _interval("gain", self.winner.gain)
        if self.winner.certified is not None:
            metrics |= {f"certified/{name}": value for name, value in _measured(self.winner.certified).items()}
        return metrics

    def study_tags(self) -> Tags:
        tags = {
            "autotune.role": "study",
            "autotune.study_digest": self.digest,
            "autotune.run": self.run.resolve().name,
            "autotune.command": self.start.command,
            **{f"autotune.{name}": value for name, value in self._provenance().items()},
        }
        if self.winner is not None:
            tags["autotune.outcome"] = self.winner.outcome
        return tags

    def version_tags(self) -> Tags:
        """Of the registered version: what it is, and what it was proved on."""
        assert self.winner is not None
        tags = {**self._provenance(), "study_digest": self.digest, "outcome": self.winner.outcome}
        if self.winner.identity is not None:
            tags["config_digest"] = self.winner.identity.config_digest
            if self.winner.identity.model_digest is not None:
                tags["model_digest"] = self.winner.identity.model_digest
        return tags

    def _provenance(self) -> Tags:
        return {
            "engine": self.scenario.engine.name,
            "engine_version": self.start.engine_version,
            "simulated": str(self.simulated).lower(),
            "weights": self.scenario.model.weights or "real",
            "host": self.start.host.hostname_hash,
            "scenario_digest": self.start.scenario_digest,
            "workload_digest": self.scenario.workload.digest,
            "started_at": self.start.started_at,
        }

    def trial_metrics(self, result: TrialResult) -> Metrics:
        """Search-grade figures of the trial, then what finals and certification added if it got so far."""
        trial = result.trial
        metrics = _present(
            score=trial.score,
            seconds=trial.seconds,
            voided=result.voided,
            cold_start_s=result.cold_start_s,
            expected_memory_bytes=result.expected_memory_bytes,
            capacity_rps=result.capacity.rate_rps if result.capacity else None,
        )
        metrics |= {f"constraint/{name}": violation for name, violation in trial.constraints.items()}
        shown = _shown(result.runs)
        if shown is not None:
            metrics |= _measured(shown.measurement)
        quality = self._quality(result)
        for task in quality.tasks if quality else ():
            metrics[f"quality/{task.task}_accuracy"] = task.accuracy
            metrics[f"quality/{task.task}_difference"] = task.difference
            metrics[f"quality/{task.task}_difference_low"] = task.difference_low
            metrics[f"quality/{task.task}_difference_high"] = task.difference_high
        metrics |= {f"final_score/{final.block}": final.score for final in self.finals if final.trial == trial.number}
        metrics |= {f"certify/{k}_rate_rps": c.rate_rps for k, c in enumerate(self._certifications(trial.number))}
        return metrics

    def trial_tags(self, result: TrialResult) -> Tags:
        trial = result.trial
        tags = {
            "autotune.role": ARM if result.origin == ARM else "trial",
            "autotune.trial": f"{trial.number:03d}",
            "autotune.state": trial.state,
            "autotune.feasible": str(trial.feasible).lower(),
            "autotune.config_digest": trial.config_digest,
            "autotune.why": trial.why,
            "autotune.simulated": str(result.identity is not None and result.identity.simulated).lower(),
        }
        if trial.failure is not None:
            tags["autotune.failure"] = trial.failure
        if self.winner is not None and self.winner.trial == trial.number:
            tags["autotune.winner"] = "true"
        for k, certification in enumerate(self._certifications(trial.number)):
            tags[f"autotune.certify.{k}"] = certification.run.verdict.outcome
        return tags

    def _quality(self, result: TrialResult) -> QualityVerdict | None:
        """The furthest the cascade went, for the trial or for the one whose answers are the same."""
        if result.trial.number in self.full_quality or result.quality is not None:
            return self.full_quality.get(result.trial.number, result.quality)
        return next((t.quality for t in (*self.trials, *self.arm) if t.folder == result.quality_from), None)

    def _certifications(self, number: int) -> list[Certification]:
        return [c for c in self.certifications if c.trial == number]


def _by_kind(steps: Mapping[str, ledger.JSONDict]) -> dict[str, list[tuple[list[str], ledger.JSONDict]]]:
    """`trial/003` -> under "trial": (["003"], result), in the order of recording."""
    kinds: dict[str, list[tuple[list[str], ledger.JSONDict]]] = {}
    for step, result in steps.items():
        kind, *names = step.split("/")
        kinds.setdefault(kind, []).append((names, result))
    return kinds


def _shown(runs: tuple[Run, ...]) -> Run | None:
    """The run that stands for the trial: the fastest hold that did not fail, else the last run."""
    holds = [r for r in runs if r.measurement.kind == "hold" and r.verdict.outcome in ("PASS", "UNDECIDED")]
    if holds:
        return max(holds, key=lambda r: r.measurement.rate_rps or 0.0)
    return runs[-1] if runs else None


def _measured(measurement: Measurement) -> Metrics:
    metrics = _present(
        rate_rps=measurement.rate_rps,
        achieved_rps=measurement.audit.achieved_rps,
        goodput_rps=measurement.goodput_rps,
        throughput_rps=measurement.throughput_rps,
        throughput_output_tps=measurement.throughput_output_tps,
        errors=sum(measurement.errors.values()),
        rss_peak_bytes=measurement.telemetry.rss_peak_bytes,
    )
    if (server := measurement.server) is not None:
        told = server.model_dump(exclude={"requests", "client_requests", "samples", "disagreements"})
        metrics |= _present(**{f"server/{name}": value for name, value in told.items()})
        metrics["server/disagreements"] = float(len(server.disagreements))
    if (gpu := measurement.telemetry.gpu) is not None:
        told = gpu.model_dump(exclude={"held_back_by"})
        metrics |= _present(**{f"gpu/{name}": value for name, value in told.items()})
    for name, estimate in measurement.metrics.items():
        metrics |= _interval(name, estimate)
    return metrics


def _interval(name: str, estimate: Estimate) -> Metrics:
    return _present(**{name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high})


def _present(**values: float | None) -> Metrics:
    return {name: float(value) for name, value in values.items() if value is not None}


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """`{"a": {"b": [1, 2]}}` -> ("a.b", "1, 2"). Absent values are left out."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            yield from _flat({f"{name}.{i}": item for i, item in enumerate(value)}, prefix)
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(str(item) for item in value)
        elif value is not None:
            yield f"{prefix}{name}", value
