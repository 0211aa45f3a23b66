"""vLLM's own parser reads an exported configuration as it reads the command line; and the server runs with it."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

from harness.engines.vllm import knobs, words
from harness.errors import ConfigurationImpossible
from harness.host import limits
from harness.supervise import launch
from lifecycle.export.shell import Shell
from lifecycle.export.vllm import VllmYaml
from scenarios.spec import DraftRef, EngineSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "lifecycle/export"))
from deployments import deployment_of, random_config

SPEC = EngineSpec(name="vllm-cpu", start_timeout_s=600)
CONFIGURATIONS = 500
BOTH_WAYS = """
import importlib, json, sys
for place in ("vllm.utils.argparse_utils", "vllm.utils"):
    try:
        Parser = importlib.import_module(place).FlexibleArgumentParser
        break
    except (ImportError, AttributeError):
        continue
from vllm.entrypoints.cli.serve import ServeSubcommand
parser = Parser()
ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
unequal = []
for line in sys.stdin:
    spoken, configured = json.loads(line)
    first, second = vars(parser.parse_args(spoken)), vars(parser.parse_args(configured))
    names = {n for n in first.keys() | second.keys() if n not in ("config", "model_tag")}
    different = {n: [repr(first.get(n)), repr(second.get(n))] for n in names if first.get(n) != second.get(n)}
    models = [d.get("model_tag") or d.get("model") for d in (first, second)]
    if different.pop("model", None) and models[0] == models[1]:
        pass
    if different or models[0] != models[1]:
        unequal.append([spoken, different, models])
print("\\n" + json.dumps(unequal))
"""


def exported(engine, smollm, rng):
    space = engine.knobs(SPEC, smollm, limits())
    while True:
        config = random_config(space, rng)
        try:
            plan = engine.plan(SPEC, smollm, config, limits())
        except ConfigurationImpossible:
            continue
        model = str(smollm.variants["published"])
        return deployment_of(config, plan.deploy_argv, plan.env, engine=engine.name, label=smollm.label, model=model)


def test_the_parser_of_vllm_reads_both_alike(engine, smollm, python, tmp_path):
    rng, lines = random.Random(21), []
    draft = DraftRef(method="draft_model", path=str(smollm.variants["published"]))
    drafting = dataclasses.replace(smollm, ref=smollm.ref.model_copy(update={"draft": draft})).with_draft(smollm)
    for number in range(CONFIGURATIONS):
        deployment = exported(engine, drafting, rng)
        folder = tmp_path / str(number)
        folder.mkdir()
        text = VllmYaml().render(deployment)
        (folder / VllmYaml.file_name).write_text(text)
        command = next(line for line in text.splitlines() if line.startswith("# command: "))
        configured = command.removeprefix("# command: vllm ").replace(VllmYaml.file_name, str(folder / "vllm.yaml"))
        spoken = [*deployment.canonical.argv[1:], *deployment.listening("127.0.0.1")]
        lines.append(json.dumps([spoken, configured.split(" ")]))
    done = subprocess.run(
        [python, "-c", BOTH_WAYS], input="\n".join(lines), capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == []


def test_the_server_runs_with_what_was_exported(engine, smollm, python, tmp_path):
    """Started by the exported shell script, through the environment's own `vllm` program."""
    space = engine.knobs(SPEC, smollm, limits())
    chosen = {"prefix_caching": False, "max_num_batched_tokens": 1024, "speculation": "ngram", "enforce_eager": True}
    plan = engine.plan(SPEC, smollm, space.complete(chosen), limits())
    made = deployment_of(
        plan.config,
        plan.deploy_argv,
        plan.env,
        engine=engine.name,
        label=smollm.label,
        model=str(smollm.variants["published"]),
    )
    script = tmp_path / "serve.sh"
    made = dataclasses.replace(made, program=str(Path(python).with_name("vllm")))
    script.write_text(Shell().render(made).replace("--port 8080", '--port "$1"'))
    started = dataclasses.replace(plan, argv=("sh", str(script), "{port}"), env={})
    with launch(engine, SPEC, started, tmp_path / "log") as running:
        log = running.log_path.read_text()
    said = words.resolved(log)
    assert said["enable_prefix_caching"] == "False"
    assert said["speculation"] == "ngram"
    assert list(words.disagreements(knobs.asked_of_log(plan.config.knobs), log)) == []
