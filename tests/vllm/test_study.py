"""The catalogue's study on a real vLLM, whole: every step as its file says, with less time and fewer questions.

Where a CPU emulates bfloat16, prompts have a dozen tokens: one of the file's takes two seconds there.
"""

import sqlite3
import sys
from pathlib import Path

import pytest
import yaml

from harness.host import limits
from harness.ledger import read
from scenarios import datasets
from scenarios.load import load
from tuners.results import Winner

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from command_line import finish, start

pytestmark = pytest.mark.timeout(3700)
CLOZE = Path(datasets.__file__).with_name("cloze.jsonl")
QUESTIONS = 60
SHORT = {"trials": 4, "warmup_s": 1, "ramp_s": 5, "hold_s": 4, "holds": 2, "certify_s": 16, "void_retries": 5}
FEW_TOKENS = {"shared_prefix_tokens": 0, "prompt_tokens": {"distribution": "uniform", "min": 8, "max": 16}}


@pytest.fixture(scope="module")
def study(smollm, tmp_path_factory):
    del smollm  # it is there
    home = tmp_path_factory.mktemp("study")
    document = load("vllm-cpu-smollm2").to_dict()
    document["budget"].update(SHORT, finalist_blocks=2)
    if not limits().bfloat16:
        document["budget"]["warmup_s"] = 4
        document["workload"].update(FEW_TOKENS)
        document["slo"]["tpot"]["times_unloaded"] = 20  # a prompt takes as long as eight tokens
    document["quality"]["tasks"] = [{"task": "questions.jsonl", "margin": 0.2}]
    (home / "questions.jsonl").write_text("".join(CLOZE.read_text().splitlines(keepends=True)[:QUESTIONS]))
    (home / "short.yaml").write_text(yaml.safe_dump(document))
    told = finish(start("tune", "short.yaml", "--run", "run", cwd=home), 3600)
    if told.returncode == 3:
        pytest.skip(f"this machine is too busy: {told.stderr.splitlines()[0]}")
    assert told.returncode in (0, 1), told.stderr
    return home, told


@pytest.fixture(scope="module")
def steps(study):
    return read(study[0] / "run/ledger.jsonl")


def test_it_ends_with_an_answer_that_says_how_to_start_it(study):
    home, told = study
    winner = Winner.model_validate_json((home / "run/winner.json").read_text())
    assert (told.returncode == 1) == (winner.outcome == "none_feasible")
    if told.returncode == 0:
        assert winner.export["vllm"].startswith("vllm serve ")
        assert "winner.json" in told.stdout


def test_every_value_that_has_no_order_was_launched(steps):
    """Prefix caching on and off, drafting by n-grams, and another precision, beside the defaults."""
    tried = [step["trial"]["knobs"] for name, step in steps.items() if name.startswith("trial/")]
    assert len(tried) >= 5
    for knob, values in {"prefix_caching": {True, False}, "speculation": {"none", "ngram"}}.items():
        assert {knobs[knob] for knobs in tried} == values
    assert len({(knobs["dtype"], knobs.get("variant")) for knobs in tried}) > 1


def test_what_was_launched_was_measured_and_its_answers_compared(steps):
    trials = [step for name, step in steps.items() if name.startswith("trial/")]
    measured = [trial for trial in trials if trial["runs"]]
    assert len(measured) >= 3
    assert all(trial["cold_start_s"] > 1 for trial in measured)
    assert any(trial["quality"] for trial in trials), "answers of another precision are compared with the reference's"
    views = [run["measurement"]["server"] for trial in measured for run in trial["runs"]]
    assert all(view["requests"] is not None for view in views), "its own counters are read beside every run"
    assert any(view["requests"] for view in views)


def test_it_is_told_and_recorded(study, steps):
    home, _ = study
    page = (home / "run/report.html").read_text()
    assert "vllm serve " in page
    with sqlite3.connect(home / "mlflow.db") as db:
        runs = db.execute("select count(*) from runs").fetchone()[0]
        knobs = {row[0] for row in db.execute("select distinct key from params").fetchall()}
    assert runs == 1 + sum(name.startswith("trial/") for name in steps)
    assert {"prefix_caching", "speculation", "dtype"} <= knobs
