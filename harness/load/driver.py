"""Runs a load plan in child processes of its own and brings back the records and the generator's audit.

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
from harness.load.fleet import ALONE, Fleet
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
_FAREWELL_S = 0.5
_LOG_FILE = "load.log"
_SINGLE = "harness.load.locust_user"
_FLEET = "harness.load.locust_fleet"


def drive(
    plan: LoadPlan,
    folder: Path,
    *,
    fleet: Fleet = ALONE,
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
        with _child(folder, fleet) as child:
            done = _listen(child, plan, folder, fleet, on_live)
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
def _child(folder: Path, fleet: Fleet) -> Iterator[subprocess.Popen[bytes]]:
    """The one generator, or the master of several. Its stderr is kept in ``load.log`` if it says something."""
    log_path = folder / _LOG_FILE
    module, *role = (_SINGLE, str(folder), str(os.getpid()))
    if fleet.size > 1 or fleet.remote:
        host, port = fleet.listen
        module, *role = (_FLEET, "master", str(folder), str(os.getpid()), host, str(port))
        role += [str(fleet.size), str(fleet.muster_s)]
    with _writing_to(folder):
        log_path.write_bytes(b"")
    with _writing_to(folder), log_path.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()  # it ends by itself, and a master sends its workers home
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_FAREWELL_S)
        child.kill()
        child.wait()
        child.stdout.close()
        if log_path.stat().st_size == 0:
            log_path.unlink()


@contextlib.contextmanager
def workers(
    count: int, host: str, port: int, *, api_key_env: str | None, log: IO[bytes] | None = None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that carry out a share of one plan of the master at this address, and end. None survives the exit.

    ``api_key_env``: the one variable of our environment that they may send as a key.
    """
    argv = [sys.executable, "-P", "-m", _FLEET, "worker", str(os.getpid()), host, str(port)]
    argv += [] if api_key_env is None else [api_key_env]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": log}
    running: list[subprocess.Popen[bytes]] = []
    try:
        running.extend(subprocess.Popen(argv, start_new_session=True, **pipes) for _ in range(count))
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def _listen(
    child: subprocess.Popen[bytes],
    plan: LoadPlan,
    folder: Path,
    fleet: Fleet,
    on_live: Callable[[LiveCounters], bool] | None,
) -> dict[str, Any]:
    """What the child is ``done`` with. A master that listens is given the workers of this machine."""
    assert child.stdin is not None
    assert child.stdout is not None
    asked = False
    with contextlib.ExitStack() as local:
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
            if "listening" in message:
                log = local.enter_context((folder / _LOG_FILE).open("ab"))
                host = _reachable(fleet.listen[0])
                port = message["listening"]
                local.enter_context(workers(fleet.local, host, port, api_key_env=plan.api_key_env, log=log))
            elif "live" in message and on_live is not None and on_live(LiveCounters(**message["live"])) and not asked:
                asked = True
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.write(b"stop\n")
                    child.stdin.flush()
    status = child.wait()
    said = (folder / _LOG_FILE).read_text("utf-8", "replace")[-4000:]
    raise RuntimeError(f"the load child ended with status {status}:\n{said}")


def _reachable(host: str) -> str:
    """Where a process of this machine finds what listens on ``host``."""
    return "127.0.0.1" if host in ("0.0.0.0", "*", "::") else host  # noqa: S104 - compared, not bound


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
