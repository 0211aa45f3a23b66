"""A real vLLM in its own environment, and a real small model for it. Skipped with a reason where either lacks."""

import pytest

from harness.engines.environments import interpreter
from harness.engines.vllm.adapter import VllmCpu
from harness.models.store import resolve
from scenarios.spec import EngineSpec, ModelRef

SPEC = EngineSpec(name="vllm-cpu", start_timeout_s=600)


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/vllm/" in str(item.path):
            item.add_marker(pytest.mark.vllm)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def python():
    found = interpreter("vllm-cpu")
    if found is None:
        pytest.skip("vllm-cpu is not installed: autotune engines install vllm-cpu")
    return found


@pytest.fixture(autouse=True)
def it_is_installed(python):
    pass


@pytest.fixture(scope="session")
def smollm(python):
    model = resolve(ModelRef(name="smollm2-135m-instruct-hf", context_tokens=256), build=False)
    if model.repositories:
        pytest.skip("the model is not built: autotune models build smollm2-135m-instruct-hf")
    return model


@pytest.fixture
def engine():
    return VllmCpu()
