"""What formats of containers share: the image's program, and Kubernetes' rules for `$(NAME)`.

Knows no format as a whole.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lifecycle.export.base import Deployment

IMAGE_PROGRAMS = {"llama-server": "/app/llama-server"}  # where the published image has it, if not on PATH
SHARING_MEMORY = ("vllm", "vllm-cpu", "sglang", "tgi")  # engines whose processes share memory
NAME_EXPANSION = re.compile(r"\$\$|\$\(([^)]*)\)")
ANNOTATION = "autotune/configuration"
EVERY_INTERFACE = "0.0.0.0"  # noqa: S104 - inside a container, behind the ports that it publishes


def image_program(deployment: Deployment) -> tuple[str, ...]:
    program, *words = deployment.canonical.program
    return (IMAGE_PROGRAMS.get(program, program), *words)


def escaped(text: str) -> str:
    """So that Kubernetes' expansion of command, args and env gives ``text`` back."""
    return text.replace("$", "$$")


def expanded(text: str, env: Mapping[str, str]) -> str:
    """What Kubernetes makes of it: `$$` is a dollar, `$(NAME)` the variable, or itself where there is none."""
    return NAME_EXPANSION.sub(lambda m: "$" if m[0] == "$$" else env.get(m[1], m[0]), text)


def env_list(env: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": escaped(value)} for name, value in env.items()]


def env_read(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """In order, as Kubernetes does: a variable may use those before it."""
    env: dict[str, str] = {}
    for entry in entries:
        env[str(entry["name"])] = expanded(str(entry["value"]), env)
    return env
