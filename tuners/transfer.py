"""What earlier studies found best, as configurations of the present space: tried first, never trusted.

Reads the ledgers of their run folders. Knows nothing of how a configuration is measured, and rules nothing out.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from harness import ledger
from scenarios.errors import UserError
from scenarios.space import SearchSpace, ServingConfig, Value
from tuners.results import StudyStart, Transferred, TrialResult

MOST = 3  # configurations: each costs a launch, and the next study may be another world


def transferred(folders: Sequence[Path], space: SearchSpace, present: StudyStart) -> Transferred:
    """The best feasible configurations of earlier studies of the same engine, taken from each study in turn.

    Values and knobs that the present space does not have are dropped; the rest stay at their defaults. Raises
    UserError for a folder without a study, or with one of another engine.
    """
    ranked = [(folder, *_ranked(folder, space, present)) for folder in folders]
    notes = tuple(f"{folder.name}: {note}" for folder, _, differences in ranked for note in differences)
    seen = {space.default().digest}
    chosen: list[tuple[ServingConfig, str]] = []
    for place in range(max((len(best) for _, best, _ in ranked), default=0)):
        for folder, best, _ in ranked:
            if place < len(best) and len(chosen) < MOST and best[place][0].digest not in seen:
                config, number = best[place]
                seen.add(config.digest)
                chosen.append((config, f"trial {number} of {folder.name}"))
    return Transferred(
        knobs=tuple(dict(config.knobs) for config, _ in chosen), sources=tuple(s for _, s in chosen), notes=notes
    )


def _ranked(
    folder: Path, space: SearchSpace, present: StudyStart
) -> tuple[list[tuple[ServingConfig, int]], tuple[str, ...]]:
    """Distinct configurations, best first, each with its trial's number there; and how that study differs."""
    start, results = _read(folder)
    then, now = start.scenario["engine"]["name"], present.scenario["engine"]["name"]
    if then != now:
        raise UserError(f"{folder} is a study of {then}: its knobs mean nothing to {now}; leave it away")
    worthy = [r.trial for r in results if r.trial.feasible and r.trial.score]
    found: dict[str, tuple[ServingConfig, int]] = {}
    for trial in sorted(worthy, key=lambda t: (-(t.score or 0.0), t.number)):
        config = _mapped(trial.knobs, space)
        found.setdefault(config.digest, (config, trial.number))
    return list(found.values()), _differences(start, present)


def _read(folder: Path) -> tuple[StudyStart, list[TrialResult]]:
    steps = ledger.read(folder / "ledger.jsonl")
    if "study" not in steps:
        raise UserError(f"{folder} holds no finished step yet: nothing to take over")
    try:
        trials = [TrialResult.model_validate(result) for step, result in steps.items() if step.startswith("trial/")]
        return StudyStart.model_validate(steps["study"]), trials
    except ValidationError as err:
        raise UserError(f"{folder}/ledger.jsonl was written by another version of autotune: {err}") from err


def _mapped(knobs: dict[str, Value], space: SearchSpace) -> ServingConfig:
    kept = {k.name: knobs[k.name] for k in space.knobs if knobs.get(k.name) in k.choices}
    return space.complete(kept)


def _differences(start: StudyStart, present: StudyStart) -> tuple[str, ...]:
    then, now = start.scenario, present.scenario
    pairs = {
        "another model": (then["model"], now["model"]),
        "another machine": (_machine(start), _machine(present)),
        "another version of the engine": (start.engine_version, present.engine_version),
        "another engine.version in the scenario": (then["engine"].get("version"), now["engine"].get("version")),
        "another workload": (then["workload"], now["workload"]),
        "other targets": (_targets(start), _targets(present)),
        "another objective": (then["objective"], now["objective"]),
    }
    return tuple(name for name, (there, here) in pairs.items() if there != here)


def _machine(start: StudyStart) -> tuple[object, ...]:
    """Accelerators where there are any, since they set the pace; else the processor."""
    engine = start.scenario["engine"]
    if simulated := engine.get("accelerator"):
        return (simulated, engine.get("accelerators") or 1)
    return start.host.gpus or (start.host.cpu, start.host.cores)


def _targets(start: StudyStart) -> dict[str, object]:
    """Those of all requests; a class's own are part of the workload."""
    return {name: promise for name, promise in start.scenario["slo"].items() if name != "alpha"}
