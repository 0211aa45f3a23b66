"""The benchmark finds what is wrong with a load generator, and nothing wrong with one that is right."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "load"))

import cell
import run
from asks import Answers, Ask, write_inputs
from peers import OURS, PEERS, fnv1a
from plot import svg
from stub import RECORD_HEADER, parse_record
from summary import summarise, too_slow, verdicts
from table import markdown

pytestmark = pytest.mark.alone

NS = 1_000_000_000
needs_stub = pytest.mark.skipif(
    shutil.which("cc") is None or (os.cpu_count() or 1) < 2, reason="needs a C compiler and two cores"
)


@pytest.fixture(autouse=True)
def cores():
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def ask_for(folder, rate_rps, count):
    return Ask(
        url="", rate_rps=rate_rps, count=count, seed=1, folder=folder / "cell", inputs=write_inputs(folder / "in")
    )


def record_of(arrivals_ns, ttft_ms=20.0, tpot_ms=5.0):
    rows = [RECORD_HEADER]
    for k, at in enumerate(arrivals_ns):
        first = at + round(ttft_ms * 1e6)
        last = first + round(15 * tpot_ms * 1e6)
        rows.append(f"{k},0,{k},{at},{at},{at},{first},{at},{first},{last},{last},16,16,8,100,{k:016x},0,1,client-{k}")
    return parse_record("\n".join(rows) + "\n")


@needs_stub
def test_a_cell_of_ours_is_joined_request_by_request_and_loses_none(tmp_path):
    row = cell.measure(PEERS[OURS], ask_for(tmp_path, 50, 120), freeze=False)
    assert row["failed"] is None
    assert (row["requests"], row["answers"], row["errors"], row["incomplete"]) == (120, 120, 0, 0)
    assert row["paired"] == row["n"] > 30
    assert row["without_kernel_stamp"] == 0
    assert 0 < row["ttft_inflation_p50_ms"] < 20
    assert row["cpu_ms_per_request"] > 0
    assert row["peak_pss_mb"] > 10


@needs_stub
def test_a_generator_that_adds_its_own_queue_to_the_latency_is_found_out(tmp_path):
    def adding(ask, log):
        answers = PEERS[OURS].read(ask, log)
        return dataclasses.replace(answers, ttft_ms=answers.ttft_ms + 50, tpot_ms=answers.tpot_ms * 2)

    row = cell.measure(dataclasses.replace(PEERS[OURS], read=adding), ask_for(tmp_path, 50, 120), freeze=False)
    assert 50 < row["ttft_inflation_p50_ms"] < 70
    assert 4 < row["tpot_inflation_p50_ms"] < 6


@needs_stub
def test_a_generator_that_dies_is_a_row_with_its_reason(tmp_path):
    dying = dataclasses.replace(PEERS[OURS], argv=lambda _: [sys.executable, "-c", "raise SystemExit('no such flag')"])
    row = cell.measure(dying, ask_for(tmp_path, 50, 10), freeze=False)
    assert row["failed"] == "ended with status 1: no such flag"


@needs_stub
def test_a_frozen_server_is_reported_truly_by_ours(tmp_path):
    row = cell.measure(PEERS[OURS], ask_for(tmp_path, 50, 150), freeze=True)
    assert row["truth_from"] == "its own intended times"
    assert row["reported_p95_ms"] > 1000
    assert row["truth_over_reported_p95"] == pytest.approx(1, abs=0.03)


def test_a_generator_that_counts_from_when_it_could_send_is_found_out(tmp_path):
    due = np.arange(1200) * NS // 100 + NS
    sent = np.where((due > 7 * NS) & (due < 9 * NS), 9 * NS + np.arange(1200), due)
    keys = tuple(f"client-{k}" for k in range(1200))
    answers = Answers(np.full(1200, 20.0), np.full(1200, 5.0), 0, "client_id", keys, due_ns=due)
    row = cell.freeze_row(record_of(sent), answers, ask_for(tmp_path, 100, 1200), [(7 * NS, 9 * NS)])
    assert row["truth_from"] == "its own intended times"
    assert row["truth_over_reported_p95"] == pytest.approx(71, abs=1)


class NoFootprint:
    def cpu_s_between(self, *_):
        return None


def test_arrivals_of_the_process_that_was_asked_for_are_within_the_noise_as_often_as_it_says(tmp_path):
    rng = np.random.default_rng(5)
    ask = ask_for(tmp_path, 200, 1000)
    beyond = np.zeros(2)
    for _ in range(100):
        arrivals = np.cumsum(rng.exponential(NS / 200, 1000)).astype(int) + NS
        row = cell._of_server(record_of(arrivals), ask, NoFootprint())
        beyond += np.array([row["arrival_distance"], row["moments_distance"]]) > row["arrival_noise"]
    assert (beyond <= stats.binom.ppf(0.999, 100, 0.05)).all()
    assert row["rate_rps"] == pytest.approx(200, rel=0.15)


def test_a_generator_that_wakes_every_10_ms_does_not_send_a_poisson_process(tmp_path):
    arrivals = np.cumsum(np.random.default_rng(5).exponential(NS / 200, 1000))
    steps = np.ceil(arrivals / 1e7).astype(int) * 10**7 + NS
    row = cell._of_server(record_of(steps), ask_for(tmp_path, 200, 1000), NoFootprint())
    assert row["arrival_distance"] > 5 * row["arrival_noise"]


@pytest.mark.parametrize("join", ["body", "client_id", "seq", "order"])
def test_answers_find_their_requests_in_whatever_order_they_come(join):
    arrivals = np.arange(100) * 10_000_000 + NS
    record = record_of(arrivals)
    order = np.random.default_rng(1).permutation(100)
    keys = {
        "body": [f"{k:016x}" for k in order],
        "client_id": [f"client-{k}" for k in order],
        "seq": [str(k) for k in order],
        "order": [],
    }[join]
    answers = Answers(np.zeros(100), np.zeros(100), 0, join, tuple(keys), start_ns=arrivals[order])
    server, mine = cell.joined(record, answers)
    assert sorted(zip(server.tolist(), order[mine].tolist(), strict=True)) == [(k, k) for k in range(100)]


def test_answers_that_cannot_be_told_apart_are_compared_by_quantiles():
    record = record_of(np.arange(100) * 50_000_000 + NS)
    row = cell.inflation_row(record, Answers(np.full(90, 23.0), np.full(90, 5.5), 10, "order", start_ns=np.arange(90)))
    assert row["joined_by"] == "quantiles"
    assert row["ttft_inflation_p95_ms"] == pytest.approx(3)
    assert row["tpot_inflation_p50_ms"] == pytest.approx(0.5)


def test_a_generator_that_waits_for_a_frozen_server_is_held_against_the_schedule_it_was_asked_for(tmp_path):
    ask = ask_for(tmp_path, 100, 1200)
    frozen, thawed = 7 * NS, 9 * NS
    waiting = [t for t in (np.arange(1200) * NS // 100 + NS).tolist() if not frozen < t < thawed]
    answers = Answers(np.full(len(waiting), 20.0), np.full(len(waiting), 5.0), 0, "order")
    row = cell.freeze_row(record_of(waiting), answers, ask, [(frozen, thawed)])
    assert row["truth_from"] == "the schedule asked for"
    # of 12 s, the requests of 2.02 s wait: evenly from 2.02 s down to the usual 20 ms
    assert row["true_p95_ms"] == pytest.approx(2020 - 600, abs=15)
    assert row["true_p99_ms"] == pytest.approx(2020 - 120, abs=15)
    assert row["truth_over_reported_p95"] == pytest.approx(71, abs=1)


def load_cell(peer, rate, repeat=0, *, inflation=0.1, cpu=0.4, **more):
    return {
        "kind": "load", "rate": rate, "peer": peer, "workers": 1, "repeat": repeat, "failed": None, "rate_rps": rate,
        "rate_of_offered": 1.0, "arrival_distance": 0.01, "moments_distance": 0.01, "arrival_noise": 0.02,
        "cpu_ms_per_request": cpu,
        "peak_pss_mb": 100.0, "send_lateness_p99_ms": 0.2, "tpot_inflation_p95_ms": 0.01, "errors": 0, "incomplete": 0,
        **{f"ttft_inflation_p{p}_ms": inflation * (p / 50) for p in (50, 95, 99)}, **more,
    }  # fmt: skip


def all_rates(**more):
    return [load_cell(OURS, rate, **more) for rate in (50, 200, 500, 1000, 2000)]


def judged(cells):
    return {v.target: v.met for v in verdicts(summarise(cells))}


def test_targets_are_met_not_met_or_not_measured():
    good = judged([*all_rates(), load_cell("locust", 50, inflation=1, cpu=1)])
    assert good["rate held within 1 % of the offered one"] is True
    assert good["TTFT inflation P50 better than every peer's at every rate"] is True
    assert good["two workers at 4000/s: rate within 1 % of the offered one"] is None
    assert good["freeze: truth/reported P95 from 0.97 to 1.03"] is None
    assert judged(all_rates()[:4])["rate held within 1 % of the offered one"] is None


@pytest.mark.parametrize(
    ("change", "target"),
    [
        ({"rate_of_offered": 0.985}, "rate held within 1 % of the offered one"),
        ({"send_lateness_p99_ms": 1.1}, "send lateness P99 ≤ 1 ms"),
        ({"ttft_inflation_p50_ms": 0.31}, "TTFT inflation P50 ≤ 0.3 ms"),
        ({"ttft_inflation_p99_ms": 2.1}, "TTFT inflation P99 ≤ 2 ms"),
        ({"tpot_inflation_p95_ms": -0.11}, "TPOT inflation P95 ≤ 0.1 ms"),
        ({"cpu": 1.1}, "CPU per request ≤ 1 ms, whole generator"),
        ({"peak_pss_mb": 151.0}, "memory ≤ 150 MB, whole generator"),
        ({"arrival_distance": 0.021}, "arrivals: Kolmogorov distance of the gaps ≤ 1.36/√n at all rates"),
        ({"moments_distance": 0.021}, "arrivals: Kolmogorov distance of the moments ≤ 1.36/√n at all rates"),
        ({"inflation": 1.5}, "TTFT inflation P95 better than every peer's at every rate"),
        ({"cpu": 0.9}, "CPU per request better than every peer's at every rate"),
    ],
)
def test_each_target_can_be_missed(change, target):
    peer = load_cell("locust", 500, inflation=1, cpu=0.8)
    assert judged([*all_rates(), peer])[target] is True
    assert judged([*all_rates(**change), peer])[target] is False


def test_the_median_of_the_repeats_decides_and_the_worst_is_shown():
    cells = [load_cell(OURS, 50, repeat, peak_pss_mb=mb) for repeat, mb in enumerate((90.0, 400.0, 100.0))]
    [row] = summarise(cells)
    assert (row["peak_pss_mb"], row["peak_pss_mb_worst"], row["repeats"]) == (100.0, 400.0, 3)


def test_rates_above_the_one_that_a_generator_fell_far_short_of_are_not_tried():
    cells = [
        load_cell("vllm", 500, rate_rps=410.0),
        load_cell("vllm", 1000, rate_rps=790.0),
        load_cell("locust", 500, failed="died"),
    ]
    assert too_slow(cells, "vllm") == 1000
    assert too_slow(cells, "locust") == 500
    assert too_slow(cells, OURS) is None


def test_results_can_be_shown_whatever_is_missing():
    cells = [
        load_cell(OURS, 50),
        {"kind": "load", "rate": 50, "peer": "vllm", "workers": 1, "failed": "ended with status 1"},
    ]
    summary = summarise(cells)
    host = {"cpu": "a CPU", "cores": 2, "kernel": "6", "python": "3.11"}
    facts = {"arrivals": "", "connections": "", "settings": ""}
    document = {
        "created": "2026-11-25T00:00:00", "host": host, "settings": {"seconds": 10}, "summary": summary,
        "peers": {OURS: {"version": "1", **facts}, "aiperf": {"unavailable": "no wheel", **facts}},
        "not_tried": {"50": {"aiperf": "not measured"}},
    }  # fmt: skip
    text = markdown(document, verdicts(summary))
    assert "ended with status 1" in text
    assert "no wheel" in text
    assert svg(summary).count("<polyline") == 4
    json.dumps(document)


def test_bodies_are_hashed_as_the_stub_hashes_them():
    assert fnv1a(b"") == "cbf29ce484222325"
    assert fnv1a(b"foobar") == "85944171f73967e8"


def test_cells_of_another_version_or_length_are_measured_again(tmp_path, monkeypatch):
    cells = tmp_path / "cells.jsonl"
    monkeypatch.setattr(run, "CELLS", cells)
    assert run.read_cells({OURS: "1"}, 10) == []
    done = [
        load_cell(OURS, 50, version="1", seconds=10),
        load_cell(OURS, 200, version="0", seconds=10),
        load_cell(OURS, 500, version="1", seconds=5),
        {**load_cell(OURS, 100, version="1", seconds=run.FREEZE_SECONDS), "kind": "freeze"},
        load_cell("vllm", 50, version="1", seconds=10),
    ]
    cells.write_text("".join(json.dumps(row) + "\n" for row in done), encoding="utf-8")
    assert [row["rate"] for row in run.read_cells({OURS: "1"}, 10)] == [50, 100]


def test_the_first_round_goes_up_and_every_cell_is_run_as_often_as_asked():
    cells = list(run.wanted([OURS, "vllm"], [50.0, 200.0], 3))
    first = [c.rate for c in cells if c.repeat == 0]
    assert first == sorted(first)
    assert len(cells) == len(set(cells)) == 3 * (2 * 2 + 2 + 1)
    assert {(c.rate, c.workers) for c in cells if c.workers != 1} == {(4000, 2)}
