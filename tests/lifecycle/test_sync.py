"""What `mirror.json` and `autotune sync` say about mirrors that stand and mirrors that are down."""

import json

import pytest
import typer
from typer.testing import CliRunner

from autotune import sync as sync_command
from harness import plugins
from harness.errors import RunFolderUnusable
from lifecycle.registry.base import Mirrored, TrackerUnavailable
from lifecycle.registry.recorded import Recorded
from lifecycle.registry.sync import attempts_of, mirror_all, trackers_of
from scenarios.errors import UserError


class Board:
    """A tracker that a plug-in's author could write: a text file beside the runs, which may be away."""

    name = "board"

    def mirror(self, run):
        board = run.parent / "board"
        if not board.is_dir():
            raise TrackerUnavailable(self.name, run, f"{board} is not there")
        (board / run.name).write_text(Recorded.read(run).digest)
        return Mirrored(self.name, str(board / run.name), "1 study")


@pytest.fixture(autouse=True)
def _board_is_installed(monkeypatch):
    registered = plugins.load
    monkeypatch.setattr(plugins, "load", lambda group, name: Board if name == "board" else registered(group, name))


@pytest.fixture
def invoke():
    app = typer.Typer()
    app.command()(sync_command.sync)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_mirror_that_is_down_is_noted_and_caught_up_with(finished_study, invoke):
    run = finished_study()
    [down] = mirror_all(run, ["board"])
    assert (down.ok, down.where) == (False, None)
    assert json.loads((run / "mirror.json").read_text())["board"]["ok"] is False
    assert trackers_of(run) == ["board"]

    still = invoke(run)
    assert still.exit_code == 3
    assert f"autotune sync {run}" in still.stderr.replace("\n", " ")

    (run.parent / "board").mkdir()
    done = invoke(run)
    assert done.exit_code == 0, done.stderr
    assert attempts_of(run)["board"].ok
    assert (run.parent / "board" / "tiny").read_text() == Recorded.read(run).digest


def test_a_tracker_that_is_down_keeps_neither_the_next_tracker_nor_the_next_run_from_being_mirrored(
    finished_study, invoke, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    first, second = finished_study("first"), finished_study("second")
    (first.parent / "board").mkdir()
    result = invoke(first, second, "--tracker", "mlflow", "--tracker", "board", "--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert [[a["ok"] for a in document[str(run)]] for run in (first, second)] == [[False, True], [False, True]]


def test_an_unknown_tracker_is_refused_before_anything_is_mirrored(finished_study):
    run = finished_study()
    (run.parent / "board").mkdir()
    with pytest.raises(UserError, match=r"unknown tracker `mlflo`; did you mean `mlflow`\?.*mlflow, wandb"):
        mirror_all(run, ["board", "mlflo"])
    assert not (run / "mirror.json").exists()
    assert list((run.parent / "board").iterdir()) == []


def test_without_earlier_attempts_sync_means_mlflow(finished_study):
    assert trackers_of(finished_study()) == ["mlflow"]


def test_a_folder_that_is_not_a_study_is_refused(tmp_path):
    (tmp_path / "board").mkdir()
    with pytest.raises(UserError, match="is not the folder of a study"):
        mirror_all(tmp_path / "runs", ["mlflow"])


def test_a_ledger_of_another_version_is_refused_in_words(finished_study):
    run = finished_study()
    ledger = run / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"engine_version"', '"engine_release"'))
    (run.parent / "board").mkdir()
    with pytest.raises(UserError, match="written by another version of autotune"):
        mirror_all(run, ["board"])


def test_a_damaged_mirror_file_is_refused_in_words(finished_study):
    run = finished_study()
    (run / "mirror.json").write_text("{")
    with pytest.raises(UserError, match="is damaged; delete it"):
        attempts_of(run)


def test_a_run_folder_that_cannot_be_written_is_said(finished_study):
    run = finished_study()
    (run.parent / "board").mkdir()
    (run / "mirror.part").mkdir()
    with pytest.raises(RunFolderUnusable, match="cannot write"):
        mirror_all(run, ["board"])
