"""Which trials a model is built from when there are more than it can take in within a second.

Knows nothing of models.
"""

from collections.abc import Sequence

from tuners.base import Trial


def recalled(history: Sequence[Trial], most: int) -> list[Trial]:
    """All of a short history; of a long one the control, the best half and an even part of the others."""
    if len(history) <= most:
        return list(history)
    ranked = sorted(history[1:], key=lambda t: (not t.feasible, -(t.score or 0.0), t.number))
    best, rest = ranked[: most // 2], ranked[most // 2 :]
    left = most - 1 - len(best)
    return [history[0], *best, *(rest[int(i * len(rest) / left)] for i in range(left))]
