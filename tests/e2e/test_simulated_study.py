"""A whole study of the simulated engine from the command line: no GPU, no model, and every word says simulated.

With a control arm, an earlier study, and what is said when nothing is feasible. Real processes, real HTTP, simulated
figures. The rate is given, so that each configuration gets one hold; the search for capacity is in `test_whole_study`.
"""

import json
import re
import sqlite3
import sys
from pathlib import Path

import pytest

from harness.ledger import read

sys.path.insert(0, str(Path(__file__).parent))
from command_line import finish, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SCENARIO = """\
name: tiny-simulated
objective: latency
model: {simulated: 8b, context_tokens: 2048}
engine: {name: simulated, accelerator: l40s, version: "1"}
workload:
  arrivals: {process: constant, rate: {rps: 20}}
  prompt_tokens: {distribution: uniform, min: 150, max: 300}
  output_tokens: {distribution: fixed, mean: 12}
slo: {ttft: {target_ms: TARGET}}
search:
  tuner: grid
  finalists: 1
  knobs:
    speculation: [none, ngram, draft]
    kv_cache_dtype: [auto, fp8]
    gpu_memory_utilization: [0.98, 0.9]
    max_num_seqs: [64]
    max_num_batched_tokens: [2048, 32768]
budget: {trials: 2, warmup_s: 0.5, ramp_s: 3, hold_s: 2, holds: 1, finalist_blocks: 2, certify_s: 4, void_retries: 20}
"""


def tune(home, *options, target_ms=500):
    (home / "tiny.yaml").write_text(SCENARIO.replace("TARGET", str(target_ms)))
    return start("tune", "tiny.yaml", *options, cwd=home)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    home = tmp_path_factory.mktemp("simulated")
    done = finish(tune(home, "--run", "run", "--control", "random"), 580)
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


def test_the_control_arm_has_steps_and_a_section_of_its_own(study):
    run, _ = study
    steps = read(run / "ledger.jsonl")
    arm = [s for s in steps if s.startswith("control/")]
    assert arm
    assert steps["study"]["scenario"]["search"]["control"] == "random"
    spent = sum(steps[s]["trial"]["seconds"] for s in steps if s.startswith("trial/") and s != "trial/000")
    assert sum(steps[s]["trial"]["seconds"] for s in arm[:-1]) < spent
    page = (run / "report.html").read_text()
    assert "Against random search" in page
    assert re.search(r"In \d+ s of trials each, the search found", page)


@pytest.fixture(scope="module")
def hopeless(study):
    """After an earlier study, with a target that nothing can meet."""
    home = study[0].parent
    options = ("--run", "hopeless", "--from", "run", "--trials", 1, "--no-track", "--json")
    return home / "hopeless", finish(tune(home, *options, target_ms=0.01), 580)


def test_the_best_of_an_earlier_study_goes_first(hopeless):
    run, _ = hopeless
    steps = read(run / "ledger.jsonl")
    assert [steps[f"trial/00{n}"]["origin"] for n in (0, 1)] == ["defaults", "transfer"]
    assert steps["trial/001"]["trial"]["knobs"] == steps["transfer"]["knobs"][0]
    assert steps["transfer"]["notes"] == ["run: other targets"]


def test_nothing_feasible_is_exit_1_with_the_nearest_miss(hopeless):
    _, done = hopeless
    assert done.returncode == 1, done.stderr
    winner = json.loads(done.stdout)["winner"]
    assert winner["outcome"] == "none_feasible"
    assert re.search(r"trial 00\d came nearest: it missed slo by \d+%", winner["nearest_miss"])
    assert "target 0.01 ms" in winner["nearest_miss"]


def test_a_study_of_another_engine_cannot_go_first(study):
    run, home = study[0], study[0].parent
    (home / "other").mkdir()
    ledger = (run / "ledger.jsonl").read_text()
    (home / "other" / "ledger.jsonl").write_text(ledger.replace('"name":"simulated"', '"name":"vllm"'))
    done = finish(tune(home, "--run", "third", "--from", "other", "--no-track"))
    assert done.returncode == 2
    assert "is a study of vllm" in done.stderr
