"""Mirrors a run folder into the trackers asked for, and notes in `mirror.json` how each of them stands.

Never touches the ledger. Knows no tracker's API, and lets none of them stop a study.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from harness import ledger, plugins
from harness.measurement import Record
from lifecycle.registry.base import Tracker, TrackerUnavailable
from scenarios.errors import UserError

DEFAULT_TRACKERS = ("mlflow",)


class Attempt(Record):
    """The latest attempt to mirror a run into one tracker. ``where`` None: it failed, ``message`` says why."""

    name: str
    ok: bool
    at: str  # ISO 8601 UTC
    where: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.where} ({self.message})" if self.ok else self.message


_Attempts = TypeAdapter(dict[str, Attempt])


def mirror_all(run: Path, trackers: Sequence[str]) -> list[Attempt]:
    """One attempt per tracker, in order; a tracker that is down is an attempt with ``ok`` False.

    Raises UserError, before anything is mirrored, for a name that is not registered or cannot load, and for
    a folder that is not a study's; RunFolderUnusable where `mirror.json` cannot be written.
    """
    loaded: list[Tracker] = [plugins.load("trackers", name)() for name in trackers]
    attempts = []
    for tracker in loaded:
        attempt = _attempt(tracker, run)
        _save(run, {**attempts_of(run), tracker.name: attempt})
        attempts.append(attempt)
    return attempts


def attempts_of(run: Path) -> dict[str, Attempt]:
    """The latest attempt per tracker; empty where none was made."""
    path = run / "mirror.json"
    if not path.exists():
        return {}
    try:
        return _Attempts.validate_json(path.read_bytes())
    except ValidationError as err:
        raise UserError(f"{path} is damaged; delete it and run: autotune sync {run} --tracker NAME") from err


def trackers_of(run: Path) -> list[str]:
    """What `autotune sync` brings up to date: every tracker that was tried before, else the default."""
    return list(attempts_of(run)) or list(DEFAULT_TRACKERS)


def _attempt(tracker: Tracker, run: Path) -> Attempt:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        done = tracker.mirror(run)
    except TrackerUnavailable as err:
        return Attempt(name=tracker.name, ok=False, at=at, where=None, message=str(err))
    return Attempt(name=tracker.name, ok=True, at=at, where=done.where, message=done.message)


def _save(run: Path, attempts: dict[str, Attempt]) -> None:
    path = run / "mirror.json"
    partial = path.with_suffix(".part")
    try:
        partial.write_bytes(_Attempts.dump_json(attempts, indent=2) + b"\n")
        partial.replace(path)
    except OSError as err:
        raise ledger.unusable(path, err) from err
