"""Puts this thread first in line for a core, as far as it is allowed to: stamps must not wait for a time slice.

The engine's threads may spin on every core, and then an ordinary process wakes up milliseconds late. Knows
nothing of what is done with the time.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator

_NICE = -5
_SLICE_NS = 100_000  # the shortest that Linux grants; an earlier deadline is served sooner (EEVDF)
_SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}

_libc = ctypes.CDLL(None)


class _SchedAttr(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


@contextlib.contextmanager
def first_in_line() -> Iterator[str]:
    """Yields what was granted: "realtime" (root, CAP_SYS_NICE, RLIMIT_RTPRIO), "nice", "short slice" or "none".

    Real time is given back on leaving, so that threads started later do not inherit it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        yield _sooner()
        return
    try:
        yield "realtime"
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _sooner() -> str:
    short = _set_slice(os.getpriority(os.PRIO_PROCESS, 0))
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except PermissionError:
        return "short slice" if short else "none"
    return "nice"


def _set_slice(nice: int) -> bool:
    """Needs no privilege; kernels before 6.12 take it and ignore it."""
    number = _SYS_SCHED_SETATTR.get(os.uname().machine)
    attr = _SchedAttr(size=ctypes.sizeof(_SchedAttr), policy=os.SCHED_OTHER, nice=nice, runtime=_SLICE_NS)
    return number is not None and _libc.syscall(number, 0, ctypes.byref(attr), 0) == 0
