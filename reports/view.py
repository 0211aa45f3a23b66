"""The answer of a study, from its records: what the first screen of the report and the end of `tune` say.

Pure. Knows nothing of HTML, terminals or plots.
"""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harness.measurement import QualityVerdict, SloVerdict, Verdict
from reports.quantity import Quantity, estimate, jsonable, limit, mean_of_blocks, number, ratio
from reports.records import PlacedRun, StudyRecords
from tuners.evaluate import SCORE_UNITS
from tuners.results import Winner

METRIC_NAMES: Mapping[str, str] = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "e2e": "End to end",
}
SCORE_NAMES: Mapping[str, str] = {"goodput": "Goodput", "meet": "Headroom", "latency": "Speed"}
DUMMY = (
    "Dummy weights: the speed was measured, every answer is noise. Nothing is known of accuracy: not for deployment."
)
Standing = Literal["good", "bad", "open"]


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One line of the scorecard: the default's figure, the answer's, and what to make of it."""

    label: str
    default: Quantity | None
    winner: Quantity | None
    judgement: str
    standing: Standing


@dataclass(frozen=True, slots=True)
class Deploy:
    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a study found. ``trial`` None: no configuration to name (unfinished, or none feasible)."""

    study: str
    outcome: Literal["tuned", "keep_defaults", "none_feasible", "unfinished"]
    headline: str
    reason: str
    objective: str
    trial: int | None
    changed: dict[str, Any]
    gain: Quantity | None
    rows: tuple[AnswerRow, ...]
    certification: str
    certified: Standing
    deploy: tuple[Deploy, ...]
    command: str
    seconds: float
    simulated: str = ""  # what to say of it before anything else; empty: real hardware was measured
    dummy: str = ""  # the same; empty: with real weights

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = jsonable(asdict(self))
        return document


def answer(records: StudyRecords) -> Answer:
    """The answer so far; says so where the study is not finished."""
    winner = records.winner
    chosen = _chosen(records)
    rows: list[AnswerRow] = []
    if records.trials:
        rows = [_score_row(records, chosen), *_target_rows(records, chosen), *_quality_rows(records, chosen)]
    certification, certified = _certification(winner)
    return Answer(
        study=records.name,
        outcome=winner.outcome if winner else "unfinished",
        headline=_headline(records, chosen),
        reason=_reason(winner) if winner else _progress(records),
        objective=str(records.start.scenario.get("objective", "")),
        trial=chosen,
        changed=changed_knobs(records, chosen) if chosen else {},
        gain=ratio(winner.gain) if winner and winner.gain else None,
        rows=tuple(rows),
        certification=certification,
        certified=certified,
        deploy=_deploy(winner),
        command=records.start.command,
        seconds=sum(t.trial.seconds for t in records.trials),
        simulated=_simulated(records),
        dummy=DUMMY if records.dummy_weights else "",
    )


def _simulated(records: StudyRecords) -> str:
    if not records.simulated:
        return ""
    engine = records.start.scenario["engine"]
    count = engine.get("accelerators") or 1
    named = f"{count} × {engine['accelerator']}" if count > 1 else engine["accelerator"] or "accelerator"
    return f"Simulated: no {named} was measured. Every figure follows from a stated law."


def changed_knobs(records: StudyRecords, trial: int) -> dict[str, Any]:
    """The knobs of a trial that differ from the control's; a knob that lost its meaning is None."""
    result, control = records.trial(trial), records.trial(0)
    if result is None or control is None:
        return {}
    own, base = result.trial.knobs, control.trial.knobs
    return {name: own.get(name) for name in {**base, **own} if own.get(name) != base.get(name)}


def best_so_far(records: StudyRecords) -> int | None:
    feasible = [t.trial for t in records.trials if t.trial.feasible and t.trial.score is not None]
    return max(feasible, key=lambda t: t.score or -math.inf).number if feasible else None


def score_unit(records: StudyRecords) -> str:
    return SCORE_UNITS[records.start.scenario["objective"]]


def score_name(records: StudyRecords) -> str:
    return SCORE_NAMES[records.start.scenario["objective"]]


def metric_name(metric: str) -> str:
    """`TTFT`, and `chat TTFT` of the traffic class chat."""
    traffic_class, _, latency = metric.rpartition(".")
    return f"{traffic_class} {METRIC_NAMES.get(latency, latency)}".strip()


def percentile_key(metric: str, percentile: float) -> str:
    return f"{metric}_p{percentile:g}_ms"


def worst_difference(quality: QualityVerdict | None) -> float | None:
    """The lowest difference to the reference over the tasks, as a share; None where none was measured."""
    return min((task.difference for task in quality.tasks), default=None) if quality else None


def _chosen(records: StudyRecords) -> int | None:
    winner = records.winner
    if winner is None:
        return best_so_far(records)
    if winner.outcome == "none_feasible":
        return None
    return winner.trial if winner.trial is not None else 0


def _headline(records: StudyRecords, chosen: int | None) -> str:
    winner = records.winner
    if winner is None:
        total = records.start.scenario["budget"]["trials"] + 1
        return f"Not finished: {len(records.trials)} of {total} configurations tried so far."
    if winner.outcome == "none_feasible":
        return "No configuration meets the targets."
    if winner.outcome == "keep_defaults":
        return "Keep the defaults: nothing tried is proven better."
    what = score_name(records).lower()
    gained = f"{number(winner.gain.value)}× the defaults’ {what}" if winner.gain else f"Trial {chosen} is the answer"
    passed = winner.certification is not None and winner.certification.outcome == "PASS"
    return f"{gained}, {'every target certified' if passed else 'targets not certified'}."


def _reason(winner: Winner) -> str:
    miss = winner.nearest_miss
    return f"{winner.reason} {miss[0].upper()}{miss[1:]}." if miss else winner.reason


def _progress(records: StudyRecords) -> str:
    if records.winner is None and records.finals:
        blocks = len({f.block for f in records.finals})
        return f"The finalists are being re-measured; block {blocks} is the latest. Figures below are not final."
    best = best_so_far(records)
    if best is None:
        return "No feasible configuration yet."
    return f"Best so far is trial {best}, by a short search-grade measurement: not re-measured, not certified."


def _score_row(records: StudyRecords, chosen: int | None) -> AnswerRow:
    unit = score_unit(records)
    label = score_name(records)
    default = _score(records, 0, unit)
    if chosen in (None, 0):
        return AnswerRow(label, default, None, "", "open")
    gain = records.winner.gain if records.winner else None
    if gain is None:
        return AnswerRow(label, default, _score(records, chosen or 0, unit), "search-grade", "open")
    found = ratio(gain)
    standing: Standing = "good" if gain.low is not None and gain.low > 1 else "open"
    return AnswerRow(
        label, default, _score(records, chosen or 0, unit), f"{found.text} {found.interval}, {found.note}", standing
    )


def _score(records: StudyRecords, trial: int, unit: str) -> Quantity | None:
    scores = [f.score for f in records.finals if f.trial == trial]
    if scores:
        return mean_of_blocks(scores, unit)
    result = records.trial(trial)
    if result is None or result.trial.score is None:
        return None
    return Quantity(result.trial.score, unit, note="search-grade")


def _target_rows(records: StudyRecords, chosen: int | None) -> list[AnswerRow]:
    default_score = _score(records, 0, score_unit(records))
    rate = default_score.value if default_score and default_score.unit == "requests/s" else None
    default = records.nearest_run(0, rate)
    own = _certified_run(records, chosen)
    if own is None:
        own = records.nearest_run(chosen, _own_rate(records, chosen)) if chosen else default
    if chosen == 0:
        default = own
    verdicts = {v.metric: v for v in own.run.verdict.slo} if own else {}
    rows = []
    for metric, target_ms in records.targets_ms.items():
        percentile = records.percentile(metric)
        judgement, standing = _judged(verdicts.get(metric), target_ms)
        rows.append(
            AnswerRow(
                f"{metric_name(metric)} P{percentile:g}",
                _latency(default, metric, percentile),
                _latency(own, metric, percentile) if chosen else None,
                judgement,
                standing,
            )
        )
    return rows


def _own_rate(records: StudyRecords, trial: int) -> float | None:
    score = _score(records, trial, score_unit(records))
    return score.value if score and score.unit == "requests/s" else None


def _certified_run(records: StudyRecords, chosen: int | None) -> PlacedRun | None:
    return next((r for r in reversed(list(records.runs())) if r.stage == "certify" and r.trial == chosen), None)


def _latency(placed: PlacedRun | None, metric: str, percentile: float) -> Quantity | None:
    if placed is None:
        return None
    note = f"at {number(placed.rate_rps)} requests/s" if placed.rate_rps is not None else ""
    return estimate(placed.run.measurement.metrics.get(percentile_key(metric, percentile)), "ms", note)


def _judged(verdict: SloVerdict | None, target_ms: float) -> tuple[str, Standing]:
    allowed = f"≤ {limit(target_ms)} ms"
    if verdict is None:
        return allowed, "open"
    standing: Standing = {"PASS": "good", "FAIL": "bad"}.get(verdict.outcome, "open")  # type: ignore[assignment]
    word = {"PASS": "holds", "FAIL": "missed", "VOID": "void"}.get(verdict.outcome, "undecided")
    return f"{allowed}, {word}", standing


def _quality_rows(records: StudyRecords, chosen: int | None) -> list[AnswerRow]:
    quality = records.quality(chosen) if chosen else None
    return [
        AnswerRow(
            label=f"Quality: {task.task}",
            default=Quantity(100 * task.reference_accuracy, "%", note="reference"),
            winner=Quantity(
                100 * task.difference,
                "points",
                100 * task.difference_low,
                100 * task.difference_high,
                f"{number(100 * task.accuracy)}% of {task.n} items",
            ),
            judgement=f"≥ −{limit(100 * task.margin)} points, {'holds' if task.passed else 'worse'}",
            standing="good" if task.passed else "bad",
        )
        for task in (quality.tasks if quality else ())
    ]


def _certification(winner: Winner | None) -> tuple[str, Standing]:
    if winner is None or winner.certification is None:
        return "Not certified.", "open"
    verdict: Verdict = winner.certification
    rate_rps = winner.certified.rate_rps if winner.certified else winner.certified_rate_rps
    at = f"at {number(rate_rps)} requests/s" if rate_rps is not None else "at the asked concurrency"
    n = max((v.n for v in verdict.slo), default=0)
    if verdict.outcome == "PASS":
        return f"Certified {at}: every target holds, shown by a sequential test on {n:,} requests.", "good"
    if verdict.outcome == "FAIL":
        return f"Refuted {at}: {'; '.join(verdict.reasons)}.", "bad"
    if verdict.outcome == "VOID":
        return f"Void {at}: the load was not what was asked for. {'; '.join(verdict.reasons)}.", "open"
    more = max((v.requests_to_decide or 0 for v in verdict.slo), default=0)
    hint = f" About {more:,} more requests would decide." if more else ""
    return f"Undecided {at} after {n:,} requests.{hint}", "open"


def _deploy(winner: Winner | None) -> tuple[Deploy, ...]:
    if winner is None or winner.outcome == "none_feasible":
        return ()
    blocks = []
    for label, content in winner.export.items():
        if isinstance(content, Mapping):
            text = "\n".join(f"export {name}={shlex.quote(str(value))}" for name, value in content.items())
        else:
            text = content if isinstance(content, str) else json.dumps(content, indent=2)
        if text:
            blocks.append(Deploy(label, text))
    return tuple(blocks)
