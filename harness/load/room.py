"""How many connections this process can have open at once, and what to do where that is too few.

Knows nothing of who opens them.
"""

import errno
import resource
from pathlib import Path
from typing import NamedTuple, Self

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RESERVED_DESCRIPTORS = 8  # beside what is open now: the records' file, a look at /proc

MORE_DESCRIPTORS = "raise the limit (`ulimit -n`, LimitNOFILE= in systemd, nofile in limits.conf)"
MORE_PORTS = "widen net.ipv4.ip_local_port_range, or load from several machines"


class Room(NamedTuple):
    """``reason``: which limit it is, and how to raise it."""

    connections: int
    reason: str

    @classmethod
    def of_this_process(cls) -> Self:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = descriptors - sum(1 for _ in Path("/proc/self/fd").iterdir()) - _RESERVED_DESCRIPTORS
        low, high = (int(edge) for edge in _PORT_RANGE.read_text().split())
        ports = high - low + 1
        if ports < free:
            return cls(ports, f"this machine has {ports} ports for them ({low} to {high}): {MORE_PORTS}")
        return cls(free, f"this process may open {descriptors} files: {MORE_DESCRIPTORS}")

    def advice(self, number: int | None) -> str:
        """For what the kernel refused all the same."""
        if number == errno.EADDRNOTAVAIL:
            return f"no port is free, counting those still waiting after a close: {MORE_PORTS}"
        if number in (errno.EMFILE, errno.ENFILE):
            return MORE_DESCRIPTORS
        if number in (errno.ENOBUFS, errno.ENOMEM):
            return "the kernel has no memory for it"
        return "the kernel refuses it"
