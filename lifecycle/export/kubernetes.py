"""A Kubernetes Deployment and its Service.

A model folder is mounted from the node at the same path; replace that volume by your own claim. Knows no operator.
"""

from typing import Any

from lifecycle.export import yaml_text
from lifecycle.export.base import Canonical, Deployment
from lifecycle.export.containers import (
    ANNOTATION,
    EVERY_INTERFACE,
    SHARING_MEMORY,
    env_list,
    env_read,
    escaped,
    expanded,
    image_program,
)
from scenarios.errors import UserError

CONTAINER = "engine"
MEMORY_ROOM = 1.25  # of the memory plan: what no plan foresees must not be killed for
PROBE_LIMIT_S = 5  # SGLang generates a token first: more than the second that is usual
START_PROBES = 120  # times 10 s: weights are loaded and kernels compiled


class Kubernetes:
    name = "k8s"
    file_name = "engine.k8s.yaml"

    def render(self, deployment: Deployment) -> str:
        labels = {"app.kubernetes.io/name": deployment.name, "app.kubernetes.io/component": "inference"}
        metadata = {"name": deployment.name, "labels": labels}
        workload = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {**metadata, "annotations": {ANNOTATION: deployment.canonical.config_digest}},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": _pod(deployment)},
            },
        }
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": labels, "ports": [{"name": "http", "port": deployment.port, "targetPort": "http"}]},
        }
        return yaml_text.dump([workload, service], deployment.told)

    def parse(self, text: str) -> Canonical:
        workload = next((d for d in yaml_text.read(text) if d.get("kind") == "Deployment"), None)
        if workload is None:
            raise UserError("not a manifest of ours: it has no Deployment")
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        env = env_read(container.get("env", []))
        argv = [expanded(word, env) for word in (*container["command"], *container["args"])]
        return Canonical.of(argv, env, workload["metadata"]["annotations"][ANNOTATION])

    def digest(self, text: str) -> str:
        return self.parse(text).digest


def _pod(deployment: Deployment) -> dict[str, Any]:
    mounts, volumes = _storage(deployment)
    words = [word for flag in deployment.canonical.flags for word in flag.words]
    probe = {"httpGet": {"path": deployment.health_path, "port": "http"}, "timeoutSeconds": PROBE_LIMIT_S}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": deployment.image,
        "command": [escaped(word) for word in image_program(deployment)],
        "args": [escaped(word) for word in (*words, *deployment.listening(EVERY_INTERFACE))],
        "ports": [{"name": "http", "containerPort": deployment.port}],
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": START_PROBES},
        "readinessProbe": {**probe, "periodSeconds": 5},
        "livenessProbe": {**probe, "periodSeconds": 20, "failureThreshold": 3},
        "resources": _resources(deployment),
    }
    if deployment.canonical.env:
        container["env"] = env_list(deployment.canonical.env)
    pod: dict[str, Any] = {"containers": [container], "terminationGracePeriodSeconds": 60}
    if volumes:
        container["volumeMounts"] = mounts
        pod["volumes"] = volumes
    return pod


def _storage(deployment: Deployment) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    mounts: list[dict[str, Any]] = []
    volumes: list[dict[str, Any]] = []
    for name, folder in deployment.folders.items():
        mounts.append({"name": name, "mountPath": folder, "readOnly": True})
        volumes.append({"name": name, "hostPath": {"path": folder, "type": "Directory"}})
    if deployment.engine in SHARING_MEMORY:
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})  # noqa: S108 - where it is, in every container
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    return mounts, volumes


def _resources(deployment: Deployment) -> dict[str, Any]:
    if deployment.gpus:
        return {"limits": {"nvidia.com/gpu": str(deployment.gpus)}}
    if deployment.memory_bytes is None:
        return {}
    return {"requests": {"memory": f"{round(deployment.memory_bytes * MEMORY_ROOM) >> 20}Mi"}}
