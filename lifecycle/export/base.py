"""What every export format starts from and must lead back to: argv, environment, configuration digest.

Knows no format and no run folder. The contract suite is tests/contract/exporter_suite.py.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol, Self

from scenarios.errors import UserError
from scenarios.space import digest
from tuners.results import Winner

PLACEMENT_FLAGS = ("--host", "--hostname", "--port")  # where it listens is no part of a configuration
HOST_FLAGS = {"text-generation-launcher": "--hostname"}  # of programs that do not call it --host
DRAFTING_FLAG = "--speculative-config"
SECRET_FLAGS = ("--api-key", "--api-key-file", "--hf-token", "--ssl-keyfile-password")
SECRET_NAME = re.compile(r"(^|_)(API_?KEY|ACCESS_KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
USER_AND_PASSWORD = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Flag:
    """``--name`` with its values; none: a switch."""

    name: str
    values: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return (self.name, *self.values)


@dataclass(frozen=True, slots=True)
class Canonical:
    """A configuration as it is launched. Equal content has equal ``digest``, whatever format carried it.

    ``program``: the program's name and the words before the first flag, such as `vllm serve MODEL`.
    ``flags``: sorted by name, without host and port.
    """

    program: tuple[str, ...]
    flags: tuple[Flag, ...]
    env: Mapping[str, str]
    config_digest: str

    @classmethod
    def of(cls, argv: Iterable[str], env: Mapping[str, str], config_digest: str) -> Self:
        """Of a command line as it would be run; where the program lies does not matter."""
        words: list[str] = []
        flags: list[tuple[str, list[str]]] = []
        for word in argv:
            if word.startswith("--"):
                name, given, value = word.partition("=")
                flags.append((name, [value] if given else []))
            else:
                (flags[-1][1] if flags else words).append(word)
        if not words:
            raise UserError("there is no program to launch in this command line")
        kept = [Flag(name, tuple(values)) for name, values in flags if name not in PLACEMENT_FLAGS]
        return cls(
            (PurePosixPath(words[0]).name, *words[1:]),
            tuple(sorted(kept, key=lambda flag: flag.words)),
            dict(sorted(env.items())),
            config_digest,
        )

    @property
    def argv(self) -> tuple[str, ...]:
        return (*self.program, *(word for flag in self.flags for word in flag.words))

    @property
    def digest(self) -> str:
        return digest({"argv": list(self.argv), "environment": dict(self.env), "configuration": self.config_digest})

    def flag(self, name: str) -> str | None:
        """The value of ``--name``; None: not given, or a switch."""
        return next((f.values[0] for f in self.flags if f.name == name and f.values), None)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A study's answer, and where it is to run. ``name`` is fit for Kubernetes: lower case, digits, hyphens."""

    canonical: Canonical
    engine: str
    name: str
    served_model: str
    model: str  # a path, or the name of a hub's repository
    health_path: str
    port: int
    image: str
    program: str  # of the machine it runs on; formats of container images use the image's own
    gpus: int
    memory_bytes: int | None
    winner: Winner

    @property
    def model_folder(self) -> str | None:
        """What a container must see of this machine's files; None: a hub's repository."""
        if not self.model.startswith("/"):
            return None
        path = PurePosixPath(self.model)
        return str(path.parent if path.suffix == ".gguf" else path)

    @property
    def draft_folder(self) -> str | None:
        """The same of the weights that draft; None: there are none of their own, or they are in ``model_folder``."""
        try:
            model = str(json.loads(self.canonical.flag(DRAFTING_FLAG) or "{}").get("model", ""))
        except ValueError:  # vLLM says what it makes of it
            return None
        return model if model.startswith("/") and model != self.model_folder else None

    @property
    def folders(self) -> dict[str, str]:
        """Every folder that a container must see, by a name for it."""
        found = {"model": self.model_folder, "draft": self.draft_folder}
        return {name: folder for name, folder in found.items() if folder is not None}

    def listening(self, host: str) -> tuple[str, ...]:
        return (HOST_FLAGS.get(self.canonical.program[0], "--host"), host, "--port", str(self.port))

    @property
    def told(self) -> tuple[str, ...]:
        """Lines for people, for the head of a file."""
        lines = [self.winner.reason]
        if self.winner.certified_rate_rps is not None:
            lines.append(f"Certified at {self.winner.certified_rate_rps:g} requests/s.")
        return tuple(CONTROL_CHARACTER.sub(" ", line) for line in lines)


class Exporter(Protocol):
    """One file, one entry point in group `autotune.exporters`, one class like this, made without arguments."""

    name: str
    file_name: str  # what such a file is usually called

    def render(self, deployment: Deployment) -> str:
        """Raises UserError where the format cannot carry this configuration, with the reason."""

    def digest(self, text: str) -> str:
        """Of the configuration that ``text`` deploys or guards: `Canonical.digest`. Raises UserError."""


class DeployingExporter(Exporter, Protocol):
    """A format that carries the configuration itself, so that all of it can be read back."""

    def parse(self, text: str) -> Canonical: ...


CONFIGURATION = "configuration: "
ENVIRONMENT = "environment: "


def head(deployment: Deployment) -> list[str]:
    """Comments that carry what an engine's own file has no place for: configuration digest and environment."""
    env = [f"{ENVIRONMENT}{name}={shlex.quote(value)}" for name, value in deployment.canonical.env.items()]
    return [*deployment.told, f"{CONFIGURATION}{deployment.canonical.config_digest}", *env]


def read_head(comments: Iterable[str]) -> tuple[dict[str, str], str]:
    """Environment and configuration digest. Raises UserError where there is no digest."""
    env: dict[str, str] = {}
    configuration = None
    for line in comments:
        if line.startswith(ENVIRONMENT):
            name, _, env[name] = shlex.split(line.removeprefix(ENVIRONMENT))[0].partition("=")
        elif line.startswith(CONFIGURATION):
            configuration = line.removeprefix(CONFIGURATION)
    if configuration is None:
        raise UserError(f"not a file of ours: its head does not say `{CONFIGURATION.strip()}`")
    return env, configuration


def refuse_what_no_format_may_carry(canonical: Canonical) -> None:
    """Raises UserError for secrets and control characters. Never repeats a secret."""
    for flag in canonical.flags:
        if flag.name in SECRET_FLAGS:
            raise UserError(f"{flag.name} holds a secret: give it to the engine where it runs, never to an export")
    for name in canonical.env:
        if not ENVIRONMENT_NAME.fullmatch(name):
            raise UserError(f"environment variable {name!r}: its name must be letters, digits and _")
        if SECRET_NAME.search(name.upper()):
            raise UserError(f"environment variable {name} holds a secret: set it where the engine runs")
    for text in (*canonical.argv, *canonical.env.values()):
        if USER_AND_PASSWORD.search(text):
            raise UserError("an address with a user and password is a secret: leave them out of it")
        if found := CONTROL_CHARACTER.search(text):
            raise UserError(f"no format carries the control character {found[0]!r}; it is in {text!r}")


def only_for(deployment: Deployment, format_name: str, *engines: str) -> None:
    """Raises UserError where the format is another engine's."""
    if deployment.engine not in engines:
        raise UserError(
            f"--format {format_name} is for {' and '.join(engines)}; this study's engine is {deployment.engine}"
        )
