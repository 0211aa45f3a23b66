"""A Linux timer as a file descriptor: exact to microseconds, where event loops round sleeps up to 1 ms.

Knows nothing of event loops: somebody else watches the descriptor.
"""

import ctypes
import os

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_NS = 1_000_000_000
NEVER_NS = 1 << 62  # 146 years after the machine was started

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class TimerFd:
    """On the clock of ``time.monotonic_ns``. Readable once it has expired, until ``expirations`` is called."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        _raise_errno(self.fd)

    def set(self, at_ns: int, every_ns: int = 0) -> None:
        """Expires at ``at_ns`` (at once if that is past), then every ``every_ns``; 0: just once."""
        spec = _TimerSpec(_Timespec(*divmod(every_ns, _NS)), _Timespec(*divmod(max(at_ns, 1), _NS)))
        _raise_errno(_libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None))

    def expirations(self) -> int:
        """How often it expired since the last call."""
        try:
            return int.from_bytes(os.read(self.fd, 8), "little")
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self.fd)


def _raise_errno(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
