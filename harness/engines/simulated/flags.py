"""The command line of the simulated engine, release by release, and the settings that it stands for.

The server parses with it; the adapter asks it what the installed release knows. Starts nothing.
"""

import argparse
import functools
from collections.abc import Mapping
from dataclasses import fields
from typing import NoReturn

from harness.engines.simulated.law import Settings
from scenarios.space import Value

RELEASES = ("1", "2")
NEWEST = RELEASES[-1]
PROGRAM = "simulated-server"
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "1": {"weights": ("bf16", "fp8", "int4"), "speculation": ("none", "ngram")},
    "2": {
        "weights": ("bf16", "fp8", "int4"),
        "kv_cache_dtype": ("auto", "fp8"),
        "speculation": ("none", "ngram", "draft"),
    },
}
NOT_YET = {"1": ("kv_cache_dtype",), "2": ()}  # settings that a release has no flag for
OF_THE_BOX = ("accelerators",)  # settings that are not tuned


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Refuses as argparse does, and says who speaks."""
        self.exit(2, f"{self.prog} (simulated): error: {message}\n")


def flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def parser(release: str) -> argparse.ArgumentParser:
    """What this release understands. Settings left out have vLLM's defaults."""
    flags = _Parser(prog=PROGRAM, allow_abbrev=False)
    flags.add_argument("--release", choices=RELEASES, required=True)
    flags.add_argument("--accelerator", required=True)
    flags.add_argument("--model", required=True)
    flags.add_argument("--served-model-name", required=True)
    flags.add_argument("--max-model-len", type=int, required=True)
    flags.add_argument("--host", required=True)
    flags.add_argument("--port", type=int, required=True)
    flags.add_argument("--seed", type=int, default=0)
    for setting in fields(Settings):
        default, name = setting.default, flag(setting.name)
        if setting.name in NOT_YET[release]:
            continue
        if isinstance(default, bool):
            flags.add_argument(name, action=argparse.BooleanOptionalAction, default=default)
        else:
            choices = CHOICES[release].get(setting.name)
            flags.add_argument(name, type=type(default), default=default, choices=choices)
    return flags


def settings(parsed: argparse.Namespace) -> Settings:
    """Settings that the release has no flag for have their defaults."""
    given = vars(parsed)
    return Settings(**{s.name: given[s.name] for s in fields(Settings) if s.name in given})


def arguments(setting: str, value: Value) -> tuple[str, ...]:
    """A setting as it is written on the command line."""
    if isinstance(value, bool):
        return (flag(setting) if value else flag(f"no-{setting}"),)
    return flag(setting), str(value)


@functools.cache
def _understood(release: str) -> Mapping[str, tuple[Value, ...] | None]:
    """Every setting that the release's parser knows, and its choices; None: any value of its type."""
    actions = parser(release)._actions  # noqa: SLF001 - argparse has no other way
    return {action.dest: None if action.choices is None else tuple(action.choices) for action in actions}


def why_unknown(release: str, setting: str, value: Value) -> str | None:
    """Why this release cannot be told so; None: it can. Asks the release's own parser."""
    known = _understood(release)
    if setting not in known:
        return f"release {release} has no {flag(setting)}"
    if (choices := known[setting]) is not None and value not in choices:
        return f"release {release} has no {flag(setting)} {value}"
    return None
