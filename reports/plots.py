"""Series as Plotly figures: plain dictionaries, checked against Plotly's schema by the tests.

Colours are the names of CSS variables (``--winner``), so that one figure serves light, dark and paper; the
script in templates/ puts the values in. Knows nothing of pages, files or how a number came about.
"""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Figure = dict[str, Any]
Trace = dict[str, Any]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
BANDED = ("--winner", "--default")


def text(content: Any) -> str:
    """Plotly reads labels as a subset of HTML: whatever came from outside goes through here."""
    return html.escape(str(content), quote=False)


def numbers(values: Iterable[float]) -> list[float | None]:
    """JSON has no infinity: a point that is not finite becomes a gap."""
    return [float(v) if math.isfinite(v) else None for v in values]


def figure(traces: Sequence[Trace], *, x: str, y: str, height: int = 320, **layout: Any) -> Figure:
    """Traces on one pair of axes, in the report's plain style. ``layout`` goes over it, e.g. ``xaxis={...}``."""
    axes = {
        "xaxis": _axis(x) | layout.pop("xaxis", {}),
        "yaxis": _axis(y) | layout.pop("yaxis", {}),
    }
    return {
        "data": list(traces),
        "layout": {
            "height": height,
            "margin": {"l": 56, "r": 12, "t": 12, "b": 44},
            "paper_bgcolor": "--clear",
            "plot_bgcolor": "--clear",
            "font": {"family": FONT, "size": 12, "color": "--muted"},
            "hoverlabel": {"bgcolor": "--card", "bordercolor": "--line", "font": {"color": "--ink", "family": FONT}},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": "--ink"}},
            "hovermode": "closest",
            **axes,
            **layout,
        },
    }


def line(x: Iterable[float], y: Iterable[float], colour: str, **trace: Any) -> Trace:
    stroke = {"color": colour, "width": 2} | trace.pop("line", {})
    return {"type": "scatter", "mode": "lines", "x": numbers(x), "y": numbers(y), "line": stroke, **trace}


def points(x: Sequence[Any], y: Sequence[Any], colour: str | list[str], **trace: Any) -> Trace:
    marker = {"color": colour, "size": 9, "opacity": 1, "line": {"width": 1, "color": "--card"}} | trace.pop(
        "marker", {}
    )
    return {"type": "scatter", "mode": "markers", "x": list(x), "y": list(y), "marker": marker, **trace}


def band(x: Iterable[float], low: Iterable[float], high: Iterable[float], colour: str) -> list[Trace]:
    """The area between two curves. ``colour`` has a translucent twin ``<colour>-band`` in the style sheet."""
    assert colour in BANDED, colour
    xs = numbers(x)
    quiet = {"type": "scatter", "mode": "lines", "x": xs, "hoverinfo": "skip", "showlegend": False}
    edge = {"width": 0, "color": "--clear"}
    return [
        {**quiet, "y": numbers(low), "line": edge},
        {**quiet, "y": numbers(high), "line": edge, "fill": "tonexty", "fillcolor": f"{colour}-band"},
    ]


def intervals(
    labels: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float | None],
    highs: Sequence[float | None],
    **trace: Any,
) -> Trace:
    """A forest: one row per label, a point with its interval."""
    reach = [(v if lo is None else lo, v if hi is None else hi) for v, lo, hi in zip(values, lows, highs, strict=True)]
    return points(
        values,
        labels,
        trace.pop("colour", "--winner"),
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [hi - v for v, (_, hi) in zip(values, reach, strict=True)],
            "arrayminus": [v - lo for v, (lo, _) in zip(values, reach, strict=True)],
            "color": "--ink",
            "thickness": 1.5,
            "width": 4,
        },
        **trace,
    )


def mark(value: float, words: str, *, axis: str = "x", colour: str = "--target") -> tuple[Figure, Figure]:
    """A dashed line across the plot at ``value`` with its name: a shape and an annotation."""
    across, along = ("y", "x") if axis == "x" else ("x", "y")
    shape = {
        "type": "line",
        "line": {"color": colour, "width": 1.5, "dash": "dash"},
        f"{along}0": value,
        f"{along}1": value,
        f"{along}ref": along,
        f"{across}ref": "paper",
        f"{across}0": 0,
        f"{across}1": 1,
    }
    label = {
        "text": text(words),
        "showarrow": False,
        "font": {"color": colour, "size": 11},
        f"{along}": value,
        f"{along}ref": along,
        f"{across}ref": "paper",
    }
    place = (
        {"y": 0.02, "yanchor": "bottom", "xanchor": "right", "xshift": -4}
        if axis == "x"
        else {"x": 1, "xanchor": "right", "yanchor": "bottom"}
    )
    return shape, label | place


def marks(*drawn: tuple[Figure, Figure]) -> dict[str, Any]:
    """Layout keys for several ``mark``s."""
    return {"shapes": [shape for shape, _ in drawn], "annotations": [label for _, label in drawn]}


def spread(values: Sequence[float], pad: float = 0.06) -> list[float]:
    """An axis range that leaves some air around the finite values."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = float(np.min(finite)), float(np.max(finite))
    air = (high - low or abs(high) or 1.0) * pad
    return [low - air, high + air]


def _axis(title: str) -> Figure:
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 12}},
        "gridcolor": "--grid",
        "linecolor": "--line",
        "zerolinecolor": "--line",
        "tickcolor": "--line",
        "automargin": True,
    }
