"""How long work says where it is: one function that is called now and then. Knows nothing of terminals."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # done, total, of what


def silent(_done: int, _total: int, _what: str) -> None:
    """No progress is wanted."""
