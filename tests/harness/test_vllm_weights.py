"""Weights beside a model's own, on vLLM's command line and in its memory plan: dummies, and those that draft."""

import json

import pytest

from harness.engines.base import HostLimits
from harness.engines.vllm.adapter import Vllm, VllmCpu
from harness.models.hugging_face import HUB
from harness.models.store import resolve
from harness.subject import engine_of, offered
from lifecycle.export.base import Canonical
from scenarios.errors import UserError
from scenarios.spec import ModelRef, Scenario

GIB = 1 << 30
BOX = HostLimits(8, 32 * GIB)
H100 = HostLimits(32, 256 * GIB, (80 * GIB,))
TWO_H100 = HostLimits(32, 256 * GIB, (80 * GIB,) * 2)
SMOLLM = dict(HUB["smollm2-135m-instruct-hf"].config)
LLAMA = dict(HUB["llama-3.1-8b-instruct"].config)
EAGLE = {**LLAMA, "num_hidden_layers": 1, "architectures": ["LlamaForCausalLMEagle3"]}
EAGLE_BYTES = 850_000


@pytest.fixture(autouse=True)
def nothing_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setenv("AUTOTUNE_MODELS", str(tmp_path / "models"))


@pytest.fixture
def folder(tmp_path):
    def made(name, config, weights=None):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        if weights is not None:
            (path / "model.safetensors").write_bytes(b"x" * weights)
        return str(path)

    return made


def scenario(model, engine="vllm-cpu", slo=None, **more):
    return Scenario.model_validate(
        {
            "name": "s",
            "model": {"context_tokens": 512, **model},
            "engine": {"name": engine},
            "workload": {
                "arrivals": {"process": "poisson"},
                "prompt_tokens": {"distribution": "fixed", "mean": 16.0},
                "output_tokens": {"distribution": "fixed", "mean": 8.0},
            },
            "slo": slo or {"ttft": {"target_ms": 500.0}},
            **more,
        }
    )


def space_of(asked, host=BOX):
    return offered(engine_of(asked), asked, resolve(asked.model, build=False), host)


def planned(asked, host=BOX, **chosen):
    model, engine = resolve(asked.model, build=False), engine_of(asked)
    return engine.plan(asked.engine, model, space_of(asked, host).complete(chosen), host)


def value_of(argv, flag):
    return argv[argv.index(flag) + 1]


def drafting(plan):
    return json.loads(value_of(plan.argv, "--speculative-config"))


class TestDummies:
    def test_they_are_asked_for_in_the_plan_and_need_no_weights_here(self, folder):
        asked = scenario({"path": folder("m", SMOLLM), "weights": "dummy"})
        assert value_of(planned(asked).deploy_argv, "--load-format") == "dummy"
        assert "weights 0.25" in planned(asked).memory_explained  # 134.5 million of 2 bytes, reckoned from the shape

    def test_real_ones_say_nothing(self, folder):
        assert "--load-format" not in planned(scenario({"path": folder("m", SMOLLM, 10)})).argv

    def test_what_they_say_nothing_about_is_not_offered(self, folder):
        asked = scenario({"path": folder("m", LLAMA), "weights": "dummy"}, engine="vllm")
        space = space_of(asked, H100)
        assert space["speculation"].choices == ("none",)
        assert space["quantization"].choices == ("none", "fp8")
        assert space.narrowed({"speculation": ("none", "ngram")}).notices == (
            "speculation=ngram is left out: how many drafts random weights accept says nothing of the real ones",
        )

    @pytest.mark.parametrize("engine", ["llamacpp", "simulated", "attached"])
    def test_engines_that_cannot_are_refused(self, engine):
        asked = scenario({"name": "smollm2-135m-instruct", "weights": "dummy"})
        other = asked.model_copy(update={"engine": asked.engine.model_copy(update={"name": engine})})
        with pytest.raises(UserError, match=rf"model\.weights: {engine} has no dummy weights: leave"):
            engine_of(other)

    def test_the_digest_of_a_study_with_them_is_another(self, folder):
        path = folder("m", SMOLLM, 10)
        assert scenario({"path": path}).digest != scenario({"path": path, "weights": "dummy"}).digest


class TestDrafts:
    def test_a_draft_model_of_the_hub_is_named_with_its_revision(self):
        name = "smollm2-135m-instruct-hf"
        asked = scenario({"name": name, "draft": {"method": "draft_model", "name": name}})
        plan = planned(asked, speculation="draft_model", speculative_tokens=4)
        assert drafting(plan) == {
            "method": "draft_model",
            "model": HUB[name].repository,
            "revision": HUB[name].revision,
            "num_speculative_tokens": 4,
        }
        assert "HF_HUB_OFFLINE" not in plan.env

    def test_the_knob_has_them_only_where_they_are_given(self, folder):
        model = folder("m", SMOLLM, 10)
        assert space_of(scenario({"path": model}))["speculation"].choices == ("none", "ngram", "suffix")
        with_draft = scenario({"path": model, "draft": {"method": "draft_model", "path": model}})
        space = space_of(with_draft)
        assert space["speculation"].choices == ("none", "ngram", "suffix", "draft_model")
        assert "prompt_lookup_max" not in space.complete({"speculation": "draft_model"}).knobs
        assert space.complete({"speculation": "draft_model", "speculative_tokens": 6}).knobs["speculative_tokens"] == 6
        assert drafting(planned(with_draft, speculation="ngram"))["method"] == "ngram"
        assert "--speculative-config" not in planned(with_draft).argv

    def test_a_head_takes_memory_for_its_weights_and_for_its_cache(self, folder):
        head = folder("head", EAGLE, EAGLE_BYTES)
        asked = scenario({"name": "llama-3.1-8b-instruct", "draft": {"method": "eagle3", "path": head}}, engine="vllm")
        plan = planned(asked, H100, speculation="eagle3")
        assert drafting(plan) == {"method": "eagle3", "model": head, "num_speculative_tokens": 3}
        assert "weights and draft" in plan.memory_explained

        def tokens(**chosen):
            return int(planned(asked, H100, **chosen).memory_explained.split("(")[1].split(" ")[0].replace(",", ""))

        room = 0.92 * 80 * GIB - 8_030_261_248 * 2 - (8192 * (3 * 14336 + 4 * 4096) * 2 + 256 * 128256 * 4) - GIB
        assert tokens() == int(room / 131072)
        assert tokens(speculation="eagle3") == int((room - EAGLE_BYTES) / (131072 + 131072 / 32))

    def test_it_is_shared_out_among_gpus_as_the_model_is(self, folder):
        head = folder("head", EAGLE, 4 * GIB // 1000)
        asked = scenario({"name": "llama-3.1-8b-instruct", "draft": {"method": "eagle", "path": head}}, engine="vllm")
        one, two = (planned(asked, TWO_H100, speculation="eagle", tensor_parallel=n).memory_explained for n in (1, 2))
        assert "weights and draft 14.96" in one
        assert "weights and draft 7.48" in two

    def test_the_model_s_own_layers_need_no_further_weights(self, folder):
        own = folder("own", {**SMOLLM, "num_nextn_predict_layers": 1}, 10)
        asked = scenario({"path": own, "draft": {"method": "mtp"}})
        assert drafting(planned(asked, speculation="mtp")) == {"method": "mtp", "num_speculative_tokens": 3}
        without = scenario({"path": folder("plain", SMOLLM, 10), "draft": {"method": "mtp"}})
        with pytest.raises(UserError, match="plain has no layers that predict further tokens"):
            space_of(without)

    def test_another_vocabulary_is_refused(self, folder):
        other = folder("other", {**SMOLLM, "vocab_size": 32000}, 10)
        asked = scenario({"path": folder("m", SMOLLM, 10), "draft": {"method": "draft_model", "path": other}})
        with pytest.raises(UserError, match="other must have the 49,152 tokens of m, got 32,000"):
            space_of(asked)

    def test_an_engine_that_drafts_with_nothing_is_refused(self):
        asked = scenario(
            {"name": "smollm2-135m-instruct", "draft": {"method": "eagle", "name": "x"}}, engine="llamacpp"
        )
        with pytest.raises(
            UserError, match=r"model\.draft\.method: llamacpp drafts with no weights of its own, got eagle"
        ):
            engine_of(asked)

    def test_a_study_knows_which_weights_drafted(self, folder):
        model, first, second = folder("m", SMOLLM, 10), folder("a", SMOLLM, 20), folder("b", SMOLLM, 30)
        digests = [
            resolve(ModelRef(path=model, draft={"method": "draft_model", "path": path}), build=False).digests["draft"]
            for path in (first, second)
        ]
        assert digests[0] != digests[1]


class TestStreamInterval:
    def test_it_is_offered_only_where_no_time_between_tokens_is_promised(self, folder):
        model = {"path": folder("m", SMOLLM, 10)}
        free = scenario(model, slo={"ttft": {"target_ms": 500.0}, "e2e": {"target_ms": 5000.0}})
        assert space_of(free)["stream_interval"].choices == (1, 2, 4, 8)
        assert value_of(planned(free, stream_interval=4).argv, "--stream-interval") == "4"
        assert "--stream-interval" not in planned(free).argv
        promised = scenario(model, slo={"tpot": {"target_ms": 50.0}})
        assert space_of(promised)["stream_interval"].choices == (1,)
        assert space_of(promised).narrowed({"stream_interval": (1, 4)}).notices == (
            "stream_interval=4 is left out: a target of tpot would mean little with it",
        )

    def test_a_promise_of_one_class_of_traffic_counts(self, folder):
        asked = scenario({"path": folder("m", SMOLLM, 10)})
        lengths = {"prompt_tokens": asked.workload.prompt_tokens, "output_tokens": asked.workload.output_tokens}
        mixed = asked.to_dict()
        mixed["workload"] |= {"prompt_tokens": None, "output_tokens": None}
        mixed["workload"]["classes"] = [
            {"name": "chat", "share": 1.0, "slo": {"tpot": {"target_ms": 50.0}}}
            | {name: drawn.model_dump() for name, drawn in lengths.items()}
        ]
        assert space_of(Scenario.model_validate(mixed))["stream_interval"].choices == (1,)


@pytest.mark.parametrize("engine", [Vllm(), VllmCpu()])
def test_the_exported_form_carries_what_drafts(engine, folder):
    model, draft = folder("m", SMOLLM, 10), folder("draft", SMOLLM, 20)
    asked = scenario({"path": model, "draft": {"method": "draft_model", "path": draft}}, engine=engine.name)
    plan = planned(asked, H100 if engine.cuda else BOX, speculation="draft_model")
    canonical = Canonical.of(plan.deploy_argv, plan.env, plan.config.digest)
    assert json.loads(canonical.flag("--speculative-config"))["model"] == draft
