"""The simulated model's tokenizer and chat template, and which blocks of prompts are the same.

A token is a word. Knows nothing of HTTP or of time.
"""

import zlib
from collections.abc import Mapping, Sequence

VOCABULARY = 128_256  # token ids are below it
HEAD = ("<|start|>", "{role}", "<|says|>")  # before what is said …
END = "<|end|>"  # … and after it: four tokens a message, and three that begin the answer
MOST_KNOWN = 2_000_000  # different blocks that are told apart: some ten thousand requests, at 100 bytes a block


def words(text: str) -> list[str]:
    """The tokens of a text."""
    return text.split()


def token_ids(tokens: Sequence[str]) -> list[int]:
    """Equal words, equal ids; what they are is of no importance."""
    return [zlib.crc32(token.encode()) % VOCABULARY for token in tokens]


def templated(messages: Sequence[Mapping[str, str]]) -> list[str]:
    """The tokens of a conversation: each message between its marks, and the beginning of the answer.

    A conversation that goes on begins with the tokens of what it was before.
    """
    tokens: list[str] = []
    for message in messages:
        tokens += [*_head(message["role"]), *words(message["content"]), END]
    return tokens + _head("assistant")


def _head(role: str) -> list[str]:
    return [part.format(role=role) for part in HEAD]


class Blocks:
    """Numbers blocks of prompts from 0 on: equal number, equal tokens from the prompt's begin to the block's end."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._numbers: dict[int, int] = {}

    def of(self, tokens: Sequence[str]) -> list[int]:
        """The numbers of the full blocks of a prompt, in order; blocks are found by a hash of their whole past.

        After MOST_KNOWN different ones, new ones get no number, and those behind them neither: nothing shares them.
        """
        chain = 0
        found = []
        for end in range(self._block_tokens, len(tokens) + 1, self._block_tokens):
            chain = hash((chain, *tokens[end - self._block_tokens : end]))
            number = self._numbers.get(chain)
            if number is None:
                if len(self._numbers) == MOST_KNOWN:
                    break
                number = self._numbers[chain] = len(self._numbers)
            found.append(number)
        return found
