"""A systemd service.

Quoting follows systemd.syntax(7) and systemd.service(5): C-style escapes in double quotes; `%` begins a specifier
everywhere, `$` a variable in ExecStart alone. Knows nothing of engines.
"""

import re

from lifecycle.export.base import Canonical, Deployment
from scenarios.errors import UserError

PLAIN = re.compile(r"[A-Za-z0-9_./:=,@+-]+")
CONTINUED = " \\\n    "
CONFIGURATION = "X-Autotune-Configuration="
ESCAPES = {"\\": "\\", '"': '"', "'": "'", "s": " ", "t": "\t", "n": "\n"}


class Systemd:
    name = "systemd"
    file_name = "engine.service"

    def render(self, deployment: Deployment) -> str:
        canonical = deployment.canonical
        if not PLAIN.fullmatch(deployment.program):
            raise UserError(f"--program must be a plain path in a systemd unit, got {deployment.program}")
        words = [(deployment.program, *canonical.program[1:]), *(flag.words for flag in canonical.flags)]
        words.append(deployment.listening("127.0.0.1"))
        command = CONTINUED.join(" ".join(_word(word) for word in part) for part in words)
        environment = [f"Environment={_quoted(f'{k}={v}', variables=False)}" for k, v in canonical.env.items()]
        lines = [
            *(f"# {line}" for line in deployment.told),
            "[Unit]",
            f"Description={deployment.name}: {deployment.engine}, as autotune found it",
            "After=network-online.target",
            "Wants=network-online.target",
            f"{CONFIGURATION}{canonical.config_digest}",
            "",
            "[Service]",
            *environment,
            f"ExecStart={command}",
            "Restart=on-failure",
            "RestartSec=5",
            "TimeoutStartSec=infinity",
            "LimitNOFILE=65536",
            "",
            "[Install]",
            "WantedBy=multi-user.target",
        ]
        return "\n".join(lines) + "\n"

    def parse(self, text: str) -> Canonical:
        env: dict[str, str] = {}
        argv: list[str] = []
        configuration = ""
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            key, _, value = line.partition("=")
            if key == "Environment":
                for word in _words(value, variables=False):
                    name, _, content = word.partition("=")
                    env[name] = content
            elif key == "ExecStart":
                argv = _words(value, variables=True)
            elif f"{key}=" == CONFIGURATION:
                configuration = value
        if not argv:
            raise UserError("not a unit of ours: it has no ExecStart")
        return Canonical.of(argv, env, configuration)

    def digest(self, text: str) -> str:
        return self.parse(text).digest


def _word(word: str) -> str:
    return word if PLAIN.fullmatch(word) else _quoted(word, variables=True)


def _quoted(word: str, *, variables: bool) -> str:
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text.replace("$", "$$") if variables else text}"'


def _words(text: str, *, variables: bool) -> list[str]:
    """What systemd makes of one line: words, quotes and escapes undone, `%%` and `$$` too."""
    words: list[str] = []
    current: list[str] | None = None
    quote = ""
    i = 0
    while i < len(text):
        char = text[i]
        if quote and char == quote:
            quote = ""
        elif char == "\\":
            i += 1
            if text[i : i + 1] not in ESCAPES:
                raise UserError(f"an escape that is not understood in {text!r}")
            current = [*(current or []), ESCAPES[text[i]]]
        elif not quote and char in "\"'" and current is None:
            quote, current = char, []
        elif not quote and char.isspace():
            if current is not None:
                words.append("".join(current))
            current = None
        else:
            doubled = char == "%" or (variables and char == "$")
            if doubled and text[i + 1 : i + 2] != char:
                raise UserError(f"{char} is not doubled: systemd would expand it in {text!r}")
            i += doubled
            current = [*(current or []), char]
        i += 1
    if quote:
        raise UserError(f"a quote is not closed in {text!r}")
    return words if current is None else [*words, "".join(current)]
