"""A Docker Compose file.

Compose interpolates `$NAME` in every value: a dollar that is meant is written twice. Knows nothing of clusters.
"""

import re
from typing import Any

from lifecycle.export import yaml_text
from lifecycle.export.base import Canonical, Deployment
from lifecycle.export.containers import EVERY_INTERFACE, SHARING_MEMORY, image_program
from scenarios.errors import UserError

LABEL = "autotune.configuration"
SERVICE = "engine"


class Compose:
    name = "compose"
    file_name = "compose.yaml"

    def render(self, deployment: Deployment) -> str:
        canonical = deployment.canonical
        service: dict[str, Any] = {
            "image": deployment.image,
            "entrypoint": list(image_program(deployment)),
            "command": [
                *(word for flag in canonical.flags for word in flag.words),
                *deployment.listening(EVERY_INTERFACE),
            ],
            "ports": [f"127.0.0.1:{deployment.port}:{deployment.port}"],
            "labels": {LABEL: canonical.config_digest},
            "restart": "unless-stopped",
        }
        if canonical.env:
            service["environment"] = dict(canonical.env)
        if folders := deployment.folders.values():
            service["volumes"] = [{"type": "bind", "source": f, "target": f, "read_only": True} for f in folders]
        if deployment.engine in SHARING_MEMORY:
            service["ipc"] = "host"
        if deployment.gpus:
            device = {"driver": "nvidia", "count": deployment.gpus, "capabilities": ["gpu"]}
            service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
        document = {"name": deployment.name, "services": {SERVICE: service}}
        return yaml_text.dump([_each_text(document, lambda text: text.replace("$", "$$"))], deployment.told)

    def parse(self, text: str) -> Canonical:
        service = _each_text(yaml_text.read(text)[0], _interpolated).get("services", {}).get(SERVICE)
        if service is None:
            raise UserError(f"not a file of ours: it has no service {SERVICE}")
        argv = [*service["entrypoint"], *service["command"]]
        return Canonical.of(argv, service.get("environment", {}), service["labels"][LABEL])

    def digest(self, text: str) -> str:
        return self.parse(text).digest


def _interpolated(text: str) -> str:
    """As Compose reads it, in an empty environment."""
    if re.search(r"\$", text.replace("$$", "")):
        raise UserError(f"Compose would put a variable's value into {text!r}")
    return text.replace("$$", "$")


def _each_text(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: _each_text(below, change) for key, below in value.items()}
    if isinstance(value, list):
        return [_each_text(below, change) for below in value]
    return change(value) if isinstance(value, str) else value
