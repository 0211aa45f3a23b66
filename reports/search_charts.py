"""Plots of the search: trials, knobs, capacities, finals, quality. One function per plot, records to figures.

None where there is nothing to show. Knows nothing of pages; the look is plots.py, the arithmetic series.py.
"""

from reports.control_arm import curves
from reports.plots import Figure, Trace, figure, intervals, line, mark, marks, points, spread, text
from reports.quantity import assignments, limit, value_text
from reports.records import StudyRecords
from reports.series import knob_effects, pareto_front
from reports.view import Answer, changed_knobs, score_name, score_unit, worst_difference
from tuners.base import Trial

MIB = 1 << 20
OUTCOMES = {
    "complete": ("feasible", "--pass", "circle"),
    "target": ("misses a target", "--fail", "x"),
    "quality": ("worse answers", "--fail", "diamond-open"),
    "infeasible": ("did not run", "--muted", "square-open"),
}
OTHERS = ("--other-1", "--other-2", "--other-3", "--other-4", "--other-5", "--other-6", "--other-7")


def outcome_of(trial: Trial) -> str:
    return "target" if trial.state == "complete" and not trial.feasible else trial.state


def score_title(records: StudyRecords) -> str:
    return f"{score_name(records).lower()}, {score_unit(records)}"


def trade_off(records: StudyRecords, answer: Answer) -> Figure | None:
    """Score against loss of quality, or against memory where quality was not asked for, with the Pareto front."""
    scored = [t for t in records.trials if t.trial.score is not None]
    losses = {t.trial.number: worst_difference(records.quality(t.trial.number)) for t in scored}
    losses = {n: 0.0 if loss is None and n == 0 and any(losses.values()) else loss for n, loss in losses.items()}
    if sum(loss is not None for loss in losses.values()) >= 2:
        title = "worst change of accuracy, points"
        at = {n: 100 * loss for n, loss in losses.items() if loss is not None}
        good = 1
    else:
        title, good = "peak memory, MiB", -1
        peaks = {t.trial.number: [r.measurement.telemetry.rss_peak_bytes or 0 for r in t.runs] for t in scored}
        at = {n: max(peak) / MIB for n, peak in peaks.items() if any(peak)}
    shown = [t.trial for t in scored if t.trial.number in at]
    if len(shown) < 2:
        return None
    traces: list[Trace] = []
    usable = [t for t in shown if t.feasible]
    front = [usable[i] for i in pareto_front([(good * at[t.number], t.score or 0.0) for t in usable])]
    if len(front) > 1:
        stroke = {"dash": "dot", "width": 1.5}
        xs, ys = [at[t.number] for t in front], [t.score or 0.0 for t in front]
        traces.append(line(xs, ys, "--muted", name="Pareto front", line=stroke, hoverinfo="skip"))
    for key, (label, colour, symbol) in OUTCOMES.items():
        # Control and answer have colours of their own: the legend shows the first point's.
        group = sorted((t for t in shown if outcome_of(t) == key), key=lambda t: t.number in (0, answer.trial))
        if not group:
            continue
        marker = {
            "symbol": symbol,
            "size": [15 if t.number == answer.trial else 10 for t in group],
            "line": {"width": 1.5, "color": colour if "open" in symbol else "--card"},
        }
        colours = ["--winner" if t.number == answer.trial else "--default" if t.number == 0 else colour for t in group]
        traces.append(
            points(
                [at[t.number] for t in group],
                [t.score for t in group],
                colours,
                marker=marker,
                mode="markers+text",
                text=[str(t.number) for t in group],
                textposition="top center",
                textfont={"color": "--ink", "size": 11},
                customdata=[text(assignments(changed_knobs(records, t.number)) or "defaults") for t in group],
                hovertemplate="trial %{text}<br>%{customdata}<br>%{x:.3g}, %{y:.3g}<extra></extra>",
                name=label,
            )
        )
    return figure(traces, x=title, y=score_title(records), height=380)


def control_arm(records: StudyRecords) -> Figure | None:
    """The best feasible score so far against the seconds spent, of the search and of random search."""
    if (both := curves(records)) is None:
        return None
    traces = [
        line(
            curve.seconds,
            curve.scores,
            colour,
            name=curve.name,
            line={"shape": "hv", "width": 2},
            hovertemplate=f"{curve.name}, %{{x:.0f}} s: %{{y:.3g}}<extra></extra>",
        )
        for curve, colour in zip(both, ("--winner", "--default"), strict=True)
    ]
    axis = {"rangemode": "tozero"}
    return figure(traces, x="seconds of trials, launches included", y=score_title(records), height=280, yaxis=axis)


def knobs(records: StudyRecords, answer: Answer) -> list[tuple[str, str, Figure]]:
    """A small plot per knob: every trial's score by the knob's value; with the share of variance it explains."""
    tried = [(t.trial.knobs, t.trial.score) for t in records.trials if t.trial.score is not None]
    choices = {str(k["name"]): k["choices"] for k in records.start.space}
    best = records.trial(answer.trial) if answer.trial is not None else None
    found = []
    for effect in knob_effects(tried, choices):
        names = [text(value_text(v)) for v in effect.values]
        chosen = None if best is None else best.trial.knobs.get(effect.knob)
        colours = ["--winner" if effect.values[at] == chosen else "--default" for at, _ in effect.points]
        drawn = [
            points(
                [names[at] for at, _ in effect.points],
                [score for _, score in effect.points],
                colours,
                hovertemplate="%{x}: %{y:.3g}<extra></extra>",
                showlegend=False,
            ),
            points(
                names,
                list(effect.means),
                "--ink",
                marker={"symbol": "line-ew-open", "size": 26, "line": {"width": 2, "color": "--ink"}},
                hovertemplate="mean %{y:.3g}<extra></extra>",
                showlegend=False,
            ),
        ]
        axis = {"type": "category", "categoryorder": "array", "categoryarray": names}
        shown = figure(drawn, x="", y=score_title(records), height=220, xaxis=axis, yaxis={"rangemode": "tozero"})
        found.append((effect.knob, f"explains {effect.share:.0%}; by chance {effect.by_chance:.0%}", shown))
    return found


def probes(records: StudyRecords) -> Figure | None:
    """Every rate that was tried on every configuration, whether the targets held, and the capacity found."""
    tried = [t for t in records.trials if t.capacity is not None]
    if not tried:
        return None
    traces: list[Trace] = []
    for passed, colour, symbol, name in ((True, "--pass", "circle", "held"), (False, "--fail", "x", "missed")):
        seen = [(t, p) for t in tried for p in (t.capacity.probes if t.capacity else ()) if p.passed == passed]
        if seen:
            traces.append(
                points(
                    [p.rate_rps for _, p in seen],
                    [str(t.trial.number) for t, _ in seen],
                    colour,
                    marker={"symbol": symbol, "size": [9 if p.kind == "hold" else 6 for _, p in seen]},
                    customdata=[f"{p.kind}, {p.misses:,} of {p.n:,} late" for _, p in seen],
                    hovertemplate="trial %{y}, %{x:.3g} requests/s: %{customdata}<extra></extra>",
                    name=name,
                )
            )
    traces.append(
        points(
            [t.capacity.rate_rps for t in tried if t.capacity],
            [str(t.trial.number) for t in tried],
            "--ink",
            marker={"symbol": "line-ns-open", "size": 18, "line": {"width": 2.5, "color": "--ink"}},
            name="capacity",
            hovertemplate="trial %{y}: %{x:.3g} requests/s<extra></extra>",
        )
    )
    names = [str(t.trial.number) for t in tried]
    axis = {"type": "category", "categoryorder": "array", "categoryarray": names[::-1]}
    return figure(
        traces, x="rate, requests/s", y="trial", height=130 + 26 * len(tried), xaxis={"rangemode": "tozero"}, yaxis=axis
    )


def finals(records: StudyRecords) -> Figure | None:
    """The score of default and finalists block by block: lines that do not cross are a gain that repeats."""
    if not records.finals:
        return None
    order = sorted({f.trial for f in records.finals})
    best = records.winner.trial if records.winner else None
    rest = iter(OTHERS)
    traces = []
    for trial in order:
        runs = sorted((f for f in records.finals if f.trial == trial), key=lambda f: f.block)
        colour = "--winner" if trial == best and trial else "--default" if trial == 0 else next(rest)
        name = "defaults" if trial == 0 else f"trial {trial}"
        drawn = {"mode": "lines+markers", "marker": {"size": 9}, "name": name}
        hover = "block %{x}: %{y:.3g}<extra></extra>"
        traces.append(line([f.block + 1 for f in runs], [f.score for f in runs], colour, hovertemplate=hover, **drawn))
    axis = {"dtick": 1, "tickformat": "d"}
    return figure(traces, x="block", y=score_title(records), height=280, xaxis=axis, yaxis={"rangemode": "tozero"})


def gains(records: StudyRecords) -> Figure | None:
    """Gain of every finalist over the default in the same block, with its interval."""
    compared = [(f.trial, f.gain) for f in records.winner.finalists if f.gain] if records.winner else []
    rows = [(f"trial {trial}", gain) for trial, gain in reversed(compared) if gain.value is not None]
    if not rows:
        return None
    forest = intervals(
        [name for name, _ in rows],
        [g.value or 0.0 for _, g in rows],
        [g.low for _, g in rows],
        [g.high for _, g in rows],
        hovertemplate="%{y}: %{x:.3f}×<extra></extra>",
        showlegend=False,
    )
    reach = [1.0, *(b for _, g in rows for b in (g.value, g.low, g.high) if b is not None)]
    lines = marks(mark(1.0, "no gain", colour="--muted"))
    air = {"range": [-0.7, len(rows) - 0.3]}
    height = 130 + 40 * len(rows)
    return figure(
        [forest], x="ratio to the default", y="", height=height, xaxis={"range": spread(reach, 0.2)}, yaxis=air, **lines
    )


def quality(records: StudyRecords) -> Figure | None:
    """Difference to the reference per trial and task, with its interval and the margins."""
    rows = []
    for result in records.trials:
        verdict = records.quality(result.trial.number)
        rows += [(f"{result.trial.number} · {text(t.task)}", t) for t in (verdict.tasks if verdict else ())]
    rows.reverse()
    if not rows:
        return None
    traces = []
    for passed, colour, name in ((True, "--pass", "within the margin"), (False, "--fail", "not shown to be")):
        group = [(label, t) for label, t in rows if t.passed == passed]
        if group:
            traces.append(
                intervals(
                    [label for label, _ in group],
                    [100 * t.difference for _, t in group],
                    [100 * t.difference_low for _, t in group],
                    [100 * t.difference_high for _, t in group],
                    colour=colour,
                    name=name,
                    marker={"symbol": "circle" if passed else "x"},
                    hovertemplate="%{y}: %{x:+.2f} points<extra></extra>",
                )
            )
    drawn = [mark(0.0, "reference", colour="--muted")]
    drawn += [mark(-100 * m, f"−{limit(100 * m)}") for m in sorted({t.margin for _, t in rows})]
    axis = {"type": "category", "categoryorder": "array", "categoryarray": [label for label, _ in rows]}
    height = 130 + 22 * len(rows)
    return figure(traces, x="change of accuracy, points", y="", height=height, yaxis=axis, **marks(*drawn))
