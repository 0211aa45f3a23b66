"""llama.cpp and an attached endpoint keep the contract; llama.cpp's own rules and failure classes."""

import sys
from pathlib import Path

import pytest

from harness.engines.attached import Attached
from harness.engines.base import HostLimits, ResolvedModel
from harness.engines.llamacpp import LlamaCpp
from harness.errors import ConfigurationImpossible, EngineStartError
from harness.host import limits
from harness.models.store import resolve
from harness.supervise import launch
from scenarios.errors import UserError
from scenarios.spec import EngineSpec, ModelRef

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
import engine_suite

ROOMY = HostLimits(8, 1 << 40)


@pytest.fixture(scope="module")
def smollm() -> ResolvedModel:
    return resolve(ModelRef(name="smollm2-135m-instruct", context_tokens=256), build=True)


@pytest.mark.engine
class TestLlamaCpp(engine_suite.EngineSuite):
    engine = LlamaCpp()

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, smollm):
        return smollm


@pytest.mark.engine
class TestLlamaCppRules:
    @pytest.mark.parametrize(
        ("knobs", "reason"),
        [
            ({"kv_type": "q8_0", "flash_attention": "off"}, "needs flash_attention on or auto"),
            ({"batch": 128, "ubatch": 512}, "ubatch must be <= batch"),
            ({"kv_layout": "split", "kv_tokens": 1024, "slots": 8}, "gives each of 8 slots 128 of 1024 tokens"),
        ],
    )
    def test_what_cannot_work_is_said_before_a_launch(self, smollm, knobs, reason):
        engine = LlamaCpp()
        config = engine.knobs(EngineSpec(), smollm, ROOMY).complete(knobs)
        with pytest.raises(ConfigurationImpossible, match=reason):
            engine.plan(EngineSpec(), smollm, config, ROOMY)

    def test_memory_is_planned_and_explained(self, smollm):
        engine = LlamaCpp()
        config = engine.knobs(EngineSpec(), smollm, ROOMY).complete({"kv_tokens": 65536})
        plan = engine.plan(EngineSpec(), smollm, config, ROOMY)
        # 30 layers, 3 KV heads of 64, keys and values, 2 bytes: 23,040 bytes a token.
        kv_bytes = 65536 * 23040
        weights = smollm.variants["f16"].stat().st_size
        assert plan.expected_memory_bytes == weights + kv_bytes + 512 * 49152 * 4
        with pytest.raises(ConfigurationImpossible, match=r"KV cache of 65536 tokens in f16 1\.41"):
            engine.plan(EngineSpec(), smollm, config, HostLimits(2, 1 << 30))

    @pytest.mark.parametrize(
        ("break_it", "failure"),
        [
            (lambda argv: [*argv, "--no-such-flag"], "bad_flag"),
            (lambda argv: [a if not a.endswith(".gguf") else "/nowhere/model.gguf" for a in argv], "bad_model"),
        ],
    )
    def test_its_failures_are_recognised_by_its_own_words(self, smollm, tmp_path, break_it, failure):
        from dataclasses import replace

        engine = LlamaCpp()
        plan = engine.plan(EngineSpec(), smollm, engine.knobs(EngineSpec(), smollm, limits()).default(), limits())
        broken = replace(plan, argv=tuple(break_it(plan.argv)))
        with pytest.raises(EngineStartError) as caught, launch(engine, EngineSpec(), broken, tmp_path / "log"):
            pass
        assert caught.value.failure == failure
        assert caught.value.log_lines

    def test_a_truncated_model_is_a_bad_model(self, smollm, tmp_path):
        from dataclasses import replace

        short = tmp_path / "short.gguf"
        short.write_bytes(smollm.variants["q4_0"].read_bytes()[:30_000_000])
        engine = LlamaCpp()
        plan = engine.plan(EngineSpec(), smollm, engine.knobs(EngineSpec(), smollm, limits()).default(), limits())
        argv = tuple(str(short) if a.endswith(".gguf") else a for a in plan.argv)
        with (
            pytest.raises(EngineStartError) as caught,
            launch(engine, EngineSpec(), replace(plan, argv=argv), tmp_path / "log"),
        ):
            pass
        assert caught.value.failure == "bad_model"


@pytest.mark.engine
class TestAttached(engine_suite.EngineSuite):
    """Attached to a llama.cpp server that this class starts."""

    engine = Attached()

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        ref = ModelRef(served_as="smollm2-135m-instruct", context_tokens=256)
        return ResolvedModel(ref, "smollm2-135m-instruct", reference_variant="")

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def server(cls, smollm, tmp_path_factory):
        llama = LlamaCpp()
        plan = llama.plan(EngineSpec(), smollm, llama.knobs(EngineSpec(), smollm, limits()).default(), limits())
        with launch(llama, EngineSpec(), plan, tmp_path_factory.mktemp("server") / "log") as running:
            cls.spec = EngineSpec(name="attached", base_url=running.endpoint.base_url)
            yield

    def test_what_llama_cpp_offers_is_found(self, running):
        assert running.notices == ()
        assert running.endpoint.request_extras == {"ignore_eos": True}
        assert self.engine.version(self.spec).startswith("attached (llama.cpp ")
        assert {"prompt_tokens_total", "tokens_predicted_total"} <= self.engine.metrics(running.endpoint).keys()
        assert len(self.engine.tokenize(running.endpoint, " the house by the river")) == 5

    def test_nobody_there_is_said_with_the_address(self, model, tmp_path):
        spec = EngineSpec(name="attached", base_url="http://127.0.0.1:9/v1")
        plan = self.engine.plan(spec, model, self.engine.knobs(spec, model, limits()).default(), limits())
        with (
            pytest.raises(EngineStartError, match=r"127\.0\.0\.1:9/v1 does not answer"),
            launch(self.engine, spec, plan, tmp_path / "log"),
        ):
            pass

    def test_a_missing_key_is_named_and_never_shown(self, model, monkeypatch):
        monkeypatch.delenv("NO_SUCH_KEY", raising=False)
        spec = EngineSpec(name="attached", base_url="http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY")
        with pytest.raises(UserError, match="environment variable NO_SUCH_KEY is not set"):
            self.engine.plan(spec, model, self.engine.knobs(spec, model, limits()).default(), limits())
        monkeypatch.setenv("NO_SUCH_KEY", "s3cret")
        plan = self.engine.plan(spec, model, self.engine.knobs(spec, model, limits()).default(), limits())
        assert "s3cret" not in repr(plan)
