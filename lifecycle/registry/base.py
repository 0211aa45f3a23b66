"""What a tracker must be able to do: mirror a run folder into an experiment tracker.

Knows no tracker's API. The ledger is the truth; a mirror may be down, and catches up with `autotune sync`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scenarios.errors import Infrastructure


class TrackerUnavailable(Infrastructure):
    """The tracker is not installed, not reachable or refuses to record. The study is safe without it."""

    def __init__(self, tracker: str, run: Path, problem: str) -> None:
        super().__init__(f"{tracker}: {problem}\nNothing is lost; once it is mended: autotune sync {run}")


@dataclass(frozen=True, slots=True)
class Mirrored:
    """``where``: URL or path at which a person finds it. ``message``: what was recorded, in a sentence."""

    name: str
    where: str
    message: str


class Tracker(Protocol):
    """One file, one entry point in group `autotune.trackers`, one class like this, made without arguments."""

    name: str

    def mirror(self, run: Path) -> Mirrored:
        """Record what the run folder holds so far. Repeating it changes nothing that is already there.

        Raises TrackerUnavailable within seconds where the tracker cannot be reached; UserError for a
        folder that is not a study's.
        """


@contextmanager
def environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Within it, the variables are set that the person has not set; afterwards they are unset again."""
    ours = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
