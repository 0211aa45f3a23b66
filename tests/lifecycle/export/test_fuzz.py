"""700 random configurations through every format and back, and what each refuses."""

from collections import Counter

from harness import plugins
from scenarios.errors import UserError

EVERYWHERE = ("winner", "shell", "systemd", "compose", "k8s")
REFUSALS = (
    "is for",
    "KServe would take a `{{`",
    "Argo would take",
    "a preset cannot",
)


def through_every_format(deployments):
    """How many each format carried. Asserts that what it carried came back whole."""
    exporters = [plugins.load("exporters", name)() for name in plugins.names("exporters")]
    carried, refusals = Counter(), set()
    for deployment in deployments:
        for exporter in exporters:
            try:
                text = exporter.render(deployment)
            except UserError as refusal:
                refusals.add(str(refusal))
                continue
            assert exporter.digest(text) == deployment.canonical.digest, (exporter.name, text)
            carried[exporter.name] += 1
    assert [r for r in refusals if not any(words in r for words in REFUSALS)] == []
    return carried


def test_llama_cpp(llama_deployments):
    carried = through_every_format(llama_deployments(150, 11))
    assert carried == dict.fromkeys((*EVERYWHERE, "llamacpp"), 150)


def test_vllm(vllm_deployments):
    carried = through_every_format(vllm_deployments(150, 13))
    others = {"llamacpp", "sglang", "tgi"}
    assert carried == dict.fromkeys(set(plugins.names("exporters")) - others, 150)


def test_sglang(sglang_deployments):
    assert through_every_format(sglang_deployments(150, 14)) == dict.fromkeys((*EVERYWHERE, "sglang"), 150)


def test_tgi(tgi_deployments):
    assert through_every_format(tgi_deployments(150, 15)) == dict.fromkeys((*EVERYWHERE, "tgi"), 150)


def test_words_that_break_quoting(hazardous):
    carried = through_every_format(hazardous(100, 12))
    always = dict.fromkeys((*EVERYWHERE, "production-stack", "vllm"), 100)
    assert {name: n for name, n in carried.items() if name in always} == always
    assert carried["kserve"] > 50
    assert carried["argo-analysis"] > 75
