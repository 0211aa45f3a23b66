"""Quantised checkpoints of a real small model: built by the real builders, served by the real vLLM, and asked."""

import httpx
import pytest

from harness.engines.environments import interpreter
from harness.engines.vllm import words
from harness.engines.vllm.adapter import Vllm
from harness.errors import EngineStartError
from harness.host import limits, processor_flags
from harness.models import quantise, store
from harness.models.hugging_face import PUBLISHED
from harness.models.schemes import SCHEMES
from harness.supervise import launch
from scenarios.spec import EngineSpec, ModelRef

QUESTION = "The capital of Spain is Madrid. The capital of Italy is Rome. The capital of France is"
SAMPLES = 4
# What the server's log names: it does compute in this precision, and did not fall back on another.
KERNELS = {
    "w8a8-int8": "Int8ScaledMMLinearKernel",
    "fp8-dynamic": "FP8ScaledMMLinearKernel",
    "gptq-int4": "WNA16LinearKernel",
}
NEEDS_AVX512 = ("gptq-int4",)


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOTUNE_MODELS", str(tmp_path_factory.mktemp("models")))
        yield


def built(smollm, scheme):
    builder = SCHEMES[scheme].builder
    if interpreter(builder) is None:
        pytest.skip(f"{builder} is not installed: autotune engines install {builder}")
    folder, told = smollm.variants[PUBLISHED], []
    samples = SAMPLES if SCHEMES[scheme].calibrated else None
    store.build(str(folder), (scheme,), lambda *said: told.append(said), calibration_samples=samples)
    return store.resolve(ModelRef(path=str(folder), context_tokens=256), build=False), told


def answer(engine, spec, model, scheme, log):
    config = engine.knobs(spec, model, limits()).complete({"variant": scheme, "enforce_eager": True})
    plan = engine.plan(spec, model, config, limits())
    with launch(engine, spec, plan, log) as running:
        body = {"model": running.endpoint.served_model, "prompt": QUESTION, "max_tokens": 4, "temperature": 0}
        said = httpx.post(f"{running.endpoint.base_url}/completions", json=body, timeout=60).raise_for_status()
        assert engine.disagreements(plan, log.read_text()) == ()
    return said.json()["choices"][0]["text"]


@pytest.mark.parametrize("scheme", KERNELS)
def test_it_is_built_and_served(engine, smollm, own_cache, scheme, tmp_path):
    model, told = built(smollm, scheme)
    made = quantise.check(model, scheme)
    assert made.source_digest == model.digests[PUBLISHED] == smollm.digests[PUBLISHED]
    assert made.versions[made.builder]
    assert made.versions["torch"].startswith("2.13.0")
    assert (made.calibration is not None) == SCHEMES[scheme].calibrated
    assert made.size_bytes < 0.65 * sum(file.stat().st_size for file in model.variants[PUBLISHED].iterdir())
    if SCHEMES[scheme].calibrated:
        assert max(done for done, total, _ in told if total == 30) == 30  # layers
    spec, log = EngineSpec(name="vllm-cpu", start_timeout_s=600), tmp_path / "log"
    if scheme in NEEDS_AVX512 and "avx512f" not in processor_flags():
        with pytest.raises(EngineStartError) as caught:
            answer(engine, spec, model, scheme, log)
        assert caught.value.failure == "unsupported"
        return
    assert "Paris" in answer(engine, spec, model, scheme, log)
    text = log.read_text()
    assert words.resolved(text)["quantization"] in ("compressed-tensors", "gptq", "auto_gptq")
    assert KERNELS[scheme] in text


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", KERNELS)
def test_it_is_served_on_a_gpu(smollm, own_cache, scheme, tmp_path):
    if not limits().gpu_memory_bytes:
        pytest.skip("no GPU")
    if interpreter("vllm") is None:
        pytest.skip("vllm is not installed: autotune engines install vllm")
    model, _ = built(smollm, scheme)
    assert "Paris" in answer(Vllm(), EngineSpec(name="vllm", start_timeout_s=600), model, scheme, tmp_path / "log")
