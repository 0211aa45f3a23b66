"""Keeps one engine process and everything it starts from outliving us.

Run as ``python -I -S guard.py PIPE_FD GRACE_S ARGV...`` by supervise.py, which holds the pipe's other end.
The pipe closes when the parent closes it or dies in any way, SIGKILL included: then the whole tree is
ended, politely first, and the guard exits. It exits with the engine's own status when that ends first.
Standard library only: it must start in milliseconds and under any interpreter.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(pipe_fd: int, grace_s: float, argv: list[str]) -> int:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    os.set_inheritable(pipe_fd, False)

    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        try:
            os.execvpe(argv[0], argv, os.environ)  # noqa: S606 - an argv list, never a shell
        except OSError as err:
            os.write(2, f"cannot start {argv[0]}: {err.strerror}\n".encode())
            os._exit(127)

    status: int | None = None
    while status is None:
        ready, _, _ = select.select([pipe_fd, wake_r], [], [])
        if wake_r in ready:
            told = os.read(wake_r, 64)
            status = reap(child)
            if any(number != signal.SIGCHLD for number in told):
                break
        if pipe_fd in ready:
            break
    final = end_tree(child, status, grace_s)
    return final if final >= 0 else 128 - final


def reap(child: int) -> int | None:
    """Collect every ended process; the engine's exit code if it is among them (negative: signal)."""
    found: int | None = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                found = os.waitstatus_to_exitcode(status)
    return found


def end_tree(child: int, status: int | None, grace_s: float) -> int:
    """SIGTERM, then SIGKILL after the grace, until no descendant is left."""
    deadline = time.monotonic() + (grace_s if status is None else 0.5)
    number = signal.SIGTERM
    told: set[int] = set()
    while True:
        found = reap(child)
        status = status if status is not None else found
        living = set(descendants())
        if not living:
            return status if status is not None else -signal.SIGKILL
        if time.monotonic() > deadline:
            number = signal.SIGKILL
            told.clear()
        for pid in living - told:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
                os.kill(pid, signal.SIGCONT)  # a stopped process cannot end
            told.add(pid)
        time.sleep(0.01)


def descendants() -> Iterator[int]:
    """Pids below this process, from /proc. Orphans are among them: we are their reaper."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                fields = stat[stat.rindex(")") + 2 :].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        yield from below
        todo.extend(below)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
