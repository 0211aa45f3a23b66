"""Values for the Helm chart of vLLM's production stack.

The chart switches prefix caching off unless it is told otherwise, gives engines shared memory only where its own key
for tensor parallelism is set, and writes host and port itself. Knows nothing of the chart's router.
"""

from typing import Any

from lifecycle.export import yaml_text
from lifecycle.export.base import Canonical, Deployment, only_for
from lifecycle.export.containers import ANNOTATION, env_list, env_read, escaped, expanded
from scenarios.errors import UserError

TENSOR_PARALLEL = "--tensor-parallel-size"
PREFIX_CACHING = {"--enable-prefix-caching": True, "--no-enable-prefix-caching": False}
OWN_KEYS = (*PREFIX_CACHING, TENSOR_PARALLEL)
MEMORY_REQUEST = "16Gi"
STORAGE_REQUEST = "50Gi"
CPUS = 4


class ProductionStack:
    name = "production-stack"
    file_name = "values.yaml"

    def render(self, deployment: Deployment) -> str:
        only_for(deployment, self.name, "vllm", "vllm-cpu")
        canonical = deployment.canonical
        caching = [PREFIX_CACHING[flag.name] for flag in canonical.flags if flag.name in PREFIX_CACHING]
        if len(caching) != 1:
            raise UserError(
                f"--format {self.name}: the chart sets prefix caching on or off, so the configuration must say which"
            )
        repository, _, tag = deployment.image.rpartition(":")
        model: dict[str, Any] = {
            "name": deployment.name,
            "annotations": {ANNOTATION: canonical.config_digest},
            "repository": repository or deployment.image,
            "tag": tag if repository else "latest",
            "modelURL": escaped(deployment.model),
            "replicaCount": 1,
            "requestCPU": CPUS,
            "requestMemory": MEMORY_REQUEST,
            "requestGPU": deployment.gpus,
            "pvcStorage": STORAGE_REQUEST,
            "vllmConfig": {
                "enablePrefixCaching": caching[0],
                "extraArgs": [
                    escaped(word) for flag in canonical.flags if flag.name not in OWN_KEYS for word in flag.words
                ],
            },
        }
        if (gpus := canonical.flag(TENSOR_PARALLEL)) is not None:
            model["vllmConfig"]["tensorParallelSize"] = int(gpus)
        if canonical.env:
            model["env"] = env_list(canonical.env)
        if folders := deployment.folders.items():
            model["extraVolumes"] = [{"name": n, "hostPath": {"path": f, "type": "Directory"}} for n, f in folders]
            model["extraVolumeMounts"] = [{"name": n, "mountPath": f, "readOnly": True} for n, f in folders]
        return yaml_text.dump([{"servingEngineSpec": {"modelSpec": [model]}}], deployment.told)

    def parse(self, text: str) -> Canonical:
        """As the chart's template for single-node engines puts the command together."""
        (document,) = yaml_text.read(text)
        try:
            (model,) = document["servingEngineSpec"]["modelSpec"]
        except (KeyError, ValueError) as err:
            raise UserError("not values of ours: servingEngineSpec.modelSpec must hold one model") from err
        env = env_read(model.get("env", []))
        config = model["vllmConfig"]
        caching = next(flag for flag, on in PREFIX_CACHING.items() if on == config.get("enablePrefixCaching", False))
        parallel = [TENSOR_PARALLEL, str(config["tensorParallelSize"])] if "tensorParallelSize" in config else []
        argv = ["vllm", "serve", model["modelURL"], caching, *parallel, *config.get("extraArgs", [])]
        return Canonical.of([expanded(word, env) for word in argv], env, model["annotations"][ANNOTATION])

    def digest(self, text: str) -> str:
        return self.parse(text).digest
