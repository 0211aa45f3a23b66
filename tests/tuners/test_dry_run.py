"""`autotune tune --dry-run` on the catalogue's scenarios: everything is told, nothing is started."""

import json

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from scenarios.errors import UserError
from scenarios.load import CATALOG


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("AUTOTUNE_ENGINES", str(tmp_path / "engines"))
    monkeypatch.chdir(tmp_path)


def tune(*arguments):
    return CliRunner().invoke(app, ["tune", *arguments], catch_exceptions=False)


def test_a_gpu_study_is_planned_without_a_gpu(tmp_path):
    done = tune("vllm-h100-llama-8b", "--dry-run", "--assume-gpus", "1x80", "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["gpus_assumed"] is True
    assert told["control"]["command"].startswith("vllm serve meta-llama/Llama-3.1-8B-Instruct ")
    assert "KV cache 56." in told["control"]["memory"]
    assert told["launches"] == sum(part["launches"] for part in told["parts"])
    assert told["seconds_at_most"] == pytest.approx(sum(part["seconds"] for part in told["parts"]))
    assert not (tmp_path / "runs").exists()


def test_sglang_is_planned_without_a_gpu():
    done = tune("sglang-h100-llama-8b", "--dry-run", "--assume-gpus", "1x80", "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert "autotune engines install sglang" in told["version"]
    assert told["control"]["command"].startswith("sglang serve --model-path meta-llama/Llama-3.1-8B-Instruct ")
    assert "KV cache 51." in told["control"]["memory"]
    assert any("prefix_caching must be true" in reason for reason in told["impossible"])


def test_what_does_not_fit_is_said_before_the_gpu_is_paid_for():
    with pytest.raises(UserError, match="not enough memory for one sequence"):
        tune("vllm-h100-llama-8b", "--dry-run", "--assume-gpus", "1x16")


def test_a_study_of_dummy_weights_is_planned_and_says_so(tmp_path):
    lines = (CATALOG / "vllm-h100-llama-8b.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("quality:") and "task" not in line]
    file = tmp_path / "dummy.yaml"
    file.write_text("\n".join(kept).replace("  context_tokens:", "  weights: dummy\n  context_tokens:") + "\n")
    told = json.loads(tune(str(file), "--dry-run", "--assume-gpus", "1x80", "--json").stdout)
    assert told["weights"] == "dummy"
    assert "--load-format dummy" in told["control"]["command"]
    assert any(notice.startswith("speculation=ngram is left out") for notice in told["control"]["notices"])
    shown = " ".join(tune(str(file), "--dry-run", "--assume-gpus", "1x80").stdout.split())
    assert "with dummy weights: every answer is noise" in shown


@pytest.mark.parametrize("gpus", ["80", "1x", "0x80", "ax80"])
def test_gpus_that_cannot_be_understood(gpus):
    with pytest.raises(UserError, match="--assume-gpus must be like 1x80"):
        tune("vllm-h100-llama-8b", "--dry-run", "--assume-gpus", gpus)


def test_assumptions_are_for_dry_runs_alone():
    with pytest.raises(UserError, match="only with --dry-run"):
        tune("vllm-h100-llama-8b", "--assume-gpus", "1x80")


def test_people_get_tables():
    done = tune("vllm-cpu-smollm2", "--dry-run")
    for words in ("nothing was started", "cannot be planned", "KV cache", "Time, at most", "vllm serve"):
        assert words in " ".join(done.stdout.split())


def test_a_simulated_study_is_planned_too():
    done = tune("simulated-h100-chat", "--dry-run", "--control", "random", "--json")
    assert done.exit_code == 0
    parts = {part["name"]: part for part in json.loads(done.stdout)["parts"]}
    assert parts["the control arm"]["launches"] > 0


def test_a_server_without_knobs_is_not_promised_a_study(tmp_path):
    (tmp_path / "theirs.yaml").write_text(
        "name: theirs\nmodel: {served_as: m}\nengine: {name: attached, base_url: 'http://127.0.0.1:9/v1'}\n"
        "workload: {prompt_tokens: {mean: 8}, output_tokens: {mean: 8}}\nslo: {ttft: {target_ms: 100}}\n"
    )
    with pytest.raises(UserError, match="nothing to tune; use `autotune bench`"):
        tune("theirs.yaml", "--dry-run")
