"""An environment file for TGI's container: its launcher takes every argument as a variable too.

Docker reads it as it stands: one NAME=VALUE a line, nothing is quoted or expanded. Knows nothing of clusters.
"""

import shlex
from collections.abc import Iterator

from lifecycle.export.base import CONFIGURATION, Canonical, Deployment, Flag, only_for
from scenarios.errors import UserError

LAUNCHER = "text-generation-launcher"
ARGUMENTS = "# arguments of the launcher"
VARIABLES = "# variables that are no arguments"
PLACEMENT = "# where it listens"
SWITCHED_ON = "true"


class TgiEnvironment:
    name = "tgi"
    file_name = "tgi.env"

    def render(self, deployment: Deployment) -> str:
        only_for(deployment, self.name, "tgi")
        canonical = deployment.canonical
        arguments = {_variable(flag.name): _value(flag) for flag in canonical.flags}
        if twice := canonical.env.keys() & {*arguments, "HOSTNAME", "PORT"}:
            raise UserError(f"--format {self.name}: {', '.join(sorted(twice))} would be set twice")
        lines = [
            *(f"# {line}" for line in deployment.told),
            f"# {CONFIGURATION}{canonical.config_digest}",
            f"# {shlex.join(self._command(deployment))}",
            ARGUMENTS,
            *(f"{name}={value}" for name, value in arguments.items()),
            VARIABLES,
            *(f"{name}={value}" for name, value in canonical.env.items()),
            PLACEMENT,
            "HOSTNAME=0.0.0.0",
            f"PORT={deployment.port}",
        ]
        return "\n".join(lines) + "\n"

    def _command(self, deployment: Deployment) -> list[str]:
        command = ["docker", "run", "--env-file", self.file_name, "--shm-size", "1g"]
        command += ["--publish", f"127.0.0.1:{deployment.port}:{deployment.port}"]
        if deployment.gpus:
            command += ["--gpus", str(deployment.gpus)]
        if folder := deployment.model_folder:
            command += ["--mount", f"type=bind,source={folder},target={folder},readonly"]
        return [*command, deployment.image]

    def parse(self, text: str) -> Canonical:
        argv, env, configuration, section = [LAUNCHER], {}, "", ""
        for line in text.splitlines():
            name, given, value = line.partition("=")
            if line.startswith(f"# {CONFIGURATION}"):
                configuration = line.removeprefix(f"# {CONFIGURATION}")
            elif line in (ARGUMENTS, VARIABLES, PLACEMENT):
                section = line
            elif section == ARGUMENTS and given:
                argv += _words(name, value)
            elif section == VARIABLES and given:
                env[name] = value
        if not section:
            raise UserError(f"not a file of ours: it has no line `{ARGUMENTS}`")
        return Canonical.of(argv, env, configuration)

    def digest(self, text: str) -> str:
        return self.parse(text).digest


def _variable(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_").upper()


def _value(flag: Flag) -> str:
    if not flag.values:
        return SWITCHED_ON
    (value,) = flag.values
    if value == SWITCHED_ON:
        raise UserError(f"--format tgi: {flag.name} cannot hold {SWITCHED_ON}, which means a switch")
    return value


def _words(name: str, value: str) -> Iterator[str]:
    yield f"--{name.lower().replace('_', '-')}"
    if value != SWITCHED_ON:
        yield value
