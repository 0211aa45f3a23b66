"""The real vLLM server under the harness's own load: its figures beside the client's, dummies, drafts, and a hang."""

import json
import re
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from harness.bench import session
from harness.engines.vllm import words
from harness.engines.vllm.adapter import Vllm
from harness.errors import EngineHung, TrialVoid
from harness.measurement import Measurement
from harness.observe import Target
from harness.subject import prepare
from scenarios.spec import Scenario
from tuners.settle import build_words

sys.path.insert(0, str(Path(__file__).parent))
import parrots

RATE_RPS = 4.0
QUICK_START = {"enforce_eager": True, "dtype": "float32"}  # bfloat16 is 15 times slower where a CPU emulates it


class Silent:
    def __init__(self):
        self.notes = []

    def begin(self, what, seconds): ...

    def live(self, counters): ...

    def note(self, line):
        self.notes.append(line)


def scenario(model, **engine):
    return Scenario.model_validate(
        {
            "name": "vllm-under-load",
            "model": {"context_tokens": 256, **model},
            "engine": {"name": "vllm-cpu", "start_timeout_s": 600.0, **engine},
            "workload": {
                "arrivals": {"process": "constant"},
                "shared_prefix_tokens": 32,
                "prompt_tokens": {"distribution": "fixed", "mean": 64.0},
                "output_tokens": {"distribution": "fixed", "mean": 8.0},
            },
            "slo": {
                "ttft": {"percentile": 95.0, "target_ms": 5000.0},
                "tpot": {"percentile": 95.0, "target_ms": 1000.0},
            },
            "budget": {"warmup_s": 2.0},
        }
    )


def started(tmp_path, model, chosen=None, **engine):
    """A session without compilation, which starts sooner, in a precision that every CPU is quick in."""
    wanted = scenario(model, **engine)
    subject = prepare(wanted, tmp_path, Silent(), build=False)
    targets = tuple(Target(name, t.percentile, t.target_ms) for name, t in wanted.targets.items())
    config = subject.space().complete({**QUICK_START, "kv_cache_gib": 1, "block_size": 32, **(chosen or {})})
    return session(replace(subject, targets=targets), config, tmp_path / "engine")


def with_words(s):
    s.subject = replace(s.subject, words=build_words(s))
    return s


def path_of(smollm):
    return str(smollm.variants["published"])


def held(s, rate_rps=RATE_RPS, **hold):
    """Void or not: what was counted is true on a busy machine, too."""
    try:
        return s.hold(rate_rps, until_certain=False, **hold).measurement
    except TrialVoid:
        return Measurement.model_validate_json((s.folder / hold["name"] / "measurement.json").read_bytes())


class TestOneServer:
    """One start for both tests; the second is the end of it."""

    @pytest.fixture(scope="class")
    @classmethod
    def s(cls, smollm, tmp_path_factory):
        root = tmp_path_factory.mktemp("one-server")
        with started(root, {"path": path_of(smollm)}, hang_timeout_s=4.0) as s:
            with_words(s).warm_up(seed=1)
            yield s
            tree = s.running.tree()
        assert len(tree) > 1
        assert not any(process.is_running() and process.status() != "zombie" for process in tree)

    def test_its_own_figures_are_told_and_agree_with_the_client_s(self, s):
        for attempt in range(3):
            measured = held(s, seconds=10, seed=2 + attempt, name=f"hold-{attempt}")
            if not measured.audit.void_reasons:
                break
        view = measured.server
        print(view.model_dump_json(indent=1), measured.audit.void_reasons)
        assert view.requests == view.client_requests == measured.n_sent
        assert 0 < view.e2e_mean_ms <= view.client_e2e_mean_ms
        assert view.samples >= 3
        assert view.running_peak >= 1
        assert 0 < view.kv_usage_peak < 0.5
        assert 0.2 < view.prefix_hit_share < 0.5, "a third of each prompt is the common prefix, the rest is fresh"
        assert view.preemptions == 0
        assert view.accepted_share is None, "nothing was drafted"
        if measured.audit.void_reasons:
            pytest.skip(f"agreement is not judged on a disturbed machine: {measured.audit.void_reasons}")
        assert view.disagreements == ()

    def test_a_stop_of_the_world_under_load_is_a_hang(self, s):
        tree = s.running.tree()
        stop = threading.Timer(5, lambda: [process.send_signal(signal.SIGSTOP) for process in tree])
        stop.start()
        with pytest.raises(EngineHung, match="gave no token for 4 s with requests in flight") as caught:
            s.hold(RATE_RPS, 60, seed=9, name="stopped", until_certain=False)
        assert caught.value.failure == "hung"
        assert all(process.status() == psutil.STATUS_STOPPED for process in tree)


def test_dummies_are_served_without_a_file_of_weights(smollm, tmp_path):
    folder = tmp_path / "shape-only"
    shutil.copytree(path_of(smollm), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    assert not list(folder.glob("*.safetensors"))
    with started(tmp_path, {"path": str(folder), "weights": "dummy"}) as s:
        assert s.subject.identity(s.plan).dummy_weights
        assert "dummy weights: the speed is real, every answer is noise" in s.subject.observer.notes
        measured = held(with_words(s), seconds=6, seed=2, name="hold")
    assert measured.errors == {}
    assert measured.server.requests == measured.n_sent


def its_own_draft(method, smollm, folder):
    """A real model that drafts for itself, or a small one that says the last token again with a head that knows it."""
    if method == "draft_model":
        return {"path": path_of(smollm), "draft": {"method": method, "path": path_of(smollm)}}
    parrot = parrots.model(folder / "parrot", smollm.variants["published"], mtp=method == "mtp")
    if method == "mtp":
        return {"path": str(parrot), "draft": {"method": method}}
    return {
        "path": str(parrot),
        "draft": {"method": method, "path": str(parrots.head(folder / method, parrot, method))},
    }


@pytest.mark.parametrize("method", Vllm.draft_methods)
def test_what_knows_the_model_drafts_and_is_nearly_always_right(method, smollm, tmp_path):
    chosen = {"speculation": method, "speculative_tokens": 3}
    with started(tmp_path, its_own_draft(method, smollm, tmp_path), chosen) as s:
        assert json.loads(s.plan.argv[s.plan.argv.index("--speculative-config") + 1])["method"] == method
        log = s.running.log_path.read_text()
        assert words.resolved(log)["speculation"] == method
        assert s.subject.engine.disagreements(s.plan, log) == ()
        foreseen = re.search(r"\(([\d,]+) tokens", s.plan.memory_explained)[1].replace(",", "")
        assert int(words.resolved(log)["kv_cache_tokens"]) == pytest.approx(int(foreseen), rel=2e-3), (
            "what drafts keeps its own of each token"
        )
        rate_rps = RATE_RPS / 4 if method == "draft_model" else RATE_RPS
        measured = held(with_words(s), rate_rps, seconds=6, seed=2, name="hold")
    print(measured.server.model_dump_json(indent=1))
    assert measured.errors == {}
    assert measured.server.accepted_share > 0.9
