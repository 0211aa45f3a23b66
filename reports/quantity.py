"""Numbers as people read them: value, unit, interval; and as JSON can hold them.

Knows nothing of what is measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from harness.measurement import Estimate

CONFIDENCE = 0.95
ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its unit and, where there is one, its interval. ``note``: under which conditions.

    ``value`` None: a percentile that falls on failed requests.
    """

    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def text(self) -> str:
        if self.value is None:
            return "never"
        return f"{self._shown(self.value)}{_suffix(self.unit)}"

    @property
    def interval(self) -> str:
        if self.low is None and self.high is None:
            return ""
        return f"[{self._shown(self.low)}, {self._shown(self.high)}]"

    def _shown(self, value: float | None) -> str:
        return points(value) if self.unit == "points" and value is not None else number(value)


def estimate(found: Estimate | None, unit: str, note: str = "") -> Quantity | None:
    return Quantity(found.value, unit, found.low, found.high, note) if found else None


def ratio(gain: Estimate) -> Quantity:
    return Quantity(gain.value, "×", gain.low, gain.high, f"{100 * gain.confidence:g}% interval")


def mean_of_blocks(scores: Sequence[float], unit: str) -> Quantity:
    """Mean over the blocks with Student's interval (Gosset 1908), cut at 0 for rates; none for one block."""
    values = np.asarray(scores, dtype=float)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Quantity(mean, unit, note="1 block")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    floor = 0.0 if unit == "requests/s" else -math.inf
    return Quantity(mean, unit, max(mean - half, floor), mean + half, f"mean of {n} blocks")


def number(value: float | None) -> str:
    """Three significant digits, whole numbers from 100 on; `never` for an infinite latency."""
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "never" if value > 0 else "−∞"
    magnitude = abs(value)
    digits = 0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2
    if 0 < magnitude < 0.1:
        return f"{value:.2g}".replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−")


def points(value: float) -> str:
    """Percentage points: one digit, zero without a sign."""
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "−")


def limit(value: float) -> str:
    """As `number`, without the zeros behind the point: 40, not 40.0."""
    shown = number(value)
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def value_text(value: Any) -> str:
    """A knob's value as a person would type it."""
    if value is None:
        return "not used"
    return str(value).lower() if isinstance(value, bool) else str(value)


def assignments(knobs: Mapping[str, Any]) -> str:
    return "  ".join(f"{name}={value_text(value)}" for name, value in knobs.items())


def jsonable(content: Any) -> Any:
    """``content`` with every number JSON has no word for as None."""
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {key: jsonable(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [jsonable(value) for value in content]
    return content


def _suffix(unit: str) -> str:
    return unit if unit in ("×", "%") else f" {unit}"
