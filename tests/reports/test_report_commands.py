import json
import shutil

import pytest
import typer
from typer.testing import CliRunner

from autotune import console
from autotune.report import register
from reports import compare, records
from scenarios.errors import UserError


@pytest.fixture
def run(monkeypatch):
    app = typer.Typer()
    register(app)

    def invoke(*arguments):
        monkeypatch.setattr(console.out, "_width", 80)
        return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)

    return invoke


def test_report_writes_the_file_and_prints_the_answer_in_80_columns(run, study_folder, capsys):
    result = run("report", study_folder)
    lines = result.output.splitlines()

    assert (study_folder / "report.html").exists()
    assert "every target certified" in lines[0]
    assert any("TTFT P95" in line for line in lines)
    tables = [line for line in lines if "tmp" not in line and "llama-server" not in line]
    assert max(map(len, tables)) <= 80
    assert lines[-1].startswith("next: autotune replay")


def test_report_as_json_holds_the_same_answer(run, study_folder):
    document = json.loads(run("report", study_folder, "--json").output)

    assert document["outcome"] == "tuned"
    assert document["gain"]["value"] > 1
    assert document["report"].endswith("report.html")


def test_an_unfinished_study_ends_with_the_command_that_goes_on(run, synthetic, tmp_path):
    folder = synthetic.make_study(tmp_path / "s", until="trials")
    first = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)[0]
    for ledger in (
        None,
        first,
        first.replace("autotune tune quickstart.yaml", "autotune tune quickstart.yaml --resume"),
    ):
        if ledger:
            (folder / "ledger.jsonl").write_text(ledger)
        assert run("report", folder).output.splitlines()[-1] == "next: autotune tune quickstart.yaml --resume"


def test_report_of_no_study_is_a_users_error(run, tmp_path):
    with pytest.raises(UserError):
        run("report", tmp_path)


def test_compare_shows_knobs_scores_and_no_caveat_for_equal_conditions(run, study_folder, synthetic, tmp_path):
    other = synthetic.make_study(tmp_path / "other", outcome="keep_defaults")
    output = run("compare", study_folder, other).output
    winner = records.read(study_folder).winner

    assert "not comparable" not in output
    assert "keep defaults" in output
    assert str(winner.config["knobs"]["variant"]) in output


def test_compare_says_whether_the_scores_differ(run, study_folder, synthetic, tmp_path):
    same = json.loads(run("compare", study_folder, study_folder, "--json").output)["gain"]
    assert (same["value"], same["low"], same["high"]) == (1, 1, 1)
    defaults = synthetic.make_study(tmp_path / "other", outcome="keep_defaults")
    worse = json.loads(run("compare", study_folder, defaults, "--json").output)["gain"]
    assert worse["value"] < 1
    told = "significant" if worse["high"] < 1 else "not significant"
    assert run("compare", study_folder, defaults).output.replace("\n", " ").count(f": {told}.") == 1


def test_compare_warns_of_another_machine_and_other_targets(run, study_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(study_folder, other)
    ledger = other / "ledger.jsonl"
    text = ledger.read_text().replace('"hostname_hash":"5f3a"', '"hostname_hash":"beef"')
    ledger.write_text(text.replace('"targets_ms":{"ttft":400.0', '"targets_ms":{"ttft":500.0'))

    assert "not comparable: different machines" in run("compare", study_folder, other).output
    document = json.loads(run("compare", study_folder, other, "--json").output)
    assert document["caveats"] == ["different machines", "different targets"]


def test_knobs_that_differ_are_named_with_both_values(study_folder, synthetic, tmp_path):
    default = synthetic.make_study(tmp_path / "other", outcome="keep_defaults")
    found = compare.compare(records.read(study_folder), records.read(default))
    knobs = records.read(study_folder).winner.config["knobs"]

    assert {d.knob: d.first for d in found.differences}["variant"] == knobs["variant"]
    assert all(d.first != d.second for d in found.differences)
