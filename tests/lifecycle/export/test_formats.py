"""Every format keeps the exporter's contract, for all engines and for words that break quoting."""

import sys
from pathlib import Path

import pytest

from harness import plugins

sys.path.insert(0, str(Path(__file__).parents[2] / "contract"))
import exporter_suite

FORMATS = plugins.names("exporters")
FOR_ONE_ENGINE = {
    "llamacpp": "llamacpp",
    "kserve": "vllm",
    "production-stack": "vllm",
    "vllm": "vllm",
    "argo-analysis": "vllm",
    "sglang": "sglang",
    "tgi": "tgi",
}


def suite_of(name):
    class Suite(exporter_suite.ExporterSuite):
        exporter = plugins.load("exporters", name)()

        @pytest.fixture
        def deployments(self, llama_deployments, vllm_deployments, sglang_deployments, tgi_deployments, hazardous):
            others = [*sglang_deployments(4, 1), *tgi_deployments(4, 1)]
            return [*llama_deployments(3, 1), *vllm_deployments(4, 1), *others, *hazardous(12, 2)]

    return Suite


for _name in FORMATS:
    globals()[f"Test_{_name}"] = suite_of(_name)


def test_every_format_of_the_readme_is_there():
    assert set(FORMATS) == {
        *FOR_ONE_ENGINE,
        *("winner", "shell", "systemd", "compose", "k8s"),
    }


@pytest.mark.parametrize(("name", "engine"), FOR_ONE_ENGINE.items())
def test_a_format_of_another_engine_is_refused_by_name(name, engine, llama_deployments, hazardous):
    from scenarios.errors import UserError

    other = hazardous(1, 0)[0] if engine == "llamacpp" else llama_deployments(1, 0)[0]
    with pytest.raises(UserError, match=f"--format {name} is for {engine}.*this study's engine is {other.engine}"):
        plugins.load("exporters", name)().render(other)
