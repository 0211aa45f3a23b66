"""A POSIX shell script that becomes the server.

Knows only sh: one `export` a variable, one `exec` with a flag a line.
"""

import shlex

from lifecycle.export.base import Canonical, Deployment
from scenarios.errors import UserError

CONTINUED = " \\\n  "
CONFIGURATION = "# configuration: "


class Shell:
    name = "shell"
    file_name = "serve.sh"

    def render(self, deployment: Deployment) -> str:
        canonical = deployment.canonical
        lines = ["#!/bin/sh", *(f"# {line}" for line in deployment.told)]
        lines += [f"{CONFIGURATION}{canonical.config_digest}", "set -eu"]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in canonical.env.items()]
        words = [(deployment.program, *canonical.program[1:]), *(flag.words for flag in canonical.flags)]
        words.append(deployment.listening("127.0.0.1"))
        lines.append("exec " + CONTINUED.join(shlex.join(part) for part in words))
        return "\n".join(lines) + "\n"

    def parse(self, text: str) -> Canonical:
        env: dict[str, str] = {}
        argv: list[str] = []
        configuration = ""
        for line in text.replace(CONTINUED, " ").splitlines():
            if line.startswith(CONFIGURATION):
                configuration = line.removeprefix(CONFIGURATION)
            elif line.startswith("export "):
                name, _, value = shlex.split(line)[1].partition("=")
                env[name] = value
            elif line.startswith("exec "):
                argv = shlex.split(line)[1:]
        if not argv:
            raise UserError("not a script of ours: it has no `exec` line")
        return Canonical.of(argv, env, configuration)

    def digest(self, text: str) -> str:
        return self.parse(text).digest
