"""The only truth of a study: an append-only file of finished steps.

A study is a fixed sequence of named steps, each a function of the scenario and of earlier steps.
``once(key, work)`` gives the recorded result of a step, or does the work and records it with one
appended and fsynced line. So a study that was killed anywhere goes on by being run again.
Knows nothing of what the steps mean.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from harness.errors import RunFolderUnusable
from scenarios.errors import UserError

JSONDict = dict[str, Any]


class Ledger:
    """One writer at a time (an exclusive lock); a half-written last line, left by a kill, is dropped."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._entries: dict[str, JSONDict] = {}
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as err:
            raise unusable(path, err) from err
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            os.close(self._fd)
            raise UserError(f"{path.parent} is in use by another autotune process; wait for it or stop it") from err
        end = 0
        for entry, offset in _entries(path):
            self._entries[entry["step"]] = entry
            end = offset
        os.ftruncate(self._fd, end)

    def once(self, step: str, work: Callable[[], JSONDict]) -> JSONDict:
        """The result of ``step``: recorded, or worked out now and recorded before it is returned."""
        if step in self._entries:
            result: JSONDict = self._entries[step]["result"]
            return result
        return self._append(step, work())

    def _append(self, step: str, result: JSONDict) -> JSONDict:
        entry = {
            "seq": len(self._entries),
            "at_unix_s": round(self._clock(), 3),
            "step": step,
            "result": result,
        }
        line = (json.dumps(entry, separators=(",", ":"), allow_nan=False) + "\n").encode()
        start = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, line)
            os.fsync(self._fd)
        except OSError as err:
            raise unusable(self.path, err) from err
        if written < len(line):
            os.ftruncate(self._fd, start)
            raise unusable(self.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self._entries[step] = json.loads(line)  # what a resumed run would read, so that both take the same path
        recorded: JSONDict = self._entries[step]["result"]
        return recorded

    def __contains__(self, step: str) -> bool:
        return step in self._entries

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing, also when killed. Raises RunFolderUnusable."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as err:
        raise unusable(path, err) from err


def unusable(path: Path, err: OSError) -> RunFolderUnusable:
    """The error for a run folder that cannot be written, with what to do next."""
    why = {errno.ENOSPC: "the disk is full: free some space", errno.EACCES: "no permission to write"}
    reason = why.get(err.errno or 0, str(err))
    return RunFolderUnusable(f"{path}: cannot write: {reason}. Nothing recorded is lost; go on with --resume")


def read(path: Path) -> dict[str, JSONDict]:
    """Step -> result, in the order of recording. Safe beside a writer. Raises UserError if there is none."""
    if not path.exists():
        raise UserError(f"{path} does not exist: {path.parent} is not the folder of a study")
    return {entry["step"]: entry["result"] for entry, _ in _entries(path)}


def stamps(path: Path) -> dict[str, float]:
    """Step -> when it was recorded, in Unix seconds. For mirrors that show a time axis."""
    return {entry["step"]: entry["at_unix_s"] for entry, _ in _entries(path)}


def _entries(path: Path) -> Iterator[tuple[JSONDict, int]]:
    """Each whole line with the offset of its end."""
    offset = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                yield json.loads(line), offset
            except json.JSONDecodeError as err:
                raise UserError(
                    f"{path}: byte {offset - len(line)}: damaged entry; restore the file or start anew"
                ) from err
