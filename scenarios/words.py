"""The words that prompts are made of, each one token of the server's tokenizer: n words are n tokens.

Knows nothing of servers: the tokenizer is a function that counts the tokens of a text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.random import Generator

CountTokens = Callable[[str], int]

WORDS_FILE = Path(__file__).parent / "datasets" / "words.txt"
FEWEST_WORDS = 50  # with fewer, prompts would repeat themselves
CHUNK_WORDS = 64
CHARACTERS_PER_TOKEN = 4  # of English text, where nobody can be asked
TRIAL_PROMPT_WORDS = (1, 2, 7, 16, 64, 256)


def candidates() -> tuple[str, ...]:
    """Common English words, each likely to be one token of any large tokenizer."""
    return tuple(WORDS_FILE.read_text(encoding="utf-8").split())


def estimated_tokens(text: str) -> int:
    """Of English, where there is no tokenizer to ask."""
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))


@dataclass(frozen=True, slots=True)
class Words:
    """``exact``: a text of n words was seen to be exactly n tokens. False: it is about n.

    ``first_extra_tokens``, ``turn_extra_tokens``: what the server's template adds to a first prompt, and with
    each further turn (an answer and the next question). ``count``: the server's tokenizer, for real text.
    """

    words: tuple[str, ...] = field(repr=False)
    exact: bool
    first_extra_tokens: int = 0
    turn_extra_tokens: int = 0
    count: CountTokens | None = field(default=None, compare=False, repr=False)

    @classmethod
    def build(cls, candidates: Sequence[str], count: CountTokens | None) -> Self:
        """Those of ``candidates`` that ``count`` finds to be one token each after a space.

        Without a tokenizer (None), or one that has too few of them as single tokens, all are taken, inexactly.
        """
        everything = tuple(dict.fromkeys(candidates))
        if count is not None:
            single = tuple(
                word
                for start in range(0, len(everything), CHUNK_WORDS)
                for word in _single_tokens(everything[start : start + CHUNK_WORDS], count)
            )
            if len(single) >= FEWEST_WORDS:
                words = cls(single, exact=True)
                return words if words.count_exactly(count) else cls(single, exact=False)
        return cls(everything, exact=False)

    def draw(self, rng: Generator, n: int) -> str:
        """The next ``n`` words, each with a space before it; the empty text for 0."""
        return "".join(" " + self.words[i] for i in rng.integers(len(self.words), size=n))

    def tokens_of(self, text: str) -> int:
        """By the server's tokenizer; without one, estimated from the number of characters."""
        return self.count(text) if self.count is not None else estimated_tokens(text)

    def count_exactly(self, count: CountTokens) -> bool:
        """Whether random prompts of many lengths are as many tokens as they have words."""
        rng = np.random.default_rng(0)
        return all(count(self.draw(rng, n)) == n for n in TRIAL_PROMPT_WORDS)

    def to_dict(self) -> dict[str, Any]:
        return {
            "words": list(self.words),
            "exact": self.exact,
            "first_extra_tokens": self.first_extra_tokens,
            "turn_extra_tokens": self.turn_extra_tokens,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            tuple(data["words"]),
            exact=bool(data["exact"]),
            first_extra_tokens=int(data.get("first_extra_tokens", 0)),
            turn_extra_tokens=int(data.get("turn_extra_tokens", 0)),
        )


def _single_tokens(words: tuple[str, ...], count: CountTokens) -> tuple[str, ...]:
    """Those that are one token. Tokenizers split at spaces: n words in n tokens are single ones; else halve."""
    if count("".join(f" {word}" for word in words)) == len(words):
        return words
    if len(words) == 1:
        return ()
    middle = len(words) // 2
    return _single_tokens(words[:middle], count) + _single_tokens(words[middle:], count)
