"""What `autotune tune` makes of its options before anything is measured."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from autotune import tune as command
from autotune.cli import app
from scenarios.errors import UserError
from scenarios.load import CATALOG
from tuners.study import Asked

sys.path.insert(0, str(Path(__file__).parent))
from analytic_study import SPACE, Silent, scenario


@pytest.fixture
def asked(monkeypatch):
    """The scenario that a command line asks for."""

    def asked_by(*arguments):
        kept = []

        def keep(wanted, *_, **__):
            kept.append(wanted)
            raise typer.Exit

        monkeypatch.setattr(command, "_find_plugins", keep)
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


def test_a_preset_may_have_values_that_the_scenario_left_out(tmp_path):
    engine = SimpleNamespace(presets={"throughput": {"slots": 8}})
    asked = scenario()
    asked = asked.model_copy(update={"search": asked.search.model_copy(update={"knobs": {"slots": (1, 2)}})})
    subject = SimpleNamespace(scenario=asked, engine=engine, space=lambda: SPACE, root=tmp_path)
    study = command._study(subject, Silent(), Asked("law.yaml", "autotune tune law"))
    assert study.presets == {"throughput": SPACE.complete({"slots": 8})}
    assert study.space == SPACE.narrowed({"slots": (1, 2)})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tuner", "foo"), "unknown tuner `foo`"),
        (("--tracker", "foo"), "unknown tracker `foo`"),
        (("--from", "nowhere"), "holds no study to learn from"),
        (("--control", "foo"), "--control must be random, got foo"),
    ],
)
def test_what_is_named_must_be_there_before_anything_is_begun(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(app, ["tune", "quickstart", *arguments], catch_exceptions=False)
    assert not list(tmp_path.iterdir())
