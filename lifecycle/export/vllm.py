"""vLLM's own configuration file, and the command line that goes with it.

vLLM has dropped `false` from its YAML before, so switches stay on the command line. Both are in one file: the
command in its head. Knows nothing of containers.
"""

import shlex

from lifecycle.export import yaml_text
from lifecycle.export.base import Canonical, Deployment, head, only_for, read_head
from scenarios.errors import UserError

COMMAND = "command: "


class VllmYaml:
    name = "vllm"
    file_name = "vllm.yaml"

    def render(self, deployment: Deployment) -> str:
        only_for(deployment, self.name, "vllm", "vllm-cpu")
        canonical = deployment.canonical
        program, serve, model = canonical.program
        switches = [flag.name for flag in canonical.flags if not flag.values]
        command = [program, serve, "--config", self.file_name, *switches, *deployment.listening("127.0.0.1")]
        settings = {
            flag.name.removeprefix("--"): yaml_text.scalar(flag.values) for flag in canonical.flags if flag.values
        }
        return yaml_text.dump([{"model": model, **settings}], [*head(deployment), f"{COMMAND}{shlex.join(command)}"])

    def parse(self, text: str) -> Canonical:
        (settings,) = yaml_text.read(text)
        told = yaml_text.comments(text)
        commands = [line.removeprefix(COMMAND) for line in told if line.startswith(COMMAND)]
        if len(commands) != 1 or "model" not in settings:
            raise UserError("not a file of ours: it must hold `model`, and the command in its head")
        env, configuration = read_head(told)
        program, serve, _config, _file, *switches = shlex.split(commands[0])
        given = [
            word for name, said in settings.items() if name != "model" for word in (f"--{name}", *yaml_text.words(said))
        ]
        return Canonical.of([program, serve, str(settings["model"]), *given, *switches], env, configuration)

    def digest(self, text: str) -> str:
        return self.parse(text).digest
