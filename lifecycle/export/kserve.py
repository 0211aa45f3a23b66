"""KServe's LLMInferenceService.

Its vLLM container takes further flags from the variable VLLM_ADDITIONAL_ARGS, which a shell splits. The model's place
and served name are fields of their own. Knows nothing of routers or schedulers.
"""

import shlex
from typing import Any
from urllib.parse import quote, unquote

from lifecycle.export import yaml_text
from lifecycle.export.base import Canonical, Deployment, only_for
from lifecycle.export.containers import ANNOTATION, env_list, env_read
from scenarios.errors import UserError

ARGUMENTS = "VLLM_ADDITIONAL_ARGS"
NAME_FLAG = "--served-model-name"
HUB = "hf://"
CLAIM = "pvc://models"


class KServe:
    name = "kserve"
    file_name = "llm-inference-service.yaml"

    def render(self, deployment: Deployment) -> str:
        only_for(deployment, self.name, "vllm", "vllm-cpu")
        canonical = deployment.canonical
        arguments = [word for flag in canonical.flags if flag.name != NAME_FLAG for word in flag.words]
        if any("{{" in text for text in (*canonical.argv, *canonical.env.values())):
            raise UserError(f"--format {self.name}: KServe would take a `{{{{` for a template of its own")
        if deployment.draft_folder is not None:
            raise UserError(f"--format {self.name} brings one model: draft with weights of the hub, or from the text")
        if ARGUMENTS in canonical.env:
            raise UserError(f"--format {self.name} needs the environment variable {ARGUMENTS} for itself")
        container: dict[str, Any] = {
            "name": "main",
            "env": env_list({**canonical.env, ARGUMENTS: shlex.join(arguments)}),
        }
        if deployment.gpus:
            gpus = {"nvidia.com/gpu": str(deployment.gpus)}
            container["resources"] = {"limits": gpus, "requests": gpus}
        else:
            container["image"] = deployment.image
        document = {
            "apiVersion": "serving.kserve.io/v1alpha2",
            "kind": "LLMInferenceService",
            "metadata": {"name": deployment.name, "annotations": {ANNOTATION: canonical.config_digest}},
            "spec": {
                "model": {"uri": _uri(deployment.model), "name": deployment.served_model},
                "replicas": 1,
                "router": {"route": {}, "gateway": {}, "scheduler": {}},
                "template": {"containers": [container]},
            },
        }
        return yaml_text.dump([document], deployment.told)

    def parse(self, text: str) -> Canonical:
        (document,) = yaml_text.read(text)
        if document.get("kind") != "LLMInferenceService":
            raise UserError("not an LLMInferenceService")
        spec = document["spec"]
        (container,) = spec["template"]["containers"]
        env = env_read(container["env"])
        arguments = shlex.split(env.pop(ARGUMENTS))
        argv = ["vllm", "serve", _model(spec["model"]["uri"]), *arguments, NAME_FLAG, spec["model"]["name"]]
        return Canonical.of(argv, env, document["metadata"]["annotations"][ANNOTATION])

    def digest(self, text: str) -> str:
        return self.parse(text).digest


def _uri(model: str) -> str:
    """A folder becomes the same path in a claim that is called `models`."""
    return CLAIM + quote(model) if model.startswith("/") else HUB + model


def _model(uri: str) -> str:
    if uri.startswith(HUB):
        return uri.removeprefix(HUB)
    if uri.startswith(CLAIM):
        return unquote(uri.removeprefix(CLAIM))
    raise UserError(f"spec.model.uri must begin with {HUB} or {CLAIM}, got {uri}")
