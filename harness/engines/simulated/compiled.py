"""Compiles the simulated engine's loops where numba is installed (extra `simulate`); elsewhere they run as Python.

Knows nothing of what it compiles. Both ways give equal results, machine code about a hundred times faster. It is kept
in the user's cache under the digest of this package's sources: numba itself asks only whether the file of a function
has changed, not those of the functions that it calls.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import platformdirs

try:
    import numba
except ImportError:
    numba = None

F = TypeVar("F", bound=Callable[..., Any])

IS_COMPILED = numba is not None


def _digest() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


MACHINE_CODE = Path(platformdirs.user_cache_dir("autotune")) / "simulated" / _digest()


def _can_be_kept() -> bool:
    try:
        MACHINE_CODE.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(MACHINE_CODE, os.W_OK)


def compiled(function: F) -> F:
    """Machine code of ``function``, made at its first call; itself where there is no numba."""
    if numba is None:
        return function
    elsewhere = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(MACHINE_CODE)
    try:
        return cast("F", numba.njit(cache=_can_be_kept())(function))
    finally:
        numba.config.CACHE_DIR = elsewhere
