"""Records as tables of text: trials, rejections, the fidelity audit, quality.

Pure. Knows nothing of HTML; what is text here may be hostile and is escaped where it is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from harness.measurement import HostReading
from reports.quantity import ABSENT, assignments, limit, number, points, ratio, value_text
from reports.records import StudyRecords
from reports.search_charts import MIB, OUTCOMES, outcome_of
from reports.view import Answer, changed_knobs, metric_name, score_unit, worst_difference


@dataclass(frozen=True, slots=True)
class Table:
    """``words``: how many leading columns are text; the others are numbers. ``flags``: rows to point out."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    flags: Mapping[int, str] | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a trial is not the answer."""

    number: int
    outcome: str
    knobs: str
    why: str
    violated: tuple[str, ...]
    log_lines: tuple[str, ...]


def trials(records: StudyRecords, answer: Answer) -> Table:
    """One row per trial, the control first."""
    rows, flags = [], {}
    for place, result in enumerate(records.trials):
        trial = result.trial
        loss = worst_difference(records.quality(trial.number))
        peak = max((r.measurement.telemetry.rss_peak_bytes or 0 for r in result.runs), default=0)
        knobs = "the engine’s defaults" if trial.number == 0 else assignments(changed_knobs(records, trial.number))
        if result.origin.startswith(("preset", "transfer")):
            knobs = f"{knobs}  ({result.origin})"
        if trial.number == answer.trial:
            flags[place] = "winner"
        rows.append(
            (
                str(trial.number),
                knobs,
                OUTCOMES[outcome_of(trial)][0],
                number(trial.score),
                _bracket(result.capacity.highest_passed_rps, result.capacity.lowest_failed_rps)
                if result.capacity
                else ABSENT,
                ABSENT if loss is None else points(100 * loss),
                number(peak / MIB) if peak else ABSENT,
                number(result.cold_start_s),
                number(trial.seconds),
                str(result.voided) if result.voided else ABSENT,
            )
        )
    head = (
        "Trial",
        "Knobs that differ",
        "Outcome",
        f"Score, {score_unit(records)}",
        "Between, requests/s",
        "Quality, points",
        "Memory, MiB",
        "Start, s",
        "Took, s",
        "Void runs",
    )
    return Table(head, tuple(rows), words=3, flags=flags)


def rejections(records: StudyRecords, answer: Answer) -> tuple[Rejection, ...]:
    """Every configuration that is not the answer, with the reason."""
    gains = {f.trial: f.gain for f in records.winner.finalists if f.gain} if records.winner else {}
    best = max((t.trial.score for t in records.trials if t.trial.feasible and t.trial.score), default=0.0)
    found = []
    for result in records.trials:
        trial = result.trial
        if trial.number in (answer.trial, 0):
            continue
        why = trial.why
        if trial.feasible and trial.score and best > 0:
            why = f"{why} {trial.score / best:.0%} of the best score in the search."
        if trial.number in gains:
            gain = ratio(gains[trial.number])
            why = f"{why} Re-measured beside the defaults: {gain.text} {gain.interval}."
        graded = {} if trial.failure else trial.constraints
        violated = [f"{name} by {number(violation)}" for name, violation in graded.items() if violation > 0]
        outcome = "finalist" if trial.number in gains else OUTCOMES[outcome_of(trial)][0]
        found.append(
            Rejection(
                number=trial.number,
                outcome=f"{outcome}: {trial.failure.replace('_', ' ')}" if trial.failure else outcome,
                knobs=assignments(changed_knobs(records, trial.number)),
                why=why.strip(),
                violated=tuple(violated),
                log_lines=result.log_lines,
            )
        )
    return tuple(found)


def audit(records: StudyRecords) -> Table:
    """Was every run's load what was asked for?"""
    rows, flags = [], {}
    for place, placed in enumerate(records.runs()):
        seen = placed.run.measurement.audit
        if seen.void_reasons:
            flags[place] = "bad"
        rows.append(
            (
                placed.run.folder,
                "VOID: " + "; ".join(seen.void_reasons) if seen.void_reasons else "valid",
                placed.run.verdict.outcome,
                number(seen.offered_rps),
                number(seen.achieved_rps),
                f"{placed.run.measurement.n_judged:,}",
                f"{sum(placed.run.measurement.errors.values()):,}",
                number(seen.send_lateness_p50_ms),
                f"{number(seen.send_lateness_p99_ms)} / {number(seen.send_lateness_limit_ms)}",
                number(seen.loop_lag_p99_ms),
                f"{seen.generator_cpu_share:.1%}",
                *(text for _, text in disturbances(seen)),
                f"{seen.connections_opened:,}",
            )
        )
    host = (label for label, _ in disturbances(HostReading()))
    head = (
        "Run",
        "Load",
        "Targets",
        "Offered, 1/s",
        "Achieved, 1/s",
        "Judged",
        "Failed",
        "Late P50, ms",
        "Late P99 / limit, ms",
        "Loop lag P99, ms",
        "Client CPU",
        *host,
        "Connections",
    )
    return Table(head, tuple(rows), words=3, flags=flags)


def disturbances(seen: HostReading) -> tuple[tuple[str, str], ...]:
    """What went on beside the engine: label, value as text. A dash: the machine does not tell."""
    gpu = None if seen.gpu_neighbours is None else f"{seen.gpu_neighbours}{', slowed down' if seen.gpu_slowed else ''}"
    swapped = seen.swapped_bytes_per_s
    return (
        ("Steal", _percent(seen.steal_share)),
        ("Other programs", _percent(seen.foreign_cpu_share)),
        ("Engine / client waited", f"{_percent(seen.engine_wait_share)} / {_percent(seen.client_wait_share)}"),
        ("Stalled: CPU / memory / I/O", " / ".join(map(_percent, _stalls(seen)))),
        ("Quota / heat", f"{_percent(seen.throttled_share)} / {_percent(seen.thermal_throttled_share)}"),
        ("Swap, MB/s", ABSENT if swapped is None else number(swapped / 1e6)),
        ("Others on the GPU", gpu or ABSENT),
        ("Clock set by, ms", ABSENT if seen.clock_step_ms is None else f"{round(seen.clock_step_ms, 2) + 0.0:.2f}"),
    )


def _stalls(seen: HostReading) -> tuple[float | None, float | None, float | None]:
    return seen.cpu_stalled_share, seen.memory_stalled_share, seen.io_stalled_share


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{share:.1%}"


def quality(records: StudyRecords) -> Table | None:
    """Every comparison with the reference, the furthest level of each trial."""
    rows: list[tuple[str, ...]] = []
    flags = {}
    for result in records.trials:
        verdict = records.quality(result.trial.number)
        for task in verdict.tasks if verdict else ():
            if not task.passed:
                flags[len(rows)] = "bad"
            rows.append(
                (
                    str(result.trial.number),
                    task.task,
                    "holds" if task.passed else "does not hold",
                    f"{task.n:,}",
                    number(100 * task.reference_accuracy),
                    number(100 * task.accuracy),
                    points(100 * task.difference),
                    f"[{points(100 * task.difference_low)}, {points(100 * task.difference_high)}]",
                    points(-100 * task.margin),
                    f"{task.lost:,} / {task.won:,}",
                    ABSENT if verdict is None or verdict.agreement is None else f"{verdict.agreement:.1%}",
                )
            )
    head = (
        "Trial",
        "Task",
        "Verdict",
        "Items",
        "Reference, %",
        "Right, %",
        "Change, points",
        "Interval",
        "Limit",
        "Lost / won",
        "Equal tokens",
    )
    return Table(head, tuple(rows), words=3, flags=flags) if rows else None


def latencies(records: StudyRecords) -> Table:
    """Percentiles, for the metrics that have a target, of every judged run that was held at a rate."""
    held = [p for p in records.runs() if p.run.measurement.kind == "hold"]
    measured_keys = {key for p in held for key in p.run.measurement.metrics}
    keys = sorted(key for key in measured_keys if _stem(key) in records.targets_ms)
    rows = []
    for placed in held:
        measured = placed.run.measurement
        cells = []
        for key in keys:
            found = measured.metrics.get(key)
            bounds = "" if found is None or found.low is None else f" [{number(found.low)}, {number(found.high)}]"
            value = ABSENT if found is None else "never" if found.value is None else number(found.value)
            cells.append(f"{value}{bounds}")
        rows.append((placed.run.folder, number(measured.rate_rps), number(measured.goodput_rps), *cells))
    return Table(("Run", "Rate, 1/s", "Goodput, 1/s", *(_title(key) for key in keys)), tuple(rows))


def changes(records: StudyRecords, answer: Answer) -> tuple[tuple[str, str, str], ...]:
    """Knob, default value, the answer's value: only the knobs that differ."""
    control = records.trial(0)
    if control is None:
        return ()
    return tuple(
        (name, value_text(control.trial.knobs.get(name)), value_text(new)) for name, new in answer.changed.items()
    )


def unloaded(records: StudyRecords) -> str:
    """How the targets came about, in one sentence."""
    if records.reference is None:
        return ""
    parts = [
        f"{metric_name(m)} {limit(target)} ms"
        + (
            f" (unloaded median {number(records.reference.unloaded_ms[m])} ms)"
            if m in records.reference.unloaded_ms
            else ""
        )
        for m, target in records.targets_ms.items()
    ]
    return "Targets: " + ", ".join(parts) + "."


def _bracket(passed: float | None, failed: float | None) -> str:
    if passed is not None and failed is not None:
        return f"{number(passed)} – {number(failed)}"
    if passed is not None:
        return f"≥ {number(passed)}"
    return ABSENT if failed is None else f"< {number(failed)}"


def _stem(key: str) -> str:
    """The metric of `ttft_p95_ms`: `ttft`."""
    return key.rsplit("_", 2)[0]


def _title(key: str) -> str:
    """`ttft_p95_ms` as `TTFT P95, ms`."""
    metric, percentile, unit = key.rsplit("_", 2)
    return f"{metric_name(metric)} {percentile.upper()}, {unit}"
