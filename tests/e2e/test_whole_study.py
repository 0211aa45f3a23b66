"""A study on the real engine, interrupted at every stage, killed, resumed, recorded and told."""

import json
import os
import signal
import sqlite3
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.ledger import read
from tuners.results import Winner

sys.path.insert(0, str(Path(__file__).parent))
from command_line import finish, start, wait_for, wait_until_gone

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def study(scenario, tmp_path_factory):
    """Ctrl-C while launching, warming up, measuring; SIGKILL between and inside trials; then left to finish."""
    home = tmp_path_factory.mktemp("study")
    run = home / "run"
    ledger = run / "ledger.jsonl"
    prefixes = []

    def interrupted(when, number):
        process = start("tune", scenario, "--run", run, *(["--resume"] if run.exists() else []), cwd=home)
        wait_for(run / when, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert wait_until_gone() == [], f"left over after {signal.Signals(number).name} at {when}"
        prefixes.append(ledger.read_bytes())
        return process.returncode, out, err

    stops = {
        "launch": interrupted("trials/ref/plan.json", signal.SIGINT),
        "warm-up": interrupted("trials/000/warm-up", signal.SIGINT),
        "measure": interrupted("trials/000/ramp-0", signal.SIGINT),
        "killed in a trial": interrupted("trials/001/plan.json", signal.SIGKILL),
        "killed in the finals": interrupted("trials/000/final-0/warm-up", signal.SIGKILL),
        "record": interrupted("report.html", signal.SIGINT),
    }
    done = finish(start("tune", scenario, "--run", run, "--resume", "--json", cwd=home), 240)
    return {"run": run, "home": home, "stops": stops, "prefixes": prefixes, "done": done}


def test_every_interruption_says_how_to_go_on(study):
    for stage in ("launch", "warm-up", "measure", "record"):
        code, _, err = study["stops"][stage]
        assert code == 130, (stage, err)
        assert "--resume" in err, (stage, err)
        assert "Traceback" not in err, (stage, err)


def test_nothing_recorded_was_lost_or_done_twice(study):
    whole = (study["run"] / "ledger.jsonl").read_bytes()
    for prefix in study["prefixes"]:
        assert whole.startswith(prefix[: prefix.rfind(b"\n") + 1])
    steps = [json.loads(line)["step"] for line in whole.splitlines()]
    assert len(steps) == len(set(steps))


def test_it_ends_with_a_valid_winner(study):
    assert study["done"].returncode == 0, study["done"].stderr
    document = json.loads(study["done"].stdout)
    winner = Winner.model_validate_json((study["run"] / "winner.json").read_text())
    assert document["winner"] == winner.model_dump(mode="json")
    assert winner.outcome in ("tuned", "keep_defaults")
    assert winner.identity.model_digest
    assert winner.export["llama-server"].startswith("llama-server --model ")
    steps = read(study["run"] / "ledger.jsonl")
    assert {"study", "reference", "trial/000", "trial/001", "trial/002", "winner"} <= set(steps)


def test_running_it_again_only_reads_and_answers_the_same(study, autotune, scenario):
    before = (study["run"] / "ledger.jsonl").read_bytes()
    again = autotune("tune", scenario, "--run", study["run"], "--resume", "--json", "--no-track", cwd=study["home"])
    assert json.loads(again.stdout)["winner"] == json.loads(study["done"].stdout)["winner"]
    assert (study["run"] / "ledger.jsonl").read_bytes() == before


def test_published_numbers_are_those_of_plain_pandas(study):
    """P95s of every hold of the ledger, from its Parquet, by hand."""
    checked = 0
    for step, result in read(study["run"] / "ledger.jsonl").items():
        for run in result.get("runs", []) if step.startswith(("trial/", "finals/")) else []:
            m = run["measurement"]
            if m["kind"] != "hold" or m["errors"]:
                continue
            frame = pd.read_parquet(study["run"] / m["records_path"])
            due_s = frame.t_int_ns / 1e9
            frame = frame[(due_s >= m["window_s"][0]) & (due_s < m["window_s"][1])]
            ttft_ms = ((frame.t_first_ns - frame.t_int_ns) / 1e6).sort_values().to_numpy()
            assert m["metrics"]["ttft_p95_ms"]["value"] == ttft_ms[-(-95 * len(ttft_ms) // 100) - 1]
            assert m["n_judged"] == len(frame)
            checked += 1
    assert checked >= 2


def test_mlflow_has_the_study_its_trials_and_a_candidate(study):
    with sqlite3.connect(study["home"] / "mlflow.db") as db:
        (alias, version), *_ = db.execute("select alias, version from registered_model_aliases").fetchall()
        runs = db.execute("select count(*) from runs").fetchone()[0]
    assert (alias, version) == ("candidate", 1)
    assert runs == 1 + 3


def test_the_report_is_one_file_that_names_the_answer(study):
    page = (study["run"] / "report.html").read_text()
    assert "Content-Security-Policy" in page[:2000], "tests/reports opens such a page and sees no request"
    assert "llama-server --model" in page


def test_a_mirror_that_is_down_stops_nothing_and_sync_catches_up(study, autotune, scenario):
    run, home = study["run"], study["home"]
    down = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    finished = autotune("tune", scenario, "--run", run, "--resume", cwd=home, **down)
    assert finished.returncode == 0
    assert "autotune sync" in finished.stdout + finished.stderr
    assert autotune("sync", run, cwd=home, **down).returncode == 3
    assert autotune("sync", run, cwd=home).returncode == 0


def test_a_study_can_be_told_compared_and_replayed(study, autotune):
    run, home = study["run"], study["home"]
    told = autotune("report", run, cwd=home)
    assert told.returncode == 0
    assert max(map(len, told.stdout.split("\nllama-server")[0].splitlines())) <= 80
    assert json.loads(autotune("compare", run, run, "--json", cwd=home).stdout)
    replayed = json.loads(autotune("replay", run, 0, "--json", cwd=home).stdout)
    assert replayed["same_config"]
    assert {d["name"] for d in replayed["differences"]} >= {"ttft_p95_ms", "missed", "goodput_rps"}
    assert replayed["recorded"] == read(run / "ledger.jsonl")["trial/000"]["trial"]["score"]


def test_another_process_may_not_write_the_same_study(study, scenario):
    first = start("tune", scenario, "--run", study["home"] / "other", cwd=study["home"])
    wait_for(study["home"] / "other" / "ledger.jsonl", first)
    second = finish(start("tune", scenario, "--run", study["home"] / "other", "--resume", cwd=study["home"]))
    os.kill(first.pid, signal.SIGINT)
    first.communicate(timeout=30)
    assert second.returncode == 2
    assert "in use by another autotune process" in second.stderr
