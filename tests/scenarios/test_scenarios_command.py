"""`autotune scenarios …` as a person types it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autotune import cli
from autotune.scenarios import app
from scenarios.errors import ScenarioError
from scenarios.load import SCHEMA_FILE, catalogue, load

BROKEN = Path(__file__).parent / "broken"


@pytest.fixture
def run():
    runner = CliRunner(env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"})
    return lambda *args: runner.invoke(app, [str(a) for a in args])


def test_list_names_every_scenario_in_80_columns(run):
    result = run("list")
    assert result.exit_code == 0
    assert all(name in result.output for name in catalogue())
    assert max(map(len, result.output.splitlines())) <= 80
    assert result.output.splitlines()[-1].startswith("next:")


def test_list_json_is_for_machines(run):
    assert {row["name"] for row in json.loads(run("list", "--json").output)} == set(catalogue())


def test_show_prints_a_scenario_that_loads_back(run, tmp_path):
    file = tmp_path / "shown.yaml"
    file.write_text(run("show", "quickstart").output)
    assert load(file) == load("quickstart")


def test_show_json(run):
    assert json.loads(run("show", "chat", "--json").output) == load("chat").to_dict()


def test_show_of_a_broken_file_raises_the_error_that_the_hall_prints(run):
    assert isinstance(run("show", BROKEN / "empty.yaml").exception, ScenarioError)


@pytest.mark.parametrize("command", [("scenarios", "show"), ("bench",), ("tune",), ("tune", "--dry-run")])
def test_every_command_refuses_what_it_does_not_know_at_its_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, [*command, str(BROKEN / "unknown_tuner.yaml")])
    assert isinstance(result.exception, ScenarioError)
    assert "unknown_tuner.yaml:19  search.tuner  must be one of" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_check_of_a_broken_folder_prints_every_message_and_exits_2(run):
    result = run("check", BROKEN)
    files = sorted(BROKEN.glob("*.yaml"))
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    for file in files:
        lines = [line for line in result.output.splitlines() if line.startswith(str(file))]
        assert lines, file
        assert not any(line.endswith("  ok") for line in lines)
    assert f"{BROKEN / 'negative_rate.yaml'}:8  workload.arrivals.rate.rps  must be > 0, got -3" in result.output


def test_check_of_good_files_exits_0(run):
    result = run("check", *catalogue().values())
    assert result.exit_code == 0
    assert result.output.count("  ok\n") == len(catalogue())


def test_check_goes_on_after_a_broken_file(run):
    result = run("check", BROKEN / "empty.yaml", "smoke", "no-such-file.yaml")
    assert result.exit_code == 2
    assert "smoke  ok" in result.output
    assert "no-such-file.yaml  does not exist" in result.output


def test_check_json_lists_the_problems(run):
    result = run("check", BROKEN / "misspelt_key.yaml", "--json")
    assert result.exit_code == 2
    assert json.loads(result.output) == [
        {
            "file": str(BROKEN / "misspelt_key.yaml"),
            "line": 13,
            "key": "slo.ttft.percentil",
            "message": "unknown key; did you mean `percentile`?",
        }
    ]


def test_a_folder_without_scenarios_is_an_error(run, tmp_path):
    assert "holds no .yaml file" in str(run("check", tmp_path).exception)


def test_schema_prints_what_is_stored(run):
    assert run("schema").output == SCHEMA_FILE.read_text(encoding="utf-8")
