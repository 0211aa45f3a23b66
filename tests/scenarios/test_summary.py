"""What is said of a scenario's traffic, against traffic whose right answer is known."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from autotune.scenarios import app
from scenarios.load import load
from scenarios.summary import arrival_fit, shared_prefix, summarise
from scenarios.traffic import TraceFile, Workload
from scenarios.words import Words
from scenarios.workload import hold, sequence

SAMPLES = Path(__file__).parent / "traces"
ONE = {"mean": 1.0}
TINY = Words(tuple(f"w{i}" for i in range(500)), exact=True)


def workload(**changes):
    return Workload.model_validate({"prompt_tokens": ONE, "output_tokens": ONE, **changes})


@pytest.mark.parametrize("arrivals", [{"process": "poisson"}, {"process": "gamma", "gap_cv": 2.0}])
def test_the_distance_of_the_asked_process_is_within_noise_in_95_of_100(arrivals):
    asked = workload(arrivals=arrivals)
    fits = [arrival_fit(asked, hold(asked, TINY, rate_rps=5, duration_s=40, seed=s)) for s in range(200)]
    beyond = sum(fit.distance > fit.noise for fit in fits)
    assert beyond <= stats.binom.ppf(0.999, 200, 0.05)


def test_the_distance_of_another_process_is_beyond_it():
    poisson, bursty = workload(), workload(arrivals={"process": "gamma", "gap_cv": 2.0})
    fit = arrival_fit(poisson, hold(bursty, TINY, rate_rps=5, duration_s=100, seed=1))
    assert fit.distance > 2 * fit.noise


def test_constant_gaps_are_met_or_not():
    steady = workload(arrivals={"process": "constant"})
    assert arrival_fit(steady, hold(steady, TINY, rate_rps=5, duration_s=20, seed=1)).distance == 0
    assert arrival_fit(steady, hold(workload(), TINY, rate_rps=5, duration_s=20, seed=1)).distance > 0.9


def test_a_trace_has_no_distance_to_itself(tmp_path):
    file = tmp_path / "trace.csv"
    rng = np.random.default_rng(1)
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["Timestamp", "Request tokens", "Response tokens"])
        writer.writerows((t, 3, 2) for t in np.cumsum(rng.lognormal(0, 2, 400)))
    trace = TraceFile(file=str(file), format="burstgpt", max_prompt_tokens=9, max_output_tokens=9)
    replayed = Workload(arrivals={"process": "trace"}, trace=trace)
    assert arrival_fit(replayed, hold(replayed, TINY, rate_rps=9, duration_s=50, seed=1)).distance < 0.01  # ns
    fit = arrival_fit(replayed, hold(workload(), TINY, rate_rps=9, duration_s=50, seed=1))
    assert fit.distance > fit.noise


def test_shared_prefixes_are_counted_in_whole_blocks():
    prompts = workload(prompt_tokens={"mean": 8.0}, shared_prefix_tokens=40)
    requests = sequence(prompts, TINY, n=50, seed=1).requests
    assert shared_prefix(requests) == pytest.approx(49 * 32 / (50 * 48))
    assert shared_prefix(requests[:1]) == shared_prefix([]) == 0


def test_the_history_of_a_conversation_is_shared():
    talks = workload(prompt_tokens={"mean": 16.0}, output_tokens={"mean": 16.0}, sessions={"turns": {"mean": 3.0}})
    assert shared_prefix(sequence(talks, TINY, n=30, seed=1).requests) == pytest.approx((16 + 48) / (16 + 48 + 80))


def test_blocks_of_a_trace_are_shared_as_it_says():
    trace = TraceFile(
        file=str(SAMPLES / "mooncake.jsonl"), format="mooncake", max_prompt_tokens=2000, max_output_tokens=9
    )
    asked = Workload(arrivals={"process": "trace"}, trace=trace)
    found = summarise(asked, TINY, rate_rps=1.0, duration_s=4.0, seed=1)
    assert found.shared_prefix == pytest.approx((1024 + 512) / (1100 + 1300 + 600 + 512))
    assert (found.traces[0].rows, found.traces[0].replayed, found.requests) == (4, 4, 4)


def test_the_classes_of_a_mix_are_told_apart():
    found = summarise(load("mixed").workload, TINY, rate_rps=2.0, duration_s=500, seed=1)
    chat, extract = found.parts
    assert (chat.name, extract.name) == ("chat", "extract")
    assert chat.requests + extract.requests == found.requests
    assert chat.turns.max <= 4
    assert chat.pause_s.max <= 6
    assert extract.turns is extract.pause_s is None
    assert extract.output_tokens.mean == 8


def test_a_closed_loop_has_no_times():
    found = summarise(
        workload(arrivals={"process": "closed", "concurrency": 3}), TINY, rate_rps=2.0, duration_s=10, seed=1
    )
    assert (found.requests, found.duration_s, found.arrivals, found.achieved_rps) == (20, None, None, None)


@pytest.fixture
def run():
    runner = CliRunner(env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"})
    return lambda *args: runner.invoke(app, [str(a) for a in args])


TRACED = """\
name: traced
model: {{name: smollm2-135m-instruct}}
objective: meet
workload:
  arrivals: {{process: trace}}
  trace: {{file: {file}, format: burstgpt, malformed: 0.5, max_prompt_tokens: 30, max_output_tokens: 9}}
slo: {{ttft: {{target_ms: 500}}}}
"""


def test_the_command_fits_80_columns_and_names_malformed_rows(run, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text((SAMPLES / "burstgpt.csv").read_text() + "16,d,1,ChatGPT,many,5,45,API log\n")
    scenario = tmp_path / "traced.yaml"
    scenario.write_text(TRACED.format(file=file))
    result = run("show", scenario, "--traffic")
    assert result.exit_code == 0, result.output
    assert "malformed, left out" in result.output
    assert f"{file}:8  Request tokens  must be a whole number >= 0, got 'many'" in result.output
    lines = [line for line in result.output.splitlines() if str(file) not in line]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", ["mixed", "chat", "quickstart"])
def test_the_command_shows_any_scenario(run, name):
    result = run("show", name, "--traffic", "--seconds", "60")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_json_is_for_machines_and_repeats(run):
    first, second = (json.loads(run("show", "mixed", "--traffic", "--rate", "3", "--json").output) for _ in range(2))
    assert first == second
    assert first["rate_rps"] == 3
    assert first["arrivals"]["distance"] <= 2 * first["arrivals"]["noise"]
    assert [part["name"] for part in first["parts"]] == ["chat", "extract"]


def test_a_rate_of_nothing_is_refused(run):
    result = run("show", "chat", "--traffic", "--rate", "0", "--seconds", "-1")
    assert result.exit_code != 0
