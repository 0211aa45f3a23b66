"""From cells to one line per generator and rate, and to the targets: met or not met.

Knows nothing of how a cell is measured or shown.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from peers import OURS

Row = dict[str, Any]

HELD_RATES_RPS = (200, 500, 1000, 2000)
_PERCENTS = (50, 95, 99)
_MEDIANS = (
    "rate_rps",
    "rate_of_offered",
    "arrival_distance",
    "moments_distance",
    "arrival_noise",
    "cpu_ms_per_request",
    "cpu_share",
    "total_cpu_s",
    "peak_pss_mb",
    "connections",
    "stub_late_p99_ms",
    *(f"{name}_p{p}_ms" for name in ("ttft_inflation", "tpot_inflation", "send_lateness") for p in _PERCENTS),
)
_FREEZE = tuple(
    f"{name}_p{p}{unit}"
    for p in (95, 99)
    for name, unit in (("reported", "_ms"), ("true", "_ms"), ("truth_over_reported", ""))
)

_FAR_SHORT = 0.8
_RATIOS = ("rate_of_offered", "truth_over_reported_p95", "truth_over_reported_p99")


class Verdict(NamedTuple):
    target: str
    met: bool | None  # None: not measured
    figure: str


def summarise(cells: Sequence[Row]) -> list[Row]:
    """Medians over the repeats of each generator, rate and kind; beside them the worst and the reasons of failures."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for cell in cells:
        groups.setdefault((cell["kind"], cell["rate"], cell["peer"], cell["workers"]), []).append(cell)
    rows = []
    for (kind, rate, peer, workers), repeats in sorted(groups.items()):
        row: Row = {"kind": kind, "rate": rate, "peer": peer, "workers": workers, "repeats": len(repeats)}
        for name in _FREEZE if kind == "freeze" else _MEDIANS:
            values = [c[name] for c in repeats if c.get(name) is not None]
            if values:
                row[name] = statistics.median(values)
                row[f"{name}_worst"] = (
                    max(values, key=lambda v: abs(v - 1)) if name.startswith("truth_") else max(values)
                )
        row["errors"] = sum((c.get("errors") or 0) + (c.get("incomplete") or 0) for c in repeats)
        row["failed"] = sorted({c["failed"] for c in repeats if c.get("failed")})
        for name in ("joined_by", "truth_from"):
            said = {c[name] for c in repeats if name in c}
            if said:
                row[name] = " or ".join(sorted(said))
        rows.append(row)
    return rows


def too_slow(cells: Iterable[Row], peer: str) -> float | None:
    """The lowest rate of which ``peer`` fell far short, or at which it failed; higher ones are not tried."""
    rates = [
        c["rate"]
        for c in cells
        if c["peer"] == peer and c["kind"] == "load" and (c["failed"] or c.get("rate_rps", 0) < _FAR_SHORT * c["rate"])
    ]
    return min(rates, default=None)


class _Bound(NamedTuple):
    """At every rate the median of ``name`` is within ``most`` of ``around``."""

    target: str
    name: str
    most: float
    around: float = 0.0
    unit: str = ""


_EACH_RATE = (
    _Bound("rate held within 1 % of the offered one", "rate_of_offered", 0.01, around=1),
    _Bound("send lateness P99 ≤ 1 ms", "send_lateness_p99_ms", 1, unit=" ms"),
    _Bound("TTFT inflation P50 ≤ 0.3 ms", "ttft_inflation_p50_ms", 0.3, unit=" ms"),
    _Bound("TTFT inflation P99 ≤ 2 ms", "ttft_inflation_p99_ms", 2, unit=" ms"),
    _Bound("TPOT inflation P95 ≤ 0.1 ms", "tpot_inflation_p95_ms", 0.1, unit=" ms"),
    _Bound("CPU per request ≤ 1 ms, whole generator", "cpu_ms_per_request", 1, unit=" ms"),
    _Bound("memory ≤ 150 MB, whole generator", "peak_pss_mb", 150, unit=" MB"),
)
_TWO_WORKERS = _Bound("two workers at 4000/s: rate within 1 % of the offered one", "rate_of_offered", 0.01, around=1)
_FROZEN = tuple(
    _Bound(f"freeze: truth/reported P{p} from 0.97 to 1.03", f"truth_over_reported_p{p}", 0.03, around=1)
    for p in (95, 99)
)


def verdicts(summary: Sequence[Row]) -> list[Verdict]:
    mine = {r["rate"]: r for r in summary if r["peer"] == OURS and r["kind"] == "load" and r["workers"] == 1}
    two = [r for r in summary if r["peer"] == OURS and r["kind"] == "load" and r["workers"] == 2]
    frozen = [r for r in summary if r["peer"] == OURS and r["kind"] == "freeze"]
    held = [mine[rate] for rate in HELD_RATES_RPS] if mine.keys() >= set(HELD_RATES_RPS) else []
    return [
        *(_within(bound, held) for bound in _EACH_RATE),
        *(_against_peers(summary, mine, f"ttft_inflation_p{p}_ms", f"TTFT inflation P{p}") for p in _PERCENTS),
        _against_peers(summary, mine, "cpu_ms_per_request", "CPU per request"),
        _within(_TWO_WORKERS, two),
        _arrivals(list(mine.values()), "arrival_distance", "the gaps"),
        _arrivals(list(mine.values()), "moments_distance", "the moments"),
        *(_within(bound, frozen) for bound in _FROZEN),
    ]


def _within(bound: _Bound, rows: Sequence[Row]) -> Verdict:
    if not rows or any(bound.name not in row for row in rows):
        return Verdict(bound.target, None, "not measured at every rate that it is about")
    worst = max(rows, key=lambda row: abs(row[bound.name] - bound.around))
    value, extreme = worst[bound.name], worst[f"{bound.name}_worst"]
    at = f" at {worst['rate']:g}/s" if len(rows) > 1 else ""
    figure = f"{value:.4g}{bound.unit}{at}; worst repeat {extreme:.4g}{bound.unit}"
    return Verdict(bound.target, bool(abs(value - bound.around) <= bound.most), figure)


def _against_peers(summary: Sequence[Row], mine: dict[float, Row], name: str, title: str) -> Verdict:
    """Nearer to nothing than each peer at each rate at which it has a figure at all."""
    target = f"{title} better than every peer's at every rate"
    lost, closest, compared = [], None, 0
    for row in summary:
        if row["peer"] == OURS or row["kind"] != "load" or name not in row or name not in mine.get(row["rate"], {}):
            continue
        compared += 1
        own, theirs = abs(mine[row["rate"]][name]), abs(row[name])
        if own >= theirs:
            lost.append(f"{row['peer']} at {row['rate']:g}/s: {theirs:.3g} ms to our {own:.3g}")
        ratio = theirs / own if own > 0 else math.inf
        if closest is None or ratio < closest[0]:
            closest = (ratio, f"closest: {row['peer']} at {row['rate']:g}/s, {theirs:.3g} ms to our {own:.3g}")
    if closest is None:
        return Verdict(target, None, "not measured")
    return Verdict(target, not lost, "; ".join(lost) if lost else f"{compared} comparisons, {closest[1]}")


def _arrivals(rows: Sequence[Row], name: str, of: str) -> Verdict:
    target = f"arrivals: Kolmogorov distance of {of} ≤ 1.36/√n at all rates"
    rows = [row for row in rows if name in row]
    if not rows:
        return Verdict(target, None, "not measured")
    figures = [f"{r['rate']:g}/s {r[name]:.4f} (noise {r['arrival_noise']:.4f})" for r in rows]
    return Verdict(target, all(r[name] <= r["arrival_noise"] for r in rows), "; ".join(figures))
