"""The cache of models on disk: folders that one process works in at a time, whole files only, digests remembered.

Knows nothing of models.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from harness.progress import Progress
from scenarios.errors import Infrastructure


def cache_folder() -> Path:
    """Where models are kept: $AUTOTUNE_MODELS, or the user's cache folder."""
    given = os.environ.get("AUTOTUNE_MODELS")
    return Path(given).absolute() if given else Path(platformdirs.user_cache_dir("autotune")) / "models"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """Digest of a user's file, computed once per size and modification time."""
    stat = path.stat()
    key = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    memory = cache_folder() / "digests" / key
    state = f"{stat.st_size} {stat.st_mtime_ns} "
    if memory.exists() and memory.read_text().startswith(state):
        return memory.read_text().removeprefix(state)
    sha256 = file_sha256(path)
    with disk(memory):
        memory.parent.mkdir(parents=True, exist_ok=True)
        part = memory.with_suffix(f".{os.getpid()}")
        part.write_text(state + sha256)
        part.replace(memory)
    return sha256


@contextlib.contextmanager
def locked(folder: Path, on_progress: Progress, label: str) -> Iterator[Path]:
    """A scratch folder, ours alone while the lock is held. What dead processes left there goes first."""
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_progress(0, 1, f"waiting for another process that works on {label}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            for left in folder.glob("scratch-*"):
                shutil.rmtree(left, ignore_errors=True)
            for left in folder.glob("*.part"):
                left.unlink()
            scratch = folder / f"scratch-{os.getpid()}"
            scratch.mkdir()
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise Infrastructure(f"{path}: {err.strerror or err}; nothing half-made is left") from err


def replace(part: Path, target: Path) -> None:
    """``part`` under its final name, on the disk for good."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)
