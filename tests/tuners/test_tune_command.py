"""What `autotune tune` makes of its options before anything is measured."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from autotune import tune as command
from autotune.cli import app
from scenarios.load import CATALOG


@pytest.fixture
def asked(monkeypatch):
    """The scenario that a command line asks for."""

    def asked_by(*arguments):
        kept = []

        def keep(wanted, *_, **__):
            kept.append(wanted)
            raise typer.Exit

        monkeypatch.setattr(command, "_refuse_or_only_look", keep)
        CliRunner().invoke(app, ["tune", *map(str, arguments)], catch_exceptions=False)
        return kept[0]

    return asked_by


def test_from_is_relative_to_where_the_command_is_given(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "below" / "mine.yaml"
    file.parent.mkdir()
    file.write_text((CATALOG / "quickstart.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    wanted = asked(file, "--from", "runs/old", "--from", "/abs/old", "--from", "mlflow:0a1b")
    assert wanted.search.transfer == (str(Path.cwd() / "runs/old"), "/abs/old", "mlflow:0a1b")
    assert asked(file).search.transfer == ()
