"""The command line around a search: the control arm, earlier studies, and what is said when nothing is feasible.

On the simulated engine: real processes, real HTTP, simulated figures.
"""

import json
import re
import sys
from pathlib import Path

import pytest

from harness.ledger import read

sys.path.insert(0, str(Path(__file__).parent))
from command_line import finish, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SCENARIO = """
name: controls
model: {simulated: 1b, context_tokens: 1024}
engine: {name: simulated, accelerator: rtx4090}
workload:
  api: completions
  prompt_tokens: {mean: 64}
  output_tokens: {mean: 8}
slo:
  ttft: {target_ms: TARGET}
search:
  tuner: gp
  knobs: {max_num_seqs: [8, 16, 32], gpu_memory_utilization: [0.9, 0.95]}
  finalists: 1
budget: {trials: 2, warmup_s: 0.5, ramp_s: 3, hold_s: 2, holds: 1, finalist_blocks: 2, certify_s: 4}
"""


def scenario(folder, target_ms):
    path = folder / "controls.yaml"
    path.write_text(SCENARIO.replace("TARGET", str(target_ms)))
    return path


def tune(home, target_ms, *options):
    asked = ("tune", scenario(home, target_ms), *options, "--no-track", "--json")
    return finish(start(*asked, cwd=home), 400)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    home = tmp_path_factory.mktemp("compared")
    return home, tune(home, 2000, "--run", "first", "--control", "random")


def test_the_control_arm_has_steps_and_a_section_of_its_own(compared):
    home, done = compared
    assert done.returncode == 0, done.stderr
    steps = read(home / "first" / "ledger.jsonl")
    arm = [s for s in steps if s.startswith("control/")]
    assert arm
    assert steps["study"]["scenario"]["search"]["control"] == "random"
    spent = sum(steps[s]["trial"]["seconds"] for s in steps if s.startswith("trial/") and s != "trial/000")
    assert sum(steps[s]["trial"]["seconds"] for s in arm[:-1]) < spent
    page = (home / "first" / "report.html").read_text()
    assert "Against random search" in page
    assert re.search(r"In \d+ s of trials each, the search found", page)


def test_an_earlier_study_goes_first_and_its_folder_is_not_needed_again(compared):
    home, _ = compared
    done = tune(home, 2000, "--run", "second", "--from", "first")
    assert done.returncode == 0, done.stderr
    steps = read(home / "second" / "ledger.jsonl")
    assert [steps[f"trial/00{n}"]["origin"] for n in (0, 1)] == ["defaults", "transfer"]
    assert steps["trial/001"]["trial"]["knobs"] == steps["transfer"]["knobs"][0]


def test_nothing_feasible_is_exit_1_with_the_nearest_miss(tmp_path):
    done = tune(tmp_path, 0.01, "--run", "hopeless")
    assert done.returncode == 1, done.stderr
    winner = json.loads(done.stdout)["winner"]
    assert winner["outcome"] == "none_feasible"
    assert re.search(r"trial 00\d came nearest: it missed slo by \d+%", winner["nearest_miss"])
    assert "target 0.01 ms" in winner["nearest_miss"]


def test_a_study_of_another_engine_cannot_go_first(compared, tmp_path):
    home, _ = compared
    ledger = (home / "first" / "ledger.jsonl").read_text()
    other = home / "other"
    other.mkdir()
    (other / "ledger.jsonl").write_text(ledger.replace('"name":"simulated"', '"name":"vllm"'))
    done = tune(home, 2000, "--run", "third", "--from", "other")
    assert done.returncode == 2
    assert "is a study of vllm" in done.stderr
