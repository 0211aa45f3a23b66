"""vLLM's own configuration file, and the command line that goes with it.

vLLM has dropped `false` from its YAML before, so switches stay on the command line. Both are in one file: the
command in its head. Knows nothing of containers.
"""

import shlex
from typing import Any

from lifecycle.export import yaml_text
from lifecycle.export.base import Canonical, Deployment, only_for
from scenarios.errors import UserError

COMMAND = "command: "
ENVIRONMENT = "environment: "
CONFIGURATION = "configuration: "


class VllmYaml:
    name = "vllm"
    file_name = "vllm.yaml"

    def render(self, deployment: Deployment) -> str:
        only_for(deployment, self.name, "vllm", "vllm-cpu")
        canonical = deployment.canonical
        program, serve, model = canonical.program
        switches = [flag.name for flag in canonical.flags if not flag.values]
        command = [program, serve, "--config", self.file_name, *switches, *deployment.listening("127.0.0.1")]
        head = [
            *deployment.told,
            f"{CONFIGURATION}{canonical.config_digest}",
            *(f"{ENVIRONMENT}{name}={shlex.quote(value)}" for name, value in canonical.env.items()),
            f"{COMMAND}{shlex.join(command)}",
        ]
        settings = {flag.name.removeprefix("--"): _value(flag.values) for flag in canonical.flags if flag.values}
        return yaml_text.dump([{"model": model, **settings}], head)

    def parse(self, text: str) -> Canonical:
        (settings,) = yaml_text.read(text)
        told = yaml_text.comments(text)
        commands = [line.removeprefix(COMMAND) for line in told if line.startswith(COMMAND)]
        if len(commands) != 1 or "model" not in settings:
            raise UserError("not a file of ours: it must hold `model`, and the command in its head")
        env: dict[str, str] = {}
        for line in told:
            if line.startswith(ENVIRONMENT):
                name, _, value = shlex.split(line.removeprefix(ENVIRONMENT))[0].partition("=")
                env[name] = value
        program, serve, _config, _file, *switches = shlex.split(commands[0])
        given: list[str] = [word for name, value in settings.items() if name != "model" for word in _words(name, value)]
        configuration = next(line.removeprefix(CONFIGURATION) for line in told if line.startswith(CONFIGURATION))
        return Canonical.of([program, serve, str(settings["model"]), *given, *switches], env, configuration)

    def digest(self, text: str) -> str:
        return self.parse(text).digest


def _value(values: tuple[str, ...]) -> Any:
    if len(values) > 1:
        return list(values)
    text = values[0]
    return int(text) if text.isascii() and text.isdigit() and str(int(text)) == text else text


def _words(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(str(v) for v in values)]
