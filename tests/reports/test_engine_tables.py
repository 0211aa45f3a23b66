"""The engine's own figures and its GPUs in the report: shown where they were told, pointed out where they are odd."""

import json
import shutil

import pytest

from harness.measurement import GpuReading, ServerView
from lifecycle.registry.recorded import Recorded
from reports import engine_tables, html, records

AGREES = ServerView(
    requests=120,
    ttft_mean_ms=40.0,
    tpot_mean_ms=11.0,
    e2e_mean_ms=400.0,
    client_requests=120,
    client_ttft_mean_ms=41.0,
    client_tpot_mean_ms=11.2,
    client_e2e_mean_ms=401.0,
    samples=4,
    running_mean=3.25,
    running_peak=6,
    waiting_mean=0.5,
    waiting_peak=2,
    kv_usage_peak=0.125,
    preemptions=3,
    prefix_hit_share=0.5,
    accepted_share=None,
)
WORDS = "TTFT, mean: <b>41</b> & more"
GPU = GpuReading(
    gpus=2,
    energy_j=900.0,
    energy_per_output_token_j=0.25,
    power_mean_w=612.5,
    memory_peak_bytes=70 << 30,
    utilisation_mean=0.93,
    sm_clock_mean_mhz=1900.0,
    sm_clock_min_mhz=1755.0,
    held_back_by=("power cap",),
)


@pytest.fixture(scope="module")
def told(study_folder, tmp_path_factory):
    """Trial 0 agrees, the first run of trial 1 does not; the second has a GPU that somebody shares."""
    folder = tmp_path_factory.mktemp("told") / "study"
    shutil.copytree(study_folder, folder)
    ledger = folder / "ledger.jsonl"
    steps = [json.loads(line) for line in ledger.read_text().splitlines()]
    trials = {step["step"]: step["result"] for step in steps if step["step"].startswith("trial/")}
    for run in trials["trial/000"]["runs"]:
        run["measurement"]["server"] = AGREES.model_dump(mode="json")
        run["measurement"]["telemetry"]["gpu"] = GPU.model_dump(mode="json")
    one = trials["trial/001"]["runs"][0]["measurement"]
    one["server"] = AGREES.model_copy(update={"disagreements": (WORDS,)}).model_dump(mode="json")
    one["telemetry"]["gpu"] = GPU.model_copy(update={"neighbours": 1}).model_dump(mode="json")
    ledger.write_text("".join(json.dumps(step) + "\n" for step in steps))
    return records.read(folder)


def test_server_and_client_stand_side_by_side(told):
    table = engine_tables.server(told)
    shown = dict(zip(table.head, table.rows[0], strict=True))
    assert shown["Requests, server / client"] == "120 / 120"
    assert shown["TTFT mean, ms"] == "40.0 / 41.0"
    assert shown["Running mean / peak"] == "3.25 / 6.00"
    assert shown["KV cache in use, peak"] == "12.5%"
    assert shown["Preemptions"] == "3"
    assert shown["Drafts accepted"] == "–"
    assert [table.rows[place][-1] for place in table.flags] == [WORDS]


def test_a_shared_gpu_is_pointed_out(told):
    table = engine_tables.gpus(told)
    shown = dict(zip(table.head, table.rows[0], strict=True))
    assert shown["Energy, J per output token"] == "0.25"
    assert shown["Memory peak, GiB"] == "70.0"
    assert shown["Clocks held back by"] == "power cap"
    assert [table.rows[place][-1] for place in table.flags] == ["1"]


def test_the_page_opens_where_they_disagree_and_escapes_what_was_said(told, study_folder):
    page = html.render(told)
    assert "<details open><summary>The server’s own figures" in page
    assert "TTFT, mean: &lt;b&gt;41&lt;/b&gt; &amp; more" in page
    assert "<details open><summary>The GPUs during every run" in page
    silent = html.render(records.read(study_folder))
    assert "own figures of every run" not in silent
    assert "The GPUs during" not in silent


def test_trackers_get_the_numbers(told):
    study = Recorded.read(told.folder)
    metrics = study.trial_metrics(study.trials[0])
    assert metrics["server/kv_usage_peak"] == 0.125
    assert metrics["server/client_ttft_mean_ms"] == 41.0
    assert metrics["gpu/energy_per_output_token_j"] == 0.25
    assert "server/accepted_share" not in metrics
