"""Plots of the load runs: latency distributions, requests over time, evidence, offered rate.

One function per plot, records to figures. Knows nothing of pages; the look is plots.py, the arithmetic series.py.
"""

import math

import numpy as np

from harness.measurement import Measurement
from reports.plots import Figure, Trace, band, figure, line, mark, marks, numbers, points, spread, text
from reports.quantity import Quantity, limit, number
from reports.records import PlacedRun, Requests, StudyRecords, requests
from reports.series import distribution, rolling_quantiles
from reports.view import Answer, metric_name

SHOWN_REQUESTS = 4000


def latency_curves(records: StudyRecords, answer: Answer) -> list[tuple[str, str, Figure]]:
    """Per target: the distribution of the answer and of the defaults, bands and target; failed never arrive."""
    own = _final_run(records, answer)
    default = records.nearest_run(0, own.rate_rps if own else None)
    pairs = [(own, "--winner", f"trial {answer.trial}")] if own and answer.trial else []
    pairs += [(default, "--default", "defaults")] if default else []
    loaded = [(p.run.measurement, requests(records.folder, p.run.measurement), c, n) for p, c, n in pairs if p]
    found = []
    for metric, target_ms in records.targets_ms.items():
        traces: list[Trace] = []
        notes, reach = [], [target_ms * 1.3]
        for measurement, raw, colour, name in loaded:
            if raw is None or np.isnan(raw.latency_ms[metric]).all():
                continue
            curve = distribution(raw.latency_ms[metric], _effective(measurement, raw, metric))
            label = f"{name}, {number(measurement.rate_rps)} requests/s"
            traces += band(curve.at_ms, 100 * curve.low, 100 * curve.high, colour)
            hover = "%{x:.4g} ms: %{y:.1f} %<extra></extra>"
            steps = {"shape": "hv"}
            traces.append(line(curve.at_ms, 100 * curve.share, colour, name=label, line=steps, hovertemplate=hover))
            notes.append(f"{label}: {curve.n:,} requests, {curve.failed:,} failed")
            if len(curve.at_ms):
                reach.append(min(float(np.interp(0.99, curve.share, curve.at_ms)), 4 * target_ms))
        if not traces:
            continue
        title = metric_name(metric)
        lines = marks(
            mark(target_ms, f"target {limit(target_ms)} ms"),
            mark(records.percentile(metric), f"P{records.percentile(metric):g}", axis="y", colour="--muted"),
        )
        shown = figure(
            traces,
            x=f"{title}, ms",
            y="answered within, % of requests",
            xaxis={"range": [0, max(reach)]},
            yaxis={"range": [0, 101]},
            **lines,
        )
        found.append((title, "; ".join(notes), shown))
    return found


def over_time(records: StudyRecords, answer: Answer) -> list[tuple[str, str, Figure]]:
    """Every request of the certification (or of the best run there is) by when it was due."""
    placed = _final_run(records, answer)
    raw = requests(records.folder, placed.run.measurement) if placed else None
    if placed is None or raw is None:
        return []
    found = []
    for metric, target_ms in records.targets_ms.items():
        values = raw.latency_ms[metric]
        answered, failed = np.flatnonzero(np.isfinite(values)), np.flatnonzero(np.isposinf(values))
        if not len(answered):
            continue
        slow = answered[values[answered] > target_ms]
        thinned = answered[:: math.ceil(len(answered) / SHOWN_REQUESTS)]
        kept = np.union1d(thinned, slow)
        top = float(max(values[kept].max(), target_ms)) * 1.08
        colours = ["--fail" if v > target_ms else "--winner" for v in values[kept]]
        at, (median, tail) = rolling_quantiles(raw.due_s, values, (0.5, records.percentile(metric) / 100))
        dots = {"size": 4, "opacity": 0.45, "line": {"width": 0}}
        hover = "%{x:.2f} s: %{y:.4g} ms<extra></extra>"
        title = metric_name(metric)
        traces = [
            points(
                numbers(raw.due_s[kept]),
                numbers(values[kept]),
                colours,
                marker=dots,
                hovertemplate=hover,
                name="request",
            ),
            line(at, median, "--ink", name="median", hovertemplate=hover),
            line(
                at,
                tail,
                "--ink",
                line={"dash": "dot", "width": 1.5},
                name=f"P{records.percentile(metric):g}",
                hovertemplate=hover,
            ),
        ]
        if len(failed):
            cross = {"symbol": "x", "size": 8}
            traces.append(
                points(
                    numbers(raw.due_s[failed]),
                    [top] * len(failed),
                    "--fail",
                    marker=cross,
                    name="failed",
                    hovertemplate="%{x:.2f} s: failed<extra></extra>",
                )
            )
        shown = figure(
            traces,
            x="intended send time, s",
            y=f"{title}, ms",
            yaxis={"range": [0, top * 1.04]},
            **marks(mark(target_ms, f"target {limit(target_ms)} ms", axis="y")),
        )
        note = f"{len(answered):,} answered, {len(slow):,} of them late, {len(failed):,} failed"
        found.append((title, note if len(kept) == len(answered) else f"{note}; {len(kept):,} drawn", shown))
    return found


def evidence(records: StudyRecords, answer: Answer) -> list[tuple[str, str, Figure]]:
    """How the sequential test came to its verdict: log evidence for `holds` and for `missed` by requests seen."""
    placed = _final_run(records, answer)
    if placed is None:
        return []
    alpha = float(records.start.scenario["slo"]["alpha"])
    verdicts = placed.run.verdict.slo
    found = []
    for verdict in verdicts:
        if not verdict.trace:
            continue
        n = [look.n for look in verdict.trace]
        passing, failing = [v.log_e_pass for v in verdict.trace], [v.log_e_fail for v in verdict.trace]
        hover = "%{x:,} requests: %{y:.2f}<extra></extra>"
        needed, refuted = math.log(1 / alpha), math.log(len(verdicts) / alpha)
        drawn = {"mode": "lines+markers", "marker": {"size": 5}, "hovertemplate": hover}
        shown = figure(
            [
                line(n, passing, "--pass", name="it holds", **drawn),
                line(n, failing, "--fail", name="it is missed", line={"dash": "dot"}, **drawn),
            ],
            x="requests seen",
            y="log evidence",
            height=280,
            yaxis={"range": spread([*passing, needed, refuted, -2.0, *(v for v in failing if v > -8)])},
            **marks(mark(needed, f"ln(1/α) = {needed:.2f}", axis="y")),
        )
        title = f"{metric_name(verdict.metric)} P{verdict.percentile:g}: {verdict.outcome}"
        note = f"{verdict.misses:,} of {verdict.n:,} late, counts divided by {number(verdict.deflation)}"
        found.append((title, note, shown))
    return found


def offered(records: StudyRecords) -> Figure | None:
    """Achieved against offered rate of every open-loop run: off the diagonal, the client was the limit."""
    runs = [r for r in records.runs() if r.run.measurement.audit.offered_rps is not None]
    if not runs:
        return None
    audits = [r.run.measurement.audit for r in runs]
    asked = [a.offered_rps or 0.0 for a in audits]
    got = [a.achieved_rps for a in audits]
    top = max(*asked, *got) * 1.05
    shown = [
        line([0, top], [0, top], "--muted", line={"dash": "dot", "width": 1}, name="as asked", hoverinfo="skip"),
        points(
            asked,
            got,
            ["--fail" if a.void_reasons else "--winner" for a in audits],
            customdata=[text(r.run.folder) for r in runs],
            hovertemplate="%{customdata}<br>%{x:.4g} offered, %{y:.4g} achieved<extra></extra>",
            name="run",
        ),
    ]
    return figure(shown, x="offered, requests/s", y="achieved, requests/s", showlegend=False)


def _final_run(records: StudyRecords, answer: Answer) -> PlacedRun | None:
    """The certification, or else the answer's own best hold."""
    certified = [r for r in records.runs() if r.stage == "certify" and r.trial == answer.trial]
    if certified:
        return certified[-1]
    score = _score_of(answer)
    rate = score.value if score and score.unit == "requests/s" else None
    return records.nearest_run(answer.trial or 0, rate)


def _score_of(answer: Answer) -> Quantity | None:
    first = answer.rows[0] if answer.rows else None
    return (first.winner or first.default) if first else None


def _effective(measurement: Measurement, raw: Requests, metric: str) -> float:
    """Requests that count as independent: n / d of the run's own autocorrelation; d = 2 where it was not judged."""
    n = float((~np.isnan(raw.latency_ms[metric])).sum())
    deflations: list[float] = [c.deflation for c in measurement.slo if c.metric == metric] or [2.0]
    return max(n / deflations[0], 1.0)
