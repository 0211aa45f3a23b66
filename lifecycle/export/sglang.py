"""SGLang's own configuration file, for `sglang serve --config FILE`.

A key is a long flag without dashes, `true` a switch. Knows nothing of containers.
"""

from typing import Any

from lifecycle.export import yaml_text
from lifecycle.export.base import Canonical, Deployment, Flag, head, only_for, read_head
from scenarios.errors import UserError

PROGRAM = ("sglang", "serve")


class SglangYaml:
    name = "sglang"
    file_name = "sglang.yaml"

    def render(self, deployment: Deployment) -> str:
        only_for(deployment, self.name, "sglang")
        canonical = deployment.canonical
        command = [*canonical.program, "--config", self.file_name, *deployment.listening("127.0.0.1")]
        settings = {flag.name.removeprefix("--"): _setting(flag) for flag in canonical.flags}
        return yaml_text.dump([settings], [*head(deployment), f"command: {' '.join(command)}"])

    def parse(self, text: str) -> Canonical:
        (settings,) = yaml_text.read(text)
        env, configuration = read_head(yaml_text.comments(text))
        argv = [word for name, said in settings.items() for word in _words(name, said)]
        if "--model-path" not in argv:
            raise UserError("not a file of ours: it must hold `model-path`")
        return Canonical.of([*PROGRAM, *argv], env, configuration)

    def digest(self, text: str) -> str:
        return self.parse(text).digest


def _setting(flag: Flag) -> Any:
    return yaml_text.scalar(flag.values) if flag.values else True


def _words(name: str, said: Any) -> list[str]:
    """As SGLang reads it: `true` is the flag alone."""
    return [f"--{name}"] if said is True else [f"--{name}", *yaml_text.words(said)]
