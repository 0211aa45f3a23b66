"""The benchmark as one SVG of four panels. Knows nothing of how a figure came about."""

import math
from collections.abc import Sequence
from html import escape

from peers import OURS
from summary import Row

_PANELS = (
    ("ttft_inflation_p50_ms", "TTFT inflation, P50 (ms)"),
    ("ttft_inflation_p99_ms", "TTFT inflation, P99 (ms)"),
    ("tpot_inflation_p95_ms", "TPOT inflation, P95, whatever its sign (ms)"),
    ("cpu_ms_per_request", "CPU per request (ms)"),
)
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f")
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 400, 240, 60, 30, 50
_LEAST = 0.01  # the axis begins here; less is drawn on it


def svg(summary: Sequence[Row]) -> str:
    rows = [row for row in summary if row["kind"] == "load" and row["workers"] == 1]
    names = sorted({row["peer"] for row in rows}, key=lambda name: (name != OURS, name))
    colour = dict(zip(names, _COLOURS, strict=False))
    width, height = 2 * (_WIDTH + _LEFT) + 20, 2 * (_HEIGHT + _TOP + _GAP) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, (metric, title) in enumerate(_PANELS):
        x, y = _LEFT + i % 2 * (_WIDTH + _LEFT), _TOP + i // 2 * (_HEIGHT + _TOP + _GAP)
        parts += [f'<g transform="translate({x},{y})">', *_panel(rows, names, colour, metric, title), "</g>"]
    for i, name in enumerate(names):
        at = _LEFT + i * (width - _LEFT) / max(len(names), 1)
        weight = "bold" if name == OURS else "normal"
        parts += [
            f'<rect x="{at:.0f}" y="{height - 24}" width="12" height="12" fill="{colour[name]}"/>',
            f'<text x="{at + 16:.0f}" y="{height - 14}" font-weight="{weight}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def _panel(rows: Sequence[Row], names: Sequence[str], colour: dict[str, str], metric: str, title: str) -> list[str]:
    points = {
        name: sorted((r["rate"], max(abs(r[metric]), _LEAST)) for r in rows if r["peer"] == name and metric in r)
        for name in names
    }
    values = [value for line in points.values() for _, value in line]
    rates = sorted({rate for line in points.values() for rate, _ in line})
    if not values:
        return [f'<text y="-10">{escape(title)}: not measured</text>']
    decades = range(math.floor(math.log10(min(values))), max(math.ceil(math.log10(max(values))), 0) + 1)

    def x(rate: float) -> float:
        low, high = math.log(rates[0]), math.log(max(rates[-1], rates[0] * 2))
        return 20 + (math.log(rate) - low) / (high - low) * (_WIDTH - 40)

    def y(value: float) -> float:
        return _HEIGHT - (math.log10(value) - decades[0]) / max(decades[-1] - decades[0], 1) * _HEIGHT

    parts = [f'<text y="-10" font-weight="bold">{escape(title)}</text>']
    for decade in decades:
        at = y(10.0**decade)
        parts += [
            f'<line x1="0" x2="{_WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="#dddddd"/>',
            f'<text x="-6" y="{at + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>',
        ]
    parts += [f'<text x="{x(r):.1f}" y="{_HEIGHT + 16}" text-anchor="middle">{r:g}/s</text>' for r in rates]
    for name, line in points.items():
        if not line:
            continue
        path = " ".join(f"{x(rate):.1f},{y(value):.1f}" for rate, value in line)
        thick = 3 if name == OURS else 1.5
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour[name]}" stroke-width="{thick}"/>')
        parts += [f'<circle cx="{x(r):.1f}" cy="{y(v):.1f}" r="3" fill="{colour[name]}"/>' for r, v in line]
    return parts
