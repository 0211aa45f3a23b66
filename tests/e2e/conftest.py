"""A real, tiny scenario on the real engine, and the command line as people run it."""

import json
import sys
from pathlib import Path

import pytest

from harness.models.store import resolve
from scenarios.spec import ModelRef

sys.path.insert(0, str(Path(__file__).parent))
from command_line import finish, start

SCENARIO = """
name: tiny
model: {{name: smollm2-135m-instruct, context_tokens: 128}}
engine: {{start_timeout_s: 60{engine}}}
workload:
  prompt_tokens: {{distribution: uniform, min: 4, max: 10}}
  output_tokens: {{distribution: uniform, min: 4, max: 8}}
slo:
  ttft: {{times_unloaded: 12}}
  tpot: {{times_unloaded: 10}}
{quality}
search:
  finalists: 1
  knobs: {{variant: [Q8_0, Q4_1], slots: [2, 8]}}
budget:
  {{trials: 2, warmup_s: 0.5, ramp_s: 3, hold_s: 2, holds: 2, finalist_blocks: 2, certify_s: 6, void_retries: 5}}
"""


@pytest.fixture(scope="session", autouse=True)
def model():
    """Fetched and built once; not part of any test's time."""
    return resolve(ModelRef(name="smollm2-135m-instruct"), build=True)


@pytest.fixture(scope="session")
def scenario(tmp_path_factory) -> Path:
    """With questions of its own, as a user's JSONL."""
    folder = tmp_path_factory.mktemp("scenario")
    facts = [("The capital of France is", "Paris"), ("The capital of Italy is", "Rome"), ("Two plus two is", "four")]
    items = [
        {"id": f"q{i}", "prompt": facts[i % 3][0], "answers": [facts[i % 3][1]], "max_tokens": 3, "stop": ["\n"]}
        for i in range(24)
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    quality = "quality: {tasks: [{task: own.jsonl, margin: 0.3}], screen_items: 12}"
    path = folder / "tiny.yaml"
    path.write_text(SCENARIO.format(engine="", quality=quality))
    return path


@pytest.fixture
def plain_scenario(tmp_path):
    """Without questions: for one configuration under load. Call with extra engine settings."""

    def make(engine: str = "") -> Path:
        path = tmp_path / "plain.yaml"
        path.write_text(SCENARIO.format(engine=engine, quality=""))
        return path

    return make


@pytest.fixture(scope="session")
def autotune():
    def run(*argv, cwd, timeout_s=150, **env):
        return finish(start(*argv, cwd=cwd, **env), timeout_s)

    return run
