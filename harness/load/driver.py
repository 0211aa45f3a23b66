"""Runs a load plan in a child process of its own and brings back the records and the generator's audit.

Knows nothing of Locust or gevent, nor of what the records mean.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from harness.errors import LoadGeneratorSaturated
from harness.ledger import unusable
from harness.load.records import (
    AUDIT_FILE,
    RECORDS_FILE,
    ROWS_FILE,
    LiveCounters,
    LoadPlan,
    LoadResult,
    delete_plan,
    write_plan,
)
from harness.load.tables import table_of, write_records

_SILENCE_S = 60.0  # the child speaks every 250 ms while it runs, and needs seconds to write many records
_LOG_FILE = "load.log"


def drive(
    plan: LoadPlan,
    folder: Path,
    *,
    on_live: Callable[[LiveCounters], bool] | None = None,
    metadata: Mapping[str, str],
) -> LoadResult:
    """Carries out ``plan``; leaves ``requests.parquet`` (with ``metadata``) and ``audit.json`` in ``folder``.

    ``on_live`` is told the counters about four times a second; True asks for an early end. On leaving,
    in whatever way, the child has ended and the plan's files are gone. Raises RunFolderUnusable,
    LoadGeneratorSaturated (this machine could not generate the load) and whatever ``on_live`` raises.
    """
    assert plan.requests, "a load plan without requests"
    try:
        with _writing_to(folder):
            write_plan(plan, folder)
        with _child(folder) as child:
            done = _listen(child, folder, on_live)
        result = LoadResult(**{**done, "records_path": folder / RECORDS_FILE})
        with _writing_to(result.records_path):
            _keep(result, plan, metadata, folder)
    finally:
        delete_plan(folder)
    return result


def _keep(result: LoadResult, plan: LoadPlan, metadata: Mapping[str, str], folder: Path) -> None:
    """Raises OSError."""
    table = table_of((folder / ROWS_FILE).read_bytes(), plan.requests)
    stamps = {"t0_monotonic_ns": str(result.t0_monotonic_ns), "t0_wall_iso": result.t0_wall_iso}
    write_records(table, {**metadata, **stamps}, result.records_path)
    audit = json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n"
    (folder / AUDIT_FILE).write_text(audit, encoding="utf-8")


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise unusable(folder, err) from err


@contextlib.contextmanager
def _child(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Its stderr is kept in ``load.log`` only when it says something."""
    log_path = folder / _LOG_FILE
    argv = [sys.executable, "-P", "-m", "harness.load.locust_user", str(folder), str(os.getpid())]
    with _writing_to(folder), log_path.open("wb") as log:
        child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        if log_path.stat().st_size == 0:
            log_path.unlink()


def _listen(
    child: subprocess.Popen[bytes], folder: Path, on_live: Callable[[LiveCounters], bool] | None
) -> dict[str, Any]:
    """What the child is ``done`` with."""
    assert child.stdin is not None
    assert child.stdout is not None
    asked = False
    for line in _lines(child.stdout):
        message = json.loads(line)
        if "done" in message:
            done: dict[str, Any] = message["done"]
            return done
        if "exhausted" in message:
            raise LoadGeneratorSaturated(f"the load generator {message['exhausted']}")
        if "unwritable" in message:
            number = message["unwritable"] or 0
            raise unusable(folder / RECORDS_FILE, OSError(number, os.strerror(number)))
        if on_live is not None and on_live(LiveCounters(**message["live"])) and not asked:
            asked = True
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(b"stop\n")
                child.stdin.flush()
    status = child.wait()
    said = (folder / _LOG_FILE).read_text("utf-8", "replace")[-4000:]
    raise RuntimeError(f"the load child ended with status {status}:\n{said}")


def _lines(pipe: IO[bytes]) -> Iterator[bytes]:
    """Whole lines until the pipe ends. Raises LoadGeneratorSaturated when nothing comes any more."""
    begun = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], _SILENCE_S)
        if not ready:
            raise LoadGeneratorSaturated(f"the load generator gave no sign of life for {_SILENCE_S:.0f} s")
        data = os.read(pipe.fileno(), 65536)
        if not data:
            return
        *lines, begun = (begun + data).split(b"\n")
        yield from lines
