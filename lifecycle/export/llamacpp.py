"""A preset of llama-server: an INI file for `llama-server --models-preset FILE`.

Keys are the long flags without dashes; a value ends at `;`, `#` or the line's end and cannot be quoted. Knows
nothing of containers.
"""

import re

from lifecycle.export.base import Canonical, Deployment, Flag, only_for
from scenarios.errors import UserError

CONFIGURATION = "; configuration: "
ALIAS = "--alias"
SWITCH_ON, SWITCH_OFF = "true", "false"
UNSPEAKABLE = re.compile(r"[;#]|^\s|\s$|^$")


class LlamaPreset:
    name = "llamacpp"
    file_name = "llama.ini"

    def render(self, deployment: Deployment) -> str:
        only_for(deployment, self.name, "llamacpp")
        canonical = deployment.canonical
        if canonical.env:
            raise UserError(
                f"--format {self.name} carries no environment; this configuration has {', '.join(canonical.env)}"
            )
        alias = canonical.flag(ALIAS) or deployment.served_model
        if "]" in alias or UNSPEAKABLE.search(alias):
            raise UserError(f"a preset cannot be called {alias!r}: `]`, `;`, `#` and spaces around it end a name")
        lines = [
            *(f"; {line}" for line in deployment.told),
            f"{CONFIGURATION}{canonical.config_digest}",
            f"; llama-server --models-preset {self.file_name} --host 127.0.0.1 --port {deployment.port}",
            "version = 1",
            "",
            f"[{alias}]",
            *(_line(flag) for flag in canonical.flags if flag.name != ALIAS),
        ]
        return "\n".join(lines) + "\n"

    def parse(self, text: str) -> Canonical:
        argv, configuration = ["llama-server"], ""
        section = ""
        for line in text.splitlines():
            if line.startswith(CONFIGURATION):
                configuration = line.removeprefix(CONFIGURATION)
            elif header := re.fullmatch(r"\[([^]]+)\]", line):
                section = header[1]
                argv += [ALIAS, section]
            elif section and (pair := re.match(r"([A-Za-z_][\w.-]*)[ \t]*=[ \t]*([^;#]*)", line)):
                argv += _words(pair[1], pair[2].rstrip())
        if not section:
            raise UserError("not a preset of ours: it has no section")
        return Canonical.of(argv, {}, configuration)

    def digest(self, text: str) -> str:
        return self.parse(text).digest


def _line(flag: Flag) -> str:
    name = flag.name.removeprefix("--")
    if not flag.values:
        return f"{name.removeprefix('no-')} = {SWITCH_OFF if name.startswith('no-') else SWITCH_ON}"
    (value,) = flag.values
    if UNSPEAKABLE.search(value) or value in (SWITCH_ON, SWITCH_OFF):
        raise UserError(f"--{name}: a preset cannot hold {value!r}: `;`, `#` and spaces around a value end it")
    return f"{name} = {value}"


def _words(name: str, value: str) -> list[str]:
    if value == SWITCH_ON:
        return [f"--{name}"]
    return [f"--no-{name}"] if value == SWITCH_OFF else [f"--{name}", value]
