"""The Weights & Biases mirror on a real wandb, offline: what it wrote is read back from the run files."""

import json
import os
import sys

import pytest

from lifecycle.registry.base import TrackerUnavailable
from lifecycle.registry.recorded import Recorded
from lifecycle.registry.wandb_tracker import WandbTracker

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _no_settings_of_the_person(monkeypatch):
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def offline_runs(run):
    return sorted((run / "wandb").glob("offline-run-*"))


HEADER_BYTES, BLOCK_BYTES, RECORD_HEADER_BYTES = 7, 32_768, 7
FULL, FIRST, LAST = 1, 2, 4


def records_of(folder):
    """The records of an offline run: LevelDB's log format, protobuf inside."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("*.wandb")
    data, at, whole = path.read_bytes(), HEADER_BYTES, b""
    while at < len(data):
        if BLOCK_BYTES - at % BLOCK_BYTES < RECORD_HEADER_BYTES:
            at += BLOCK_BYTES - at % BLOCK_BYTES
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part = data[at + RECORD_HEADER_BYTES : at + RECORD_HEADER_BYTES + length]
        whole = part if kind in (FULL, FIRST) else whole + part
        at += RECORD_HEADER_BYTES + length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(whole)
            yield record


def told(run):
    """Run name -> its run record, configuration, summary and artifacts."""
    found = {}
    for folder in offline_runs(run):
        config, summary, artifacts, about = {}, {}, [], None
        for record in records_of(folder):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                about = record.run
                config.update({item.key: json.loads(item.value_json) for item in about.config.update})
            elif kind == "config":
                config.update({item.key: json.loads(item.value_json) for item in record.config.update})
            elif kind == "summary":
                items = record.summary.update
                summary.update({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
            elif kind in ("artifact", "request"):
                artifact = record.artifact if kind == "artifact" else record.request.log_artifact.artifact
                if artifact.name:
                    artifacts.append(artifact)
        found[about.display_name] = (about, config, summary, artifacts)
    return found


def test_offline_a_study_becomes_a_group_of_runs_with_the_winner_as_artifact(finished_study):
    run = finished_study()
    mirrored = WandbTracker().mirror(run)
    runs = told(run)

    assert mirrored.where == str(run / "wandb")
    assert f"wandb sync {run}/wandb/offline-run-*" in mirrored.message
    assert sorted(runs) == ["tiny", "trial 000", "trial 001", "trial 002"]
    assert {about.run_group for about, *_ in runs.values()} == {"tiny"}
    assert {about.project for about, *_ in runs.values()} == {"autotune-tiny"}
    about, config, summary, [artifact] = runs["tiny"]
    assert about.job_type == "study"
    assert config["model.name"] == "smollm2-135m-instruct"
    assert config["autotune.study_digest"] == Recorded.read(run).digest
    assert (summary["gain"], summary["gain_low"], summary["gain_high"]) == (1.55, 1.4, 1.7)
    assert (artifact.name, artifact.type) == ("autotune-tiny", "serving-config")
    assert set(artifact.aliases) == {"candidate", "latest"}
    assert {c.path for c in artifact.manifest.contents} == {"winner.json", "report.html"}
    assert json.loads(artifact.metadata)["config_digest"] == Recorded.read(run).winner.identity.config_digest
    about, config, summary, _ = runs["trial 001"]
    assert about.job_type == "trial"
    assert config["slots"] == 8
    assert (summary["ttft_p95_ms"], summary["ttft_p95_ms_low"], summary["ttft_p95_ms_high"]) == (300.0, 90.0, 330.0)
    assert runs["trial 002"][1]["autotune.failure"] == "out_of_memory"


def test_noise_is_recorded_and_never_a_candidate(finished_study):
    run = finished_study(dummy=True)
    WandbTracker().mirror(run)
    _, _, _, [artifact] = told(run)["tiny"]
    assert "candidate" not in artifact.aliases


def test_mirroring_again_replaces_and_completes_the_same_runs(begin_study):
    writer = begin_study()
    WandbTracker().mirror(writer.folder)
    half = {name: about.run_id for name, (about, *_) in told(writer.folder).items()}
    assert told(writer.folder)["tiny"][3] == []
    writer.finish()
    WandbTracker().mirror(writer.folder)
    whole = told(writer.folder)
    assert {name: about.run_id for name, (about, *_) in whole.items()} == half
    assert whole["tiny"][2]["gain"] == 1.55


def test_nothing_is_written_outside_the_run_folder(finished_study, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home))
    before = dict(os.environ)
    WandbTracker().mirror(finished_study())
    assert list(home.iterdir()) == []
    assert dict(os.environ) == before


def test_an_unreachable_server_is_said(finished_study, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(TrackerUnavailable, match="wandb: cannot record"):
        WandbTracker().mirror(finished_study())


def test_without_the_package_the_extra_is_named(finished_study, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrackerUnavailable, match=r"pip install 'autotune-serving\[wandb\]'"):
        WandbTracker().mirror(finished_study())
