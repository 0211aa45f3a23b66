"""An engine that begins empty: is its filling up taken for saturation? A part of `make calibrate`.

Knows nothing of targets or verdicts on them.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.bench import FEWEST_REQUESTS
from harness.stats.steady import BATCHES, steadiness

FloatArray = npt.NDArray[np.float64]

LONG_TOKENS = 32  # iterations of a long answer, on average
ROOMS = (5, 20, 100)  # requests/s at most, with answers of 1 s
SECONDS = (4.0, 8.0)  # judged
UTILISATIONS = (0.5, 0.7, 1.3, 2.0)
CELLS = [(room, seconds, u) for room in ROOMS for seconds in SECONDS for u in UTILISATIONS]
WARM_UP_S = 0.2
RUNS = 500
SEED = 20

# Most that may be called saturated, wrongly, and least that must be, by utilisation.
CALLED, SEEN = {0.5: 0.05, 0.7: 0.35}, {1.3: 0.5, 2.0: 0.9}


def long_answers(room: float, utilisation: float, run_s: float, runs: int, seed: int | list[int]) -> list[FloatArray]:
    """Runs on an engine that is empty at first and shares itself between answers that are long beside the run.

    An answer takes 1 s on average when it is alone, LONG_TOKENS iterations, give or take a quarter of them; each
    iteration is longer by a share of 1 / room per running sequence, so that ``room`` requests/s are the most it does.
    Returns arrays of shape (2, n): arrivals before ``run_s``, at utilisation x room requests/s, and their completions.
    """
    rng = np.random.default_rng(seed)
    return [_one_run(room, utilisation * room, run_s, rng) for _ in range(runs)]


def _one_run(room: float, rate: float, run_s: float, rng: np.random.Generator) -> FloatArray:
    arrived = np.cumsum(rng.exponential(1 / rate, 30 + 2 * math.ceil(rate * run_s)))
    arrived = arrived[arrived < run_s]
    tokens = np.round(LONG_TOKENS * rng.uniform(0.75, 1.25, arrived.size))
    completed = np.full(arrived.size, np.inf)
    running = np.zeros(0, dtype=np.int64)
    now, head = 0.0, 0
    while head < arrived.size or running.size:
        if not running.size:
            now = max(now, float(arrived[head]))
        due = int(np.searchsorted(arrived, now, side="right"))
        running = np.concatenate([running, np.arange(head, due)])
        head = due
        now += (1 + running.size / room) / LONG_TOKENS
        tokens[running] -= 1
        completed[running[tokens[running] <= 0]] = now
        running = running[tokens[running] > 0]
    return np.stack([arrived, completed])


def fill(task: tuple[int, float, float]) -> dict[str, Any]:
    """An engine that begins empty: is its filling up called saturation? Beside it, the same with nothing left out."""
    room, seconds, utilisation = task
    window_s = WARM_UP_S, WARM_UP_S + max(seconds, FEWEST_REQUESTS / (utilisation * room))
    found = {"called_saturated": 0, "nothing_left_out": 0, "still_filling": 0}
    for arrived, completed in long_answers(
        room, utilisation, window_s[1], RUNS, [SEED, room, round(seconds), round(10 * utilisation)]
    ):
        seen = steadiness(arrived, completed, window_s)
        if seen:
            found["called_saturated"] += seen.saturated
            found["still_filling"] += seen.filling
        # as of a server that had answered somebody at once, long before
        ancient = -1e6 * window_s[1]
        raw = steadiness(np.append(arrived, ancient), np.append(completed, ancient), window_s)
        found["nothing_left_out"] += bool(raw and raw.saturated)
    return {"room": room, "seconds": seconds, "utilisation": utilisation, "runs": RUNS, **found}


def broken(rows: list[dict[str, Any]], called: str = "called_saturated") -> list[str]:
    """Of the longer holds; in the shorter ones too little is left to judge, and the table says what that costs.

    Near the capacity, on either side, the bounds are no promise: they are there to see a change for the worse.
    """
    found = []
    for row in rows:
        if row["seconds"] < max(SECONDS):
            continue
        where = f"filling, {row['room']} requests/s at most, at {row['utilisation']:g}"
        share = row[called] / row["runs"]
        if share > CALLED.get(row["utilisation"], 1):
            found.append(f"{where}: called saturated in {share:.1%} of the runs")
        if share < SEEN.get(row["utilisation"], 0):
            found.append(f"{where}: saturated, seen in {share:.1%} of the runs only")
    return found


def document(rows: list[dict[str, Any]]) -> str:
    return f"""An engine that begins empty, shared by answers that take 1 s when they are alone, judged from
{WARM_UP_S:g} s on for so many seconds or {FEWEST_REQUESTS} requests. {RUNS} runs per cell; below a utilisation
of 1 "saturated" is wrong, above it is right. With nothing left out: as if the engine had been full when the
window begins. Still filling: fewer than {BATCHES} requests came once it was full, and nothing is said. Bounds, for
{max(SECONDS):g} s: called saturated {CALLED[0.5]:.0%} at 0.5 and {CALLED[0.7]:.0%} at 0.7; seen
{SEEN[1.3]:.0%} at 1.3 and {SEEN[2.0]:.0%} at 2.

{_table(rows)}"""


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| requests/s at most | judged, s | utilisation | called saturated | with nothing left out | still filling |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = (row[key] / row["runs"] for key in ("called_saturated", "nothing_left_out", "still_filling"))
        cells = [f"{row['room']}", f"{row['seconds']:g}", f"{row['utilisation']:g}", *(f"{x:.1%}" for x in shares)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
