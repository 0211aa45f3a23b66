"""What an engine's log says, where only the words differ: why it ended, and what became of a setting.

Knows no engine's words and no processes. Lines that only inform or warn are no reasons.
"""

import re
from collections.abc import Iterator, Mapping

from harness.errors import FailureClass

Reasons = tuple[tuple[FailureClass, str], ...]  # first match wins
OOM_KILLER = 128 + 9


def classify(log: str, exit_code: int | None, reasons: Reasons, no_reason: re.Pattern[str]) -> FailureClass | None:
    """``start_failed`` where a reason is told that there is no class for; None: none is told."""
    text = "\n".join(line for line in log.splitlines() if line.strip() and not no_reason.search(line))
    for kind, words in reasons:
        if re.search(words, text):
            return kind
    if exit_code == OOM_KILLER:
        return "out_of_memory"
    return "start_failed" if re.search(r"Error\b|Traceback", text) else None


def disagreements(asked: Mapping[str, str], said: Mapping[str, str], title: str) -> Iterator[str]:
    """Where ``said`` names another value than was asked for; what it does not name is not doubted."""
    for name, value in asked.items():
        if name in said and not _same(value, said[name]):
            yield f"asked for {name}={value}, {title} runs with {said[name]}"


def _same(asked: str, said: str) -> bool:
    """`fp8` is resolved to one of its formats."""
    return asked.lower() == said.lower() or (asked == "fp8" and said.startswith("fp8"))
