"""Finds engines, tuners and trackers by entry point. Built-ins come in by the same door.

A named plug-in that is missing or cannot load is fatal: never a warning, never a silent substitute.
"""

import difflib
from importlib.metadata import entry_points
from typing import Any

from scenarios.errors import UserError


def names(group: str) -> list[str]:
    """Registered names of ``autotune.<group>``, sorted."""
    return sorted({point.name for point in entry_points(group=f"autotune.{group}")})


def load(group: str, name: str) -> Any:
    """The object registered as ``name`` in ``autotune.<group>``. Raises UserError naming what there is."""
    found = [point for point in entry_points(group=f"autotune.{group}") if point.name == name]
    if not found:
        near = difflib.get_close_matches(name, names(group), n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise UserError(f"unknown {group.removesuffix('s')} `{name}`{hint} (installed: {', '.join(names(group))})")
    try:
        return found[0].load()
    except ImportError as err:
        raise UserError(f"{group.removesuffix('s')} `{name}` cannot be loaded: {err}") from err
