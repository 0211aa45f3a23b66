"""How differences between two measurements are shown: what changed, by how much, and whether that is luck."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from autotune.console import table

if TYPE_CHECKING:
    from rich.table import Table

    from harness.versus import Difference


def differences_table(title: str, found: "Sequence[Difference]", first: str, second: str) -> "Table":
    shown = table(title, "", first, second, "change", "95 % interval", "")
    for difference in found:
        change = difference.change
        style = "yellow" if difference.significant else "dim"
        shown.add_row(
            _label(difference.name),
            _value(change.first, difference.name),
            _value(change.second, difference.name),
            _change(change.change, difference),
            f"{_change(change.low, difference)} to {_change(change.high, difference)}",
            f"[{style}]{said(difference)}[/]",
        )
    return shown


def document(found: "Sequence[Difference]") -> list[dict[str, Any]]:
    """As JSON can hold it."""
    from reports.quantity import jsonable

    documents: list[dict[str, Any]] = jsonable([{**asdict(d), "says": said(d)} for d in found])
    return documents


def said(difference: "Difference") -> str:
    """In words: significant, not, or too short to tell."""
    if difference.p_value is None:
        return "too short to tell"
    p = "p < 0.001" if difference.p_value < 0.001 else f"p = {difference.p_value:.2g}"
    return f"{'significant' if difference.significant else 'not significant'}, {p}"


def _label(name: str) -> str:
    if name == "missed":
        return "missed a target"
    if name == "goodput_rps":
        return "goodput, requests/s"
    metric, percentile = name.removesuffix("_ms").rsplit("_p", 1)
    return f"{metric.upper()} P{percentile}, ms"


def _value(value: float, name: str) -> str:
    if not math.isfinite(value):
        return "never"
    return f"{value:.1%}" if name == "missed" else f"{value:.2f}"


def _change(value: float | None, difference: "Difference") -> str:
    if value is None:
        return "-"
    if difference.ratio:
        return f"×{value:.3f}"
    return f"{100 * value:+.1f} points" if difference.name == "missed" else f"{value:+.2f}"
