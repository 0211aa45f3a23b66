"""Many independent runs of a queue at once, one numpy step per event of all of them.

Knows nothing of targets or verdicts. Arrivals are Poisson at ``utilisation`` times what the server can do; a run
starts empty, and what it served before it had settled is cut off. Latency is from arrival to completion, or to the
first token where the law says so.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

BATCH = 8  # requests that the batch server serves at once
BATCH_FIXED, BATCH_EACH = 0.5, 0.0625  # its mean time: 0.5 for any batch and 0.0625 per request, 1 when full

SLOTS = 16  # sequences that the scheduler runs at once
ADMITTED = 4  # most prompts prefilled in one iteration
PROMPT_MEDIAN, PROMPT_SIGMA = 100.0, 0.8  # tokens, lognormal
OUTPUT_MEAN = 16.0  # tokens, geometric
ITERATION_MS, SEQUENCE_MS, PROMPT_TOKEN_MS = 8.0, 0.25, 0.05


@dataclass(frozen=True)
class Runs:
    """Shapes (runs, n), in order of arrival. ``in_flight``: requests that an arrival found before it."""

    arrived: FloatArray
    completed: FloatArray
    latency: FloatArray

    @property
    def in_flight(self) -> FloatArray:
        ahead = np.arange(self.arrived.shape[1])
        return np.array(
            [
                ahead - np.searchsorted(np.sort(done), due, side="right")
                for due, done in zip(self.arrived, self.completed, strict=True)
            ],
            dtype=np.float64,
        )


def settling(utilisation: float) -> int:
    """Arrivals until an empty M/M/k queue has forgotten that it was: five relaxation times and more."""
    return 500 + math.ceil(20 / (1 - utilisation) ** 2)


def simulate(law: str, utilisation: float, n: int, runs: int, seed: int | list[int]) -> Runs:
    """``runs`` runs of ``n`` requests each of one of `LAWS`, after settling."""
    rng = np.random.default_rng(seed)
    before = settling(utilisation)
    arrived = np.cumsum(rng.exponential(1 / (utilisation * CAPACITY[law]), (runs, before + n)), axis=1)
    completed, answered = LAWS[law](arrived, rng)
    return Runs(arrived[:, before:], completed[:, before:], (answered - arrived)[:, before:])


def _single(arrived: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """M/M/1, unit service rate: Lindley's recursion as a running maximum."""
    worked = np.cumsum(rng.exponential(1, arrived.shape), axis=1)
    before = np.concatenate([np.zeros((len(arrived), 1)), worked[:, :-1]], axis=1)
    completed = worked + np.maximum.accumulate(arrived - before, axis=1)
    return completed, completed


def _eight(arrived: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """M/M/8: Kiefer and Wolfowitz's recursion."""
    due = np.ascontiguousarray(arrived.T)
    completed = rng.exponential(1, due.shape)
    free_at = np.zeros((due.shape[1], 8))
    for i in range(len(due)):
        completed[i] += np.maximum(due[i], free_at[:, 0])
        free_at[:, 0] = completed[i]
        free_at.sort(axis=1)
    return completed.T, completed.T


def _batch(arrived: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Takes up to `BATCH` waiting requests whenever it is free; all of them are done together."""
    runs, n = arrived.shape
    padded = np.concatenate([arrived, np.full((runs, BATCH), np.inf)], axis=1)
    completed = np.empty_like(padded)
    row, ahead = np.arange(runs)[:, None], np.arange(BATCH)
    head, now = np.zeros(runs, dtype=np.int64), np.zeros(runs)
    while (head < n).any():
        at = np.minimum(head[:, None] + ahead, n + BATCH - 1)
        due = padded[row, at]
        now = np.maximum(now, np.where(np.isfinite(due[:, 0]), due[:, 0], now))
        taken = (due <= now[:, None]).sum(axis=1)
        now = now + (BATCH_FIXED + BATCH_EACH * taken) * rng.gamma(16, 1 / 16, runs)
        completed[row, at] = now[:, None]  # of those not taken too: overwritten when they are
        head += taken
    return completed[:, :n], completed[:, :n]


def _scheduler(arrived: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Continuous batching, times in ms: an iteration prefills up to `ADMITTED` prompts and decodes one token each.

    It takes ITERATION_MS + SEQUENCE_MS per running sequence + PROMPT_TOKEN_MS per prompt token; a prompt's first
    token comes at the end of its iteration.
    """
    runs, n = arrived.shape
    prompt_ms = PROMPT_TOKEN_MS * rng.lognormal(math.log(PROMPT_MEDIAN), PROMPT_SIGMA, (runs, n))
    tokens = rng.geometric(1 / OUTPUT_MEAN, (runs, n)).astype(np.int64)
    completed, first = np.full((runs, n), np.nan), np.full((runs, n), np.nan)
    remaining = np.zeros((runs, SLOTS), dtype=np.int64)
    held_by = np.zeros((runs, SLOTS), dtype=np.int64)
    head, now, running = np.zeros(runs, dtype=np.int64), np.zeros(runs), np.zeros(runs, dtype=np.int64)
    row = np.arange(runs)
    while True:
        next_due = np.where(head < n, arrived[row, np.minimum(head, n - 1)], np.inf)
        idle = (running == 0) & np.isfinite(next_due)
        now = np.where(idle, np.maximum(now, next_due), now)
        if not (running.any() or idle.any()):
            break
        took = np.full(runs, ITERATION_MS)
        admitted = []
        for _ in range(ADMITTED):
            who = np.flatnonzero((running < SLOTS) & (head < n))
            who = who[arrived[who, head[who]] <= now[who]]
            if not who.size:
                break
            slot, request = np.argmin(remaining[who], axis=1), head[who]
            remaining[who, slot], held_by[who, slot] = tokens[who, request], request
            took[who] += prompt_ms[who, request]
            running[who] += 1
            head[who] += 1
            admitted.append((who, request))
        took += SEQUENCE_MS * running
        now = np.where(running > 0, now + took, now)
        for who, request in admitted:
            first[who, request] = now[who]
        ends_row, ends_slot = np.nonzero(remaining == 1)
        completed[ends_row, held_by[ends_row, ends_slot]] = now[ends_row]
        np.subtract(remaining, 1, out=remaining, where=remaining > 0)
        running = running - np.bincount(ends_row, minlength=runs)
    return completed, first


def _scheduler_e2e(arrived: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """The same, judged by its end-to-end latency: mostly the answer's own length, which remembers nothing."""
    completed, _ = _scheduler(arrived, rng)
    return completed, completed


LAWS: dict[str, Callable[[FloatArray, np.random.Generator], tuple[FloatArray, FloatArray]]] = {
    "mm1": _single,
    "mm8": _eight,
    "batch": _batch,
    "scheduler": _scheduler,
    "scheduler_e2e": _scheduler_e2e,
}

# Requests per unit of time that the server completes while a queue never ends.
SCHEDULER_PER_MS = 0.05308  # measured: 6,000 requests that all wait at time 0, without the ends
CAPACITY = {
    "mm1": 1.0,
    "mm8": 8.0,
    "batch": BATCH / (BATCH_FIXED + BATCH_EACH * BATCH),
    "scheduler": SCHEDULER_PER_MS,
    "scheduler_e2e": SCHEDULER_PER_MS,
}
