"""What an installed engine says of itself: its version, and every flag of its server's own parser.

Asks the interpreter of the engine's environment, once; never imports an engine here. Knows nothing of configurations.
"""

import functools
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.engines.environments import cache_folder, interpreter
from harness.engines.flags import Flag
from harness.errors import EngineNotInstalled
from scenarios.space import digest

ASK_VERSION = """
import importlib.metadata as m, json
found = {n: m.version(n) for n in %r if list(m.distributions(name=n))}
print(json.dumps(found))
"""
# The last lines of each `Package.ask_flags`, which has made a `parser`.
TELL_FLAGS = """
import json
flags = {}
for action in parser._actions:
    plain = isinstance(action.default, (int, float, str, bool, type(None)))
    about = {
        "default": action.default if plain else None,
        "choices": [str(c) for c in action.choices] if action.choices else None,
    }
    flags.update((option, about) for option in action.option_strings)
print("\\n" + json.dumps(flags))
"""
VERSION_LIMIT_S = 30
FLAGS_LIMIT_S = 180


@dataclass(frozen=True, slots=True)
class Package:
    """An engine that is a Python package. ``ask_flags``: a program that makes its server's ``parser``."""

    title: str
    distributions: tuple[str, ...]
    ask_flags: str
    quiet: tuple[tuple[str, str], ...] = ()  # variables that keep it from saying more than was asked


def python_of(engine: str, python: str | None) -> str:
    """The interpreter to ask and to launch with. Raises EngineNotInstalled."""
    found = python or interpreter(engine)
    if found is None:
        raise EngineNotInstalled(
            f"{engine} is not installed: run `autotune engines install {engine}`, "
            "or name the interpreter of an environment that has it: engine.python"
        )
    return found


def known_flags(package: Package, engine: str, python: str | None) -> tuple[str | None, Mapping[str, Flag] | None]:
    """The interpreter, and the flags of the release in it. None: not installed, so nothing can be checked."""
    try:
        found = python_of(engine, python)
        return found, flags(package, found)
    except EngineNotInstalled:
        return python, None


@functools.cache
def versions(package: Package, python: str) -> Mapping[str, str]:
    """By distribution. Raises EngineNotInstalled."""
    ask = ASK_VERSION % (package.distributions,)
    try:
        said = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=VERSION_LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError) as err:
        raise EngineNotInstalled(f"engine.python: {python} cannot be run: {err}") from err
    found: dict[str, str] = json.loads(said.stdout)
    if not found:
        first, *others = package.distributions
        instead = f" (or {', '.join(others)})" if others else ""
        raise EngineNotInstalled(f"{python} has no {package.title}: `{python} -m pip install {first}`{instead}")
    return found


@functools.cache
def flags(package: Package, python: str) -> Mapping[str, Flag]:
    """Every flag of its server, kept on disk by version: engines take long to import.

    Raises EngineNotInstalled where the installed engine cannot be imported, with its own last words.
    """
    kept = cache_folder() / "flags" / f"{digest([python, dict(versions(package, python))])[:16]}.json"
    if kept.exists():
        told = json.loads(kept.read_text("utf-8"))
    else:
        told = _ask(package, python)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(told), encoding="utf-8")
        part.replace(kept)
    return {name: Flag(f["default"], tuple(f["choices"]) if f["choices"] else None) for name, f in told.items()}


def _ask(package: Package, python: str) -> dict[str, Any]:
    quiet = {**os.environ, **dict(package.quiet), "PYTHONWARNINGS": "ignore"}
    try:
        said = subprocess.run(
            [python, "-c", package.ask_flags + TELL_FLAGS],
            capture_output=True,
            text=True,
            timeout=FLAGS_LIMIT_S,
            check=False,
            env=quiet,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise EngineNotInstalled(f"{python}: its {package.title} does not say its flags: {err}") from err
    if said.returncode != 0:
        words = said.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise EngineNotInstalled(f"{python}: its {package.title} cannot be imported: {words[0]}")
    told: dict[str, Any] = json.loads(said.stdout.strip().splitlines()[-1])
    return told
