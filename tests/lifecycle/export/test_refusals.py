"""What must never be in an export, and runs that have nothing to export."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from lifecycle.export.argo_analysis import ArgoAnalysis
from lifecycle.export.base import Canonical, refuse_what_no_format_may_carry
from lifecycle.export.compose import Compose
from lifecycle.export.kubernetes import Kubernetes
from lifecycle.export.llamacpp import LlamaPreset
from lifecycle.export.production_stack import ProductionStack
from lifecycle.export.run import Placement, deployment
from lifecycle.export.systemd import Systemd
from lifecycle.export.winner import SCHEMA_FILE, WinnerJson, schema_text
from scenarios.errors import UserError
from scenarios.space import ServingConfig

sys.path.insert(0, str(Path(__file__).parent))
from deployments import deployment_of

SECRET = "hf_s3cr3t"


@pytest.mark.parametrize(
    ("argv", "env", "named"),
    [
        (["vllm", "serve", "m", "--api-key", SECRET], {}, "--api-key"),
        (["vllm", "serve", "m", f"--hf-token={SECRET}"], {}, "--hf-token"),
        (["vllm", "serve", "m"], {"HF_TOKEN": SECRET}, "HF_TOKEN"),
        (["vllm", "serve", "m"], {"OPENAI_API_KEY": SECRET}, "OPENAI_API_KEY"),
        (["vllm", "serve", "m"], {"aws_secret_access_key": SECRET}, "aws_secret_access_key"),
        (["vllm", "serve", f"https://me:{SECRET}@host/m"], {}, "user and password"),
    ],
)
def test_secrets_are_refused_and_not_repeated(argv, env, named):
    with pytest.raises(UserError, match=named) as refused:
        refuse_what_no_format_may_carry(Canonical.of(argv, env, "c" * 64))
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("argv", [["--max-num-batched-tokens", "8192"], ["--num-speculative-tokens", "3"]])
def test_tokens_that_are_counted_are_no_secrets(argv):
    env = {"TOKENIZERS_PARALLELISM": "false", "VLLM_CPU_KVCACHE_SPACE": "4", "KEYBOARD": "x"}
    refuse_what_no_format_may_carry(Canonical.of(["vllm", "serve", "m", *argv], env, "c" * 64))


@pytest.mark.parametrize("character", ["\n", "\0", "\x1b", "\x85", "\u2028", "\ufeff"])
def test_control_characters_are_refused(character):
    with pytest.raises(UserError, match="control character"):
        refuse_what_no_format_may_carry(Canonical.of(["vllm", "serve", f"a{character}b"], {}, "c" * 64))


def test_flags_in_another_order_or_with_an_equals_sign_are_the_same_configuration():
    first = Canonical.of(["/opt/bin/vllm", "serve", "m", "--b", "2", "--a=1", "--port", "9"], {}, "c" * 64)
    second = Canonical.of(["vllm", "serve", "m", "--host=0.0.0.0", "--a", "1", "--b", "2"], {}, "c" * 64)
    assert first == second
    assert first.digest == second.digest
    assert first.digest != Canonical.of(["vllm", "serve", "m", "--a", "1", "--b", "3"], {}, "c" * 64).digest
    assert first.digest != Canonical.of(["vllm", "serve", "m", "--a", "1", "--b", "2"], {"X": "1"}, "c" * 64).digest
    assert first.digest != Canonical.of(["vllm", "serve", "m", "--a", "1", "--b", "2"], {}, "d" * 64).digest


def llama(alias="tiny", env=None):
    argv = ["llama-server", "--model", "/m/f16.gguf", "--alias", alias, "--kv-unified", "--port", "{port}"]
    config = ServingConfig("llamacpp", {})
    return deployment_of(config, argv, env, engine="llamacpp", label=alias, model="/m/f16.gguf")


@pytest.mark.parametrize("alias", ["a;b", "a#b", "a]b", " a", "a "])
def test_a_preset_refuses_what_its_file_cannot_say(alias):
    with pytest.raises(UserError, match="a preset cannot"):
        LlamaPreset().render(llama(alias))


def test_a_preset_refuses_an_environment():
    with pytest.raises(UserError, match=r"carries no environment.*GGML_X"):
        LlamaPreset().render(llama(env={"GGML_X": "1"}))


def vllm(*flags, outcome="PASS"):
    argv = ["vllm", "serve", "org/model", "--served-model-name", "m", *flags]
    made = deployment_of(ServingConfig("vllm", {}), argv, engine="vllm", label="m", model="org/model")
    verdict = made.winner.certification.model_copy(update={"outcome": outcome})
    object.__setattr__(made, "winner", made.winner.model_copy(update={"certification": verdict}))
    return made


def test_the_chart_would_switch_prefix_caching_off_so_the_configuration_must_say():
    with pytest.raises(UserError, match="sets prefix caching on or off"):
        ProductionStack().render(vllm("--max-num-seqs", "8"))
    assert "enablePrefixCaching: false" in ProductionStack().render(vllm("--no-enable-prefix-caching"))


def test_the_chart_gives_shared_memory_only_for_its_own_key():
    text = ProductionStack().render(vllm("--enable-prefix-caching", "--tensor-parallel-size", "4"))
    assert "tensorParallelSize: 4" in text
    assert "--tensor-parallel-size" not in text


def test_what_was_not_certified_is_not_guarded():
    with pytest.raises(UserError, match="certified none"):
        ArgoAnalysis().render(vllm(outcome="UNDECIDED"))


def test_an_analysis_asks_for_the_certified_targets():
    text = ArgoAnalysis().render(vllm())
    assert ArgoAnalysis().targets_ms(text) == {("ttft", 95.0): 800.0, ("tpot", 95.0): 62.5}
    assert "Not here, as the server does not know of it: chat.e2e" in text


def test_a_dollar_that_compose_or_systemd_would_expand_is_noticed():
    text = Compose().render(llama("$$HOME"))
    with pytest.raises(UserError, match="variable's value"):
        Compose().parse(text.replace("$$$$HOME", "$HOME"))
    unit = Systemd().render(llama("100%"))
    with pytest.raises(UserError, match="% is not doubled"):
        Systemd().parse(unit.replace("100%%", "100%"))


def test_a_variable_that_kubernetes_would_expand_is_expanded_when_it_is_read():
    """So that an escape that is missing changes the digest."""
    made = llama("$(HOME)", {"HOME": "x"})
    broken = Kubernetes().render(made).replace("$$(HOME)", "$(HOME)")
    assert Kubernetes().digest(broken) != made.canonical.digest


def test_the_schema_of_winner_json_is_current():
    assert SCHEMA_FILE.read_text("utf-8") == schema_text(), "run: make docs"


class TestRuns:
    """A whole run folder through the command."""

    @pytest.fixture
    def run(self, tmp_path):
        made = llama()
        folder = tmp_path / "my rüns" / "Chat_2"
        (folder / "trials/003").mkdir(parents=True)
        (folder / "winner.json").write_text(WinnerJson().render(made))
        plan = {
            "deploy_argv": ["llama-server", "--alias", "tiny", "--port", "{port}", "--model", "/m/f16.gguf"],
            "env": {},
            "health_path": "/ready",
            "expected_memory_bytes": 1 << 30,
        }
        (folder / "trials/003/plan.json").write_text(json.dumps(plan))
        return folder

    def test_the_launch_plan_of_the_winning_trial_is_exported(self, run):
        made = deployment(run, Placement())
        assert made.health_path == "/ready"
        assert made.name == "chat-2"
        assert made.model_folder == "/m"
        assert made.canonical.argv == ("llama-server", "--alias", "tiny", "--model", "/m/f16.gguf")

    def test_without_it_winner_json_is_enough(self, run):
        (run / "trials/003/plan.json").unlink()
        assert deployment(run, Placement()).canonical == llama().canonical

    def test_the_command_writes_a_file_or_prints(self, run, tmp_path):
        printed = CliRunner().invoke(app, ["export", str(run), "--format", "compose"])
        assert printed.exit_code == 0
        file = tmp_path / "compose.yaml"
        written = CliRunner().invoke(app, ["export", str(run), "-f", "compose", "-o", str(file)])
        assert written.exit_code == 0
        assert file.read_text() == printed.stdout

    def test_without_a_format_it_says_which_fit(self, run):
        said = CliRunner().invoke(app, ["export", str(run), "--json"])
        refusals = {row["format"]: row["refusal"] for row in json.loads(said.stdout)}
        assert refusals["llamacpp"] is None
        assert "this study's engine is llamacpp" in refusals["kserve"]

    def test_a_run_without_an_answer_is_refused(self, run, tmp_path):
        with pytest.raises(UserError, match="not finished"):
            deployment(tmp_path, Placement())
        document = json.loads((run / "winner.json").read_text())
        (run / "winner.json").write_text(json.dumps({**document, "config": None, "outcome": "none_feasible"}))
        with pytest.raises(UserError, match="nothing to export"):
            deployment(run, Placement())

    def test_a_simulated_engine_is_not_deployed(self, run):
        document = json.loads((run / "winner.json").read_text())
        document["identity"]["simulated"] = True
        (run / "winner.json").write_text(json.dumps(document))
        with pytest.raises(UserError, match="simulated: there is nothing to deploy"):
            deployment(run, Placement())

    def test_a_winner_of_another_version_is_refused(self, run):
        (run / "winner.json").write_text('{"outcome": "tuned"}')
        with pytest.raises(UserError, match="another version of autotune"):
            deployment(run, Placement())
