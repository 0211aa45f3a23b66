"""Random deployments of all engines: points of the engine's own space, and words that break quoting."""

import json
import random
import sys
from pathlib import Path

import pytest

from harness.engines.base import HostLimits, ResolvedModel
from harness.engines.llamacpp import LlamaCpp
from harness.engines.sglang.adapter import Sglang
from harness.engines.tgi import Tgi
from harness.engines.vllm.adapter import Vllm, VllmCpu
from harness.errors import ConfigurationImpossible
from harness.models.hugging_face import HUB, in_folder, of_hub
from scenarios.space import ServingConfig
from scenarios.spec import EngineSpec, ModelRef

sys.path.insert(0, str(Path(__file__).parent))
from deployments import HAZARDS, ROOMY, deployment_of, random_config, write_gguf


@pytest.fixture(scope="session")
def llama_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "größe 100% $HOME"
    folder.mkdir()
    ref = ModelRef(name="tiny-llama", context_tokens=128)
    return ResolvedModel(ref, "tiny-llama", "f16", {"f16": write_gguf(folder / "f16.gguf")})


@pytest.fixture(scope="session")
def llama_deployments(llama_model):
    """``llama_deployments(n, seed)``: random points of llama.cpp's whole space."""
    engine = LlamaCpp()
    space = engine.knobs(EngineSpec(), llama_model, ROOMY)

    def deployments(n, seed):
        rng = random.Random(seed)
        found = []
        while len(found) < n:
            config = random_config(space, rng)
            try:
                plan = engine.plan(EngineSpec(), llama_model, config, ROOMY)
            except ConfigurationImpossible:
                continue
            found.append(
                deployment_of(
                    config,
                    plan.deploy_argv,
                    engine="llamacpp",
                    label=llama_model.label,
                    model=str(llama_model.variants["f16"]),
                )
            )
        return found

    return deployments


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """One that the engine fetches from a hub, and one in a folder of this machine."""
    cache = tmp_path_factory.mktemp("cache")
    small = of_hub(ModelRef(name="smollm2-135m-instruct-hf"), HUB["smollm2-135m-instruct-hf"], cache, str)
    head = {"method": "eagle3", "name": small.label}
    large = ModelRef(name="llama-3.1-8b-instruct", draft=head)
    of_the_hub = of_hub(large, HUB["llama-3.1-8b-instruct"], cache, str).with_draft(small)
    folder = tmp_path_factory.mktemp("models") / "grün 'n' 100% $HOME"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(HUB["smollm2-135m-instruct-hf"].config)))
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    drafted = ModelRef(path=str(folder), draft={"method": "draft_model", "name": small.label})
    in_a_folder = in_folder(drafted, folder, str).with_draft(small)
    return of_the_hub, in_a_folder


def of_whole_spaces(engines, models, model_of):
    """``deployments(n, seed)``: random points of the engines' whole spaces, with each model in turn."""
    gpus = HostLimits(64, 1 << 50, (80 << 30,) * 8)

    def deployments(n, seed):
        rng = random.Random(seed)
        found = []
        while len(found) < n:
            engine, model = engines[len(found) % 2], models[len(found) % 2]
            spec = EngineSpec(name=engine.name)
            config = random_config(engine.knobs(spec, model, gpus), rng)
            try:
                plan = engine.plan(spec, model, config, gpus)
            except ConfigurationImpossible:
                continue
            where = model_of(plan.deploy_argv)
            found.append(
                deployment_of(config, plan.deploy_argv, plan.env, engine=engine.name, label=model.label, model=where)
            )
        return found

    return deployments


@pytest.fixture(scope="session")
def vllm_deployments(models):
    """With and without GPUs in turn."""
    return of_whole_spaces((Vllm(), VllmCpu()), models, lambda argv: argv[2])


@pytest.fixture(scope="session")
def sglang_deployments(models):
    return of_whole_spaces((Sglang(), Sglang()), models, lambda argv: argv[argv.index("--model-path") + 1])


@pytest.fixture(scope="session")
def tgi_deployments(models):
    return of_whole_spaces((Tgi(), Tgi()), models, lambda argv: argv[argv.index("--model-id") + 1])


@pytest.fixture(scope="session")
def hazardous():
    """``hazardous(n, seed)``: vLLM command lines whose every value is one of HAZARDS."""

    def deployments(n, seed):
        rng = random.Random(seed)
        found = []
        for number in range(n):
            model = rng.choice(["org/model-8B", f"/models/{rng.choice(HAZARDS)}"])
            label = rng.choice(HAZARDS)
            caching = rng.choice(["--enable-prefix-caching", "--no-enable-prefix-caching"])
            argv = ["vllm", "serve", model, "--served-model-name", label, "--host", "127.0.0.1", "--port", "{port}"]
            argv += [caching, "--max-num-seqs", str(rng.choice([8, 64, 1024])), "--chat-template", rng.choice(HAZARDS)]
            argv += ["--speculative-config", '{"method":"ngram","num_speculative_tokens":3,"note":"' + label + '"}']
            env = {f"VARIABLE_{i}": rng.choice(HAZARDS) for i in range(rng.randint(0, 3))}
            env |= {"NAME": "expanded"} if rng.random() < 0.5 else {}
            config = ServingConfig("vllm", {"number": number})
            found.append(deployment_of(config, argv, env, engine="vllm", label=label, model=model))
        return found

    return deployments
