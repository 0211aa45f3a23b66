"""Regret against wall-clock, one panel a scenario, as SVG. Knows nothing of how a figure came about."""

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = {
    "vllm grid": "#7f7f7f",
    "plain tpe": "#e69f00",
    "random": "#0072b2",
    "tpe": "#cc79a7",
    "gp": "#56b4e9",
    "staged": "#009e73",
}
OTHER = "#d55e00"
WIDTH, HEIGHT, LEFT, TOP, GAP, COLUMNS = 330, 200, 50, 50, 50, 3

TITLE = "Simulated: regret against hours of wall-clock, launches included (median over seeds; band: middle half)"

Curve = Sequence[Sequence[float]]  # rows [hours, quartile, median, quartile]


def svg(panels: Mapping[str, Mapping[str, Curve]], ours: str) -> str:
    """``panels``: scenario -> arm -> curve."""
    rows = -(-len(panels) // COLUMNS)
    width, height = COLUMNS * (WIDTH + LEFT) + 20, TOP + rows * (HEIGHT + GAP) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"',
        ' font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="10" y="16" font-size="13">{TITLE}</text>',
    ]
    for i, (name, arms) in enumerate(panels.items()):
        x, y = LEFT + i % COLUMNS * (WIDTH + LEFT), TOP + i // COLUMNS * (HEIGHT + GAP)
        parts += [f'<g transform="translate({x},{y})">', *_panel(name, arms, ours), "</g>"]
    names = list(dict.fromkeys(arm for arms in panels.values() for arm in arms))
    for i, arm in enumerate(names):
        x, y = LEFT + i * 110, height - 16
        weight = ' font-weight="bold"' if arm == ours else ""
        parts += [
            f'<rect x="{x}" y="{y - 9}" width="11" height="11" fill="{COLOURS.get(arm, OTHER)}"/>',
            f'<text x="{x + 15}" y="{y}"{weight}>{escape(arm)}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def _panel(name: str, arms: Mapping[str, Curve], ours: str) -> list[str]:
    hours = max((row[0] for curve in arms.values() for row in curve), default=1.0)
    top = max((row[2] for curve in arms.values() for row in curve), default=1.0) * 1.05 or 1.0

    def x(value: float) -> float:
        return value / hours * (WIDTH - 20)

    def y(value: float) -> float:
        return HEIGHT - min(value, top) / top * HEIGHT

    parts = [f'<text y="-8" font-weight="bold">{escape(name)}</text>']
    for share in (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8):
        if share <= top:
            colour = "#b8d8b8" if share == 0.05 else "#dddddd"
            parts += [
                f'<line x1="0" x2="{WIDTH - 20}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="{colour}"/>',
                f'<text x="-5" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>',
            ]
    parts += [
        f'<text x="{x(hours * share):.1f}" y="{HEIGHT + 14}" text-anchor="middle">{hours * share:.3g} h</text>'
        for share in (0.25, 0.5, 0.75, 1.0)
    ]
    for arm, curve in arms.items():
        colour = COLOURS.get(arm, OTHER)
        if arm in {ours, "random"}:
            band = [*((x(r[0]), y(r[1])) for r in curve), *((x(r[0]), y(r[3])) for r in reversed(curve))]
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in band)
            parts.append(f'<polygon points="{points}" fill="{colour}" opacity="0.12"/>')
        line = " ".join(f"{x(r[0]):.1f},{y(r[2]):.1f}" for r in curve)
        thick = 3 if arm == ours else 1.5
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{thick}"/>')
    return parts
