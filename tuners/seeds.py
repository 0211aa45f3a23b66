"""A seed of its own for every ask: same study, same number of trials, same draws.

Knows nothing of what is drawn.
"""

import hashlib


def derived(seed: int, asked: int, attempt: int = 0) -> int:
    """32 bits from the study's seed, how many trials there were, and how often was asked since."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{asked}/{attempt}".encode()).digest()[:4], "big")
