"""A command line against the flags of the release that is installed: what it knows, under which name.

Pure. Knows no engine and no knobs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import ConfigurationImpossible

Said = tuple[str, str | None]  # flag and value; None: a switch


@dataclass(frozen=True, slots=True)
class Flag:
    """``choices`` None: any value. ``default`` None: none, or one that only the engine can work out."""

    default: Any
    choices: tuple[str, ...] | None


def unknown(said: Said | None, known: Mapping[str, Flag], title: str) -> str | None:
    """Why the installed release does not take this; None: it does."""
    if said is None:
        return None
    flag, value = said
    if flag not in known:
        return f"the installed {title} has no {flag}"
    choices = known[flag].choices
    if choices and value is not None and value not in choices:
        return f"{flag}: the installed {title} takes {', '.join(choices)}, got {value}"
    return None


def spelled(
    wanted: Sequence[Said], known: Mapping[str, Flag] | None, title: str, renamed: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Words of the command line, and what was dropped from it. ``renamed``: today's name -> that of older releases.

    Raises ConfigurationImpossible for a flag or value that the installed release does not take.
    """
    words: list[str] = []
    notices: list[str] = []
    for flag, value in wanted:
        name = older_name(flag, known, renamed)
        if known is not None and (why := unknown((name, value), known, title)) is not None:
            if flag not in renamed:
                raise ConfigurationImpossible(why)
            notices.append(f"the installed {title} has no {flag}: left out")
            continue
        words += [name] if value is None else [name, value]
    return words, notices


def older_name(flag: str, known: Mapping[str, Flag] | None, renamed: Mapping[str, str]) -> str:
    return renamed.get(flag, flag) if known is not None and flag not in known else flag
