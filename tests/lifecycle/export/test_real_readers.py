"""The programs that will read an export read it: sh runs it, systemd verifies it, schemas accept it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lifecycle.export import yaml_text
from lifecycle.export.base import Canonical
from lifecycle.export.compose import Compose
from lifecycle.export.kserve import KServe
from lifecycle.export.kubernetes import Kubernetes
from lifecycle.export.sglang import SglangYaml
from lifecycle.export.shell import Shell
from lifecycle.export.systemd import Systemd
from lifecycle.export.tgi import LAUNCHER, TgiEnvironment
from scenarios.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))
from deployments import HAZARDS, deployment_of

KUBERNETES = "1.34"
STUB = """#!/bin/sh
printf '%s\\0' "$@"
printf 'ENVIRONMENT\\0'
env -0
"""


@pytest.fixture
def stub(tmp_path):
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(STUB)
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("sh", ["sh", "bash"])
def test_a_shell_runs_the_script_with_exactly_these_words(hazardous, stub, tmp_path, sh):
    for deployment in hazardous(12, 3):
        script = tmp_path / "serve.sh"
        script.write_text(Shell().render(deployment))
        assert subprocess.run([sh, "-n", str(script)], check=False).returncode == 0
        environment = {"PATH": f"{stub.parent}:{os.environ['PATH']}", "LANG": "C.UTF-8"}
        said = subprocess.run([sh, str(script)], env=environment, capture_output=True, check=True).stdout.decode()
        words, _, variables = said.partition("ENVIRONMENT\0")
        inherited = {"PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}
        env = dict(line.split("=", 1) for line in variables.split("\0") if line)
        env = {name: value for name, value in env.items() if name not in inherited}
        argv = ["vllm", *words.split("\0")[:-1]]
        assert Canonical.of(argv, env, deployment.canonical.config_digest) == deployment.canonical


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on PATH")
def test_systemd_verifies_the_unit(hazardous, llama_deployments, stub, tmp_path):
    import dataclasses

    (stub.parent / "llama-server").symlink_to(stub)
    for number, deployment in enumerate([*hazardous(8, 4), *llama_deployments(2, 4)]):
        program = str(stub.parent / deployment.canonical.program[0])
        unit = tmp_path / f"engine-{number}.service"
        unit.write_text(Systemd().render(dataclasses.replace(deployment, program=program)))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
        )
        ours = [line for line in done.stderr.splitlines() if unit.name in line]
        assert not ours
        assert Systemd().parse(unit.read_text()) == deployment.canonical


def test_kubernetes_schema_accepts_manifests(hazardous, llama_deployments, vllm_deployments):
    import kubernetes_validate

    for deployment in [*hazardous(3, 6), *llama_deployments(1, 6), *vllm_deployments(2, 6)]:
        for document in yaml_text.read(Kubernetes().render(deployment)):
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        if deployment.engine != "llamacpp" and "{{" not in str(deployment):
            (service,) = yaml_text.read(KServe().render(deployment))
            pod = {"metadata": {"name": "x"}, "spec": service["spec"]["template"]}
            kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **pod}, KUBERNETES, strict=True)


def test_kubernetes_schema_would_notice(llama_deployments):
    import kubernetes_validate

    workload, _ = yaml_text.read(Kubernetes().render(llama_deployments(1, 6)[0]))
    workload["spec"]["template"]["spec"]["containers"][0]["argz"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="argz"):
        kubernetes_validate.validate(workload, KUBERNETES, strict=True)


def test_a_parser_of_the_compose_specification_reads_the_same(hazardous, llama_deployments, vllm_deployments):
    from compose_spec import PyCompose

    for deployment in [*hazardous(8, 7), *llama_deployments(2, 7), *vllm_deployments(4, 7)]:
        text = Compose().render(deployment)
        read = PyCompose.from_yaml(text).to_dict()["services"]["engine"]
        written = yaml_text.read(text)[0]["services"]["engine"]
        for key in ("entrypoint", "command", "image"):
            assert read[key] == written[key]
        assert dict(read.get("environment") or {}) == written.get("environment", {})


def test_readers_of_older_yaml_see_the_same_document(hazardous):
    """Kubernetes' and Helm's reader follow YAML 1.1, where `on` and `007` are not texts."""
    yaml = pytest.importorskip("yaml")
    for deployment in hazardous(8, 5):
        for exporter in (Compose(), Kubernetes()):
            text = exporter.render(deployment)
            assert list(yaml.safe_load_all(text)) == yaml_text.read(text)


def of_hazards(engine, program, model_flag, label_flag):
    """Command lines of another engine whose every value is one of HAZARDS."""
    from scenarios.space import ServingConfig

    for number, word in enumerate(HAZARDS):
        argv = [*program, model_flag, f"/models/{word}", label_flag, word, "--port", "{port}", "--a-switch"]
        config = ServingConfig(engine, {"number": number})
        yield deployment_of(config, argv, {"NOTE": word}, engine=engine, label=word, model=argv[len(program) + 1])


def test_sglang_reads_its_file_as_the_same_command_line(sglang_deployments):
    """By the rules of SGLang 0.5.23's ConfigArgumentMerger: PyYAML, `true` is the flag alone, all else its text."""
    yaml = pytest.importorskip("yaml")
    hazards = of_hazards("sglang", ["sglang", "serve"], "--model-path", "--served-model-name")
    for deployment in [*sglang_deployments(20, 3), *hazards]:
        text = SglangYaml().render(deployment)
        assert SglangYaml().parse(text) == deployment.canonical
        settings = yaml.safe_load(text)
        argv = ["sglang", "serve"]
        for key, value in settings.items():
            argv += [f"--{key}"] if value is True else [f"--{key}", str(value)]
        canonical = deployment.canonical
        assert Canonical.of(argv, canonical.env, canonical.config_digest) == canonical


def test_docker_gives_tgis_launcher_the_same_arguments(tgi_deployments):
    """A line is NAME=VALUE, or a comment; nothing is quoted."""
    for deployment in [*tgi_deployments(20, 3), *of_hazards("tgi", [LAUNCHER], "--model-id", "--revision")]:
        text = TgiEnvironment().render(deployment)
        assert TgiEnvironment().parse(text) == deployment.canonical
        variables = dict(line.split("=", 1) for line in text.splitlines() if not line.startswith("#"))
        for flag in deployment.canonical.flags:
            said = flag.values[0] if flag.values else "true"
            assert variables.pop(flag.name[2:].replace("-", "_").upper()) == said
        assert variables == {**deployment.canonical.env, "HOSTNAME": "0.0.0.0", "PORT": "8080"}


def test_a_variable_that_is_an_argument_too_is_refused():
    from scenarios.space import ServingConfig

    argv = [LAUNCHER, "--model-id", "org/m", "--quantize", "fp8"]
    made = deployment_of(ServingConfig("tgi", {}), argv, {"QUANTIZE": "awq"}, engine="tgi", label="m", model="org/m")
    with pytest.raises(UserError, match="QUANTIZE would be set twice"):
        TgiEnvironment().render(made)


@pytest.mark.parametrize(
    ("engine", "version", "image"),
    [
        ("vllm", "vllm 0.32.0", "vllm/vllm-openai:v0.32.0"),
        ("sglang", "sglang 0.5.23", "lmsysorg/sglang:v0.5.23"),
        ("tgi", "tgi 3.3.6", "ghcr.io/huggingface/text-generation-inference:3.3.6"),
    ],
)
def test_the_image_is_of_the_version_that_was_measured(engine, version, image):
    from lifecycle.export.run import _image

    assert _image(engine, version) == image
