"""Two clients on one server: who is found to be off, and by how much, where that is known."""

import json
import math

import agreement
import numpy as np
import pytest
import vllm_bench
from agreement import OURS, THEIRS

from scenarios.words import candidates
from scenarios.workload import Words, hold

DUE_S = [0.0, 0.5, 0.8]


def result(late_s=(0.0, 0.0, 0.0)):
    return {
        "start_times": [1000.0 + due + late for due, late in zip(DUE_S, late_s, strict=True)],
        "ttfts": [0.1, 0.1, 0.4],
        "latencies": [0.4, 0.4, 1.0],
        "output_lens": [4, 4, 4],
    }


def test_what_vllm_bench_says():
    says = agreement.figures(agreement.theirs(result(), DUE_S), since_due=False)
    assert says["ttft_mean_ms"] == pytest.approx(200)
    assert (says["ttft_p50_ms"], says["ttft_p95_ms"]) == pytest.approx((100, 400))
    assert says["tpot_mean_ms"] == pytest.approx((100 + 100 + 200) / 3)
    assert says["output_tps"] == pytest.approx(12 / 1.8)


def test_its_lateness_is_not_in_its_ttft_and_is_in_ours():
    late = agreement.theirs(result(late_s=(0.01, 0.01, 0.21)), DUE_S)
    assert late.late_ms == pytest.approx([0, 0, 200], abs=1e-6)  # its promptest request counts as on time
    assert agreement.figures(late, since_due=False)["ttft_p95_ms"] == pytest.approx(400)
    assert agreement.figures(late, since_due=True)["ttft_p95_ms"] == pytest.approx(600)


def test_what_the_server_says_is_of_the_requests_between_two_looks():
    names = ("time_to_first_token_seconds", "request_time_per_output_token_seconds")
    names += ("e2e_request_latency_seconds", "request_queue_time_seconds")
    counters = {"prompt_tokens_total": 0.0, "prefix_cache_hits_total": 0.0}
    before = {**counters, **{f"{n}_count": 2.0 for n in names}, **{f"{n}_sum": 9.0 for n in names}}
    after = {**counters, **{f"{n}_count": 6.0 for n in names}, **{f"{n}_sum": 9.2 for n in names}}
    seen = agreement.server(before, after)
    assert (seen["requests"], seen["ttft_mean_ms"], seen["e2e_mean_ms"]) == (4, pytest.approx(50), pytest.approx(50))


def runs(our_bias, *, drift=1.0, of_server=1.0, noise=0.0, n=6):
    """Rounds whose truth is known: ``drift`` from run to run, ``of_server`` slower under our client."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(n):
        outer, middle = (OURS, THEIRS) if number % 2 else (THEIRS, OURS)
        for place, client in enumerate((outer, middle, outer)):
            true_ms = 50 * drift**place * (of_server if client == OURS else 1) * math.exp(noise * rng.standard_normal())
            says = dict.fromkeys(agreement.FIGURES, true_ms * (our_bias if client == OURS else 1))
            server = {**dict.fromkeys(agreement.BY_SERVER.values(), true_ms), "prompt_tokens": 480, "cached_tokens": 0}
            found.append(
                {"round": number, "place": place, "client": client, "client_says": says, "server_says": server}
            )
    return found


def test_a_drift_of_the_machine_is_no_difference_of_the_clients():
    told = agreement.ratio(runs(1.0, drift=1.2), "client_says", "ttft_mean_ms")
    assert (told.value, told.low, told.high) == pytest.approx((1, 1, 1))
    assert agreement.same_client(runs(1.0, drift=1.2), "client_says", "ttft_mean_ms") == pytest.approx(0.44)


@pytest.mark.parametrize(("bias", "agree"), [(1.0, True), (1.1, False), (0.9, False)])
def test_a_client_that_is_off_is_found(bias, agree):
    told = agreement.ratio(runs(bias, noise=0.002), "client_says", "ttft_mean_ms")
    assert told.low < bias < told.high
    assert told.agree is agree


def test_where_runs_differ_more_than_the_clients_nothing_is_claimed():
    found = runs(1.0, noise=0.1)
    assert agreement.ratio(found, "client_says", "ttft_mean_ms").agree is None
    assert agreement.same_client(found, "client_says", "ttft_mean_ms") > agreement.AGREE
    # The server saw the same noise: held against it, they do agree.
    assert agreement.beside_server(found, "ttft_mean_ms").agree is True


def test_a_server_that_is_slower_under_one_client_is_not_that_clients_error():
    found = runs(1.0, of_server=1.2)
    assert agreement.ratio(found, "client_says", "ttft_mean_ms").value == pytest.approx(1.2)
    assert agreement.beside_server(found, "ttft_mean_ms").value == pytest.approx(1)


def test_a_round_that_was_cut_short_is_left_out():
    assert len(agreement.rounds(runs(1.0)[:-1])) == 5


def test_both_clients_read_the_same_times(tmp_path):
    due_s = vllm_bench.schedule(5.0, 40, seed=3)
    ask = vllm_bench.Ask("low", 5.0, due_s, tmp_path / "trace.jsonl", seed=7)
    vllm_bench.write_trace(ask.trace, due_s)
    rows = [json.loads(line) for line in ask.trace.read_text().splitlines()]
    assert [row["timestamp"] * 0.001 for row in rows] == pytest.approx(due_s, abs=1e-9)  # as vLLM reads them
    words = Words.build(candidates(), None)
    ours = hold(vllm_bench.replaying(ask).workload, words, rate_rps=5.0, duration_s=ask.seconds, seed=7).requests
    assert [r.t_int_ns / 1e9 for r in ours] == pytest.approx(due_s, abs=1e-9)
    assert {(r.prompt_tokens, r.output_tokens) for r in ours} == {(48, 16)}
    assert len({r.prompt for r in ours}) == 40
    assert due_s[0] == 0
    assert ask.seconds == pytest.approx(8)


@pytest.mark.parametrize("file", [vllm_bench.FILE, vllm_bench.REALTIME_FILE])
def test_the_committed_page_tells_what_was_measured(file):
    found = vllm_bench.RESULTS / file
    assert agreement.page(json.loads(found.read_text())) == found.with_suffix(".md").read_text()
