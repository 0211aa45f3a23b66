"""What the load child needs of an event loop: gevent's, without naming it.

Knows nothing of what is watched.
"""

from collections.abc import Callable
from typing import Any, Protocol

READABLE = 1
WRITABLE = 2
FIRST = 2  # priority of what is served before everything else that is ready


class Watcher(Protocol):
    """Calls back, again and again, from ``start`` to ``stop``. An exception of the callback ends the process."""

    def start(self, callback: Callable[..., object], *args: object) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Loop(Protocol):
    """``io``: while the descriptor is READABLE or WRITABLE. ``idle``: while nothing else is ready."""

    def io(self, fd: int, events: int, ref: bool = True, priority: int | None = None) -> Any: ...

    def idle(self) -> Any: ...
