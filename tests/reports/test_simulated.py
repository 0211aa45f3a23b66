"""Nothing that was simulated can be read as if it had been measured."""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from lifecycle.registry.recorded import Recorded
from reports import compare, html, records, view

ENGINE = {"name": "simulated", "accelerator": "h100", "accelerators": 2, "version": None}


def simulated(entry):
    """The step as the simulated engine would have left it."""
    if isinstance(entry, dict):
        changed = {k: simulated(v) for k, v in entry.items()}
        if "config_digest" in changed and "simulated" in changed and "argv" in changed:
            changed |= {"simulated": True, "engine": "simulated"}
        return changed
    return [simulated(e) for e in entry] if isinstance(entry, list) else entry


@pytest.fixture(scope="module")
def simulated_study(study_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "study"
    shutil.copytree(study_folder, folder)
    ledger = folder / "ledger.jsonl"
    steps = [simulated(json.loads(line)) for line in ledger.read_text().splitlines()]
    start = steps[0]["result"]["scenario"]
    start["engine"] |= ENGINE
    start["model"] |= {"name": None, "simulated": "8b"}
    ledger.write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


def test_the_answer_says_so_first(simulated_study, study_folder):
    found = view.answer(records.read(simulated_study))
    assert found.simulated == "Simulated: no 2 × h100 was measured. Every figure follows from a stated law."
    assert view.answer(records.read(study_folder)).simulated == ""


def test_the_report_has_a_banner_above_everything_and_a_title_that_says_so(simulated_study, study_folder):
    page = html.render(records.read(simulated_study))
    body = page[page.index("<body>") :]
    assert body.index('<p class="simulated"') < body.index("<header>")
    assert re.search(r"<title>Simulated: ", page)
    assert "<span>8b-simulated</span>" in page
    assert "Deploy this" not in page, "there is nothing to deploy"
    real = html.render(records.read(study_folder))
    assert '<p class="simulated"' not in real
    assert "<title>Simulated" not in real
    assert "Deploy this" in real


def test_the_command_line_says_so_first(simulated_study):
    shown = CliRunner().invoke(app, ["report", str(simulated_study)])
    assert shown.exit_code == 0
    assert shown.output.split()[0] == "Simulated:"


def test_a_simulated_study_and_a_real_one_are_not_comparable(simulated_study, study_folder):
    found = compare.compare(records.read(simulated_study), records.read(study_folder))
    assert {"one of them simulated", "different accelerators"} <= set(found.caveats)


def test_trackers_are_told(simulated_study, study_folder):
    told, real = Recorded.read(simulated_study), Recorded.read(study_folder)
    assert told.study_tags()["autotune.simulated"] == told.version_tags()["simulated"] == "true"
    assert real.study_tags()["autotune.simulated"] == real.version_tags()["simulated"] == "false"
    tags = [told.trial_tags(result)["autotune.simulated"] for result in told.trials if result.identity]
    assert set(tags) == {"true"}
