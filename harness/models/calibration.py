"""The text on which a checkpoint is calibrated: the project's own, and none of what quality is asked with.

Knows nothing of tokenizers: a sample is a text, long enough for the tokens that are wanted of it.
"""

import random
from pathlib import Path

import scenarios

FILE = Path(scenarios.__file__).parent / "datasets" / "calibration.txt"
SAMPLES = 32
TOKENS = 512  # of each sample
SEED = 20_260_901
CHARACTERS_PER_TOKEN = 8  # at most, of any tokenizer and of text such as this


def passages() -> tuple[str, ...]:
    return tuple(FILE.read_text(encoding="utf-8").strip().split("\n\n"))


def samples(count: int, tokens: int = TOKENS) -> tuple[str, ...]:
    """The passages in another order each time, cut where there is text enough. Same arguments, same samples."""
    rng, found = random.Random(SEED), []
    for _ in range(count):
        order = list(passages())
        rng.shuffle(order)
        found.append("\n\n".join(order)[: tokens * CHARACTERS_PER_TOKEN])
    return tuple(found)
