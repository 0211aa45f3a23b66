"""Speed that was measured with random weights can be read by nobody as a model that answers."""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from lifecycle.export.run import Placement, deployment
from lifecycle.registry.recorded import Recorded
from reports import html, records
from scenarios.errors import UserError


@pytest.fixture(scope="module")
def study(study_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dummy") / "study"
    shutil.copytree(study_folder, folder)
    ledger = folder / "ledger.jsonl"
    steps = [json.loads(line) for line in ledger.read_text().splitlines()]
    scenario = steps[0]["result"]["scenario"]
    scenario["model"]["weights"] = "dummy"
    scenario["quality"]["tasks"] = []
    ledger.write_text("".join(json.dumps(step) + "\n" for step in steps))
    (winner,) = (step["result"] for step in steps if step["step"] == "winner")
    winner["identity"]["dummy_weights"] = True
    (folder / "winner.json").write_text(json.dumps(winner))
    return folder


def test_the_report_says_so_before_anything_else(study, study_folder):
    page = html.render(records.read(study))
    body = page[page.index("<body>") :]
    assert body.index("every answer is noise") < body.index("<header>")
    assert re.search(r"<title>Dummy weights: ", page)
    assert "Deploy this" not in page
    assert "answer is noise" not in html.render(records.read(study_folder))


def test_the_command_line_says_so_first(study):
    shown = CliRunner().invoke(app, ["report", str(study)])
    assert shown.output.split()[:2] == ["Dummy", "weights:"]


def test_trackers_are_told(study, study_folder):
    told, real = Recorded.read(study), Recorded.read(study_folder)
    assert told.study_tags()["autotune.weights"] == told.version_tags()["weights"] == "dummy"
    assert told.study_params()["model.weights"] == "dummy"
    assert told.noise == "Dummy weights: every answer is noise. "
    assert real.version_tags()["weights"] == "real"
    assert real.noise == ""


def test_it_is_not_exported(study):
    with pytest.raises(UserError, match="its weights were dummies, whose answers are noise; study the real ones"):
        deployment(study, Placement())
