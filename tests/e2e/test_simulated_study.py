"""A whole study of the simulated engine from the command line: no GPU, no model, and every word says simulated."""

import json
import sqlite3
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from command_line import finish, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SCENARIO = """\
name: tiny-simulated
model: {simulated: 8b, context_tokens: 2048}
engine: {name: simulated, accelerator: l40s, version: "1"}
workload:
  arrivals: {process: constant}
  prompt_tokens: {distribution: uniform, min: 400, max: 800}
  output_tokens: {distribution: fixed, mean: 12}
slo: {ttft: {target_ms: 500}}
search:
  finalists: 1
  knobs:
    speculation: [none, ngram, draft]
    kv_cache_dtype: [auto, fp8]
    gpu_memory_utilization: [0.98, 0.9]
    max_num_seqs: [64]
    max_num_batched_tokens: [2048, 32768]
budget: {trials: 3, warmup_s: 0.5, ramp_s: 3, hold_s: 2, holds: 1, finalist_blocks: 2, certify_s: 6, void_retries: 20}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("simulated")
    (home / "tiny.yaml").write_text(SCENARIO)
    done = finish(start("tune", "tiny.yaml", "--run", "run", "--tuner", "grid", cwd=home), 280)
    assert done.returncode == 0, done.stderr
    return home / "run", done


def test_it_ends_with_an_answer_that_says_simulated_first(study):
    run, done = study
    assert done.stdout.split()[0] == "Simulated:"
    assert "Simulated: no l40s was measured." in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines()[:12])
    winner = json.loads((run / "winner.json").read_text())
    assert winner["simulated"] is True
    assert winner["outcome"] in {"tuned", "keep_defaults"}
    assert "harness.engines.simulated.server" in winner["export"]["python"]


def test_what_the_release_does_not_know_was_said_and_never_launched(study):
    run, done = study
    assert "speculation=draft is left out: simulated release 1 has no --speculation draft" in done.stderr
    assert "kv_cache_dtype=fp8 is left out: simulated release 1 has no --kv-cache-dtype" in done.stderr
    for plan in run.rglob("plan.json"):
        assert "--kv-cache-dtype" not in plan.read_text()
        assert "draft" not in json.loads(plan.read_text())["argv"]


def test_running_out_of_memory_is_a_result_of_its_own(study):
    run, _ = study
    steps = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    trials = [step["result"] for step in steps if step["step"].startswith("trial/")]
    failed = [t for t in trials if t["trial"]["failure"] == "out_of_memory"]
    assert failed
    assert all(any("CUDA out of memory (simulated)" in line for line in t["log_lines"]) for t in failed)
    assert all(t["identity"]["simulated"] for t in trials)


def test_the_report_and_the_record_say_so(study):
    run, _ = study
    assert '<p class="simulated"' in (run / "report.html").read_text()
    with sqlite3.connect(run.parent / "mlflow.db") as database:
        said = database.execute("SELECT value FROM tags WHERE key = 'autotune.simulated'").fetchall()
    assert said
    assert {value for (value,) in said} == {"true"}
