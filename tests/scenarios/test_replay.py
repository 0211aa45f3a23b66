"""The part of a trace that is replayed, and the schedules made of it."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scenarios.errors import TraceError
from scenarios.replay import replay
from scenarios.traffic import TraceFile, Workload
from scenarios.workload import hold, ramp, sequence

SAMPLES = Path(__file__).parent / "traces"
AMPLE = {"max_prompt_tokens": 2000, "max_output_tokens": 100}


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """300 sessions of one to five turns within 600 s, made here: BurstGPT with sessions."""
    rng = np.random.default_rng(3)
    turns = [
        (start + 20.0 * k, f"s{n}", 1.5, int(rng.integers(5, 40)) + 30 * k, int(rng.integers(1, 9)))
        for n, start in enumerate(np.sort(rng.uniform(0, 500, 300)))
        for k in range(rng.integers(1, 6))
    ]
    file = tmp_path_factory.mktemp("trace") / "sessions.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["Timestamp", "Session ID", "Elapsed time", "Request tokens", "Response tokens"])
        writer.writerows(sorted(turns))
    return str(file)


@pytest.fixture
def trace_of(recorded):
    return lambda **changes: TraceFile.model_validate({"file": recorded, "format": "burstgpt", **AMPLE, **changes})


@pytest.fixture
def workload_of_trace(trace_of):
    def make(process="trace", **changes):
        arrivals = {"process": process}
        return Workload.model_validate({"arrivals": arrivals, "trace": trace_of(**changes).model_dump()})

    return make


def sample(name, kind, **changes):
    return TraceFile.model_validate({"file": str(SAMPLES / name), "format": kind, **AMPLE, **changes})


def due_s(schedule):
    return np.array([r.t_int_ns / 1e9 for r in schedule.requests])


def test_at_its_own_rate_the_times_are_those_of_the_file(words, workload_of_trace, trace_of):
    whole = replay(trace_of())
    schedule = hold(workload_of_trace(), words, rate_rps=whole.rate_rps, duration_s=whole.seconds, seed=1)
    asked = np.sort([t.at_s for turns in whole.sessions for t in turns])
    assert np.abs(due_s(schedule) - asked).max() < 1e-6
    assert sorted(r.output_tokens for r in schedule.requests) == sorted(
        t.output_tokens for turns in whole.sessions for t in turns
    )


@given(rate_rps=st.floats(0.5, 50))
@settings(max_examples=15)
def test_another_rate_stretches_the_whole_clock(words, recorded, rate_rps):
    workload = Workload.model_validate(
        {"arrivals": {"process": "trace"}, "trace": {"file": recorded, "format": "burstgpt", **AMPLE}}
    )
    own = replay(workload.trace).rate_rps
    exact = hold(workload, words, rate_rps=own, duration_s=100, seed=1).requests
    scaled = hold(workload, words, rate_rps=rate_rps, duration_s=100 * own / rate_rps, seed=1).requests
    assert [r.messages for r in exact] == [r.messages for r in scaled]
    for one, other in zip(exact, scaled, strict=True):
        assert one.t_int_ns * own == pytest.approx(other.t_int_ns * rate_rps, abs=own + rate_rps)
        assert one.think_ns * own == pytest.approx(other.think_ns * rate_rps, abs=own + rate_rps)


def test_time_scale_multiplies_every_gap(trace_of):
    plain, slow = replay(trace_of()), replay(trace_of(time_scale=2.5))
    for one, other in zip(plain.sessions, slow.sessions, strict=True):
        assert [2.5 * t.at_s for t in one] == pytest.approx([t.at_s for t in other])
    assert plain.rate_rps == pytest.approx(2.5 * slow.rate_rps)


def test_a_window_has_the_requests_due_in_it_and_no_others(trace_of):
    whole, window = replay(trace_of()), replay(trace_of(start_s=100, seconds=50))
    inside = sorted(t.at_s - 100 for turns in whole.sessions for t in turns if 100 <= t.at_s < 150)
    assert sorted(t.at_s for turns in window.sessions for t in turns) == pytest.approx(inside)
    assert window.rate_rps == len(inside) / 50


def test_an_empty_window_is_refused(trace_of):
    with pytest.raises(TraceError, match=r"no request in the window from 9000 s: its last is at \d+"):
        replay(trace_of(start_s=9000))


@given(a=st.floats(0.01, 1), b=st.floats(0.01, 1))
@settings(max_examples=30)
def test_thinning_keeps_whole_sessions_meets_the_share_and_is_nested(recorded, a, b):
    whole = replay(TraceFile(file=recorded, format="burstgpt"))
    fewer, more = whole.thinned(min(a, b)), whole.thinned(max(a, b))
    assert not np.any(fewer & ~more)
    sizes = np.array([len(turns) for turns in whole.sessions])
    assert 0 <= sizes[fewer].sum() - min(a, b) * whole.requests < sizes.max()


def test_what_is_kept_is_the_same_in_every_process(trace_of):
    kept = replay(trace_of(keep=0.3)).sessions
    replay.cache_clear()
    assert replay(trace_of(keep=0.3)).sessions == kept


def test_keep_never_splits_a_session(trace_of):
    whole, kept = replay(trace_of()), replay(trace_of(keep=0.3))
    assert set(kept.sessions) < set(whole.sessions)
    assert kept.seconds == whole.seconds
    assert kept.requests / whole.requests == pytest.approx(0.3, abs=5 / whole.requests)
    assert replay(trace_of(keep=0.3, seed=1)).sessions != kept.sessions


def test_thinned_to_a_rate_the_sessions_keep_their_times_and_texts(words, workload_of_trace, trace_of):
    whole = replay(trace_of())
    half = whole.rate_rps / 2
    full = hold(workload_of_trace(fit="thin"), words, rate_rps=whole.rate_rps, duration_s=whole.seconds, seed=1)
    thin = hold(workload_of_trace(fit="thin"), words, rate_rps=half, duration_s=whole.seconds, seed=1)
    assert {(r.t_int_ns, r.messages) for r in thin.requests} < {(r.t_int_ns, r.messages) for r in full.requests}
    assert len(thin.requests) / whole.seconds == pytest.approx(half, rel=0.01)


def test_beyond_its_own_rate_a_thinned_trace_runs_faster(words, workload_of_trace, trace_of):
    double = 2 * replay(trace_of()).rate_rps
    thin, time = (
        hold(workload_of_trace(fit=fit), words, rate_rps=double, duration_s=60, seed=1) for fit in ("thin", "time")
    )
    assert thin.requests == time.requests


def test_after_its_end_the_window_is_read_again_with_other_words(words, trace_of):
    workload = Workload(arrivals={"process": "trace"}, trace=sample("azure.csv", "azure"))
    own = replay(workload.trace)
    requests = hold(workload, words, rate_rps=own.rate_rps, duration_s=3 * own.seconds, seed=1).requests
    assert [r.prompt_tokens for r in requests] == [350, 96, 12, 900] * 3
    assert len({r.prompt for r in requests}) == len(requests)


def test_begin_anywhere_gives_each_seed_its_place_and_keeps_the_gaps(words, workload_of_trace, trace_of):
    whole = replay(trace_of(begin="anywhere"))
    at = {
        seed: due_s(hold(workload_of_trace(begin="anywhere"), words, rate_rps=whole.rate_rps, duration_s=60, seed=seed))
        for seed in range(6)
    }
    assert len({times[0] for times in at.values()}) == 6
    two_laps = np.sort([t.at_s + lap * whole.seconds for turns in whole.sessions for t in turns for lap in (0, 1)])
    for seed, times in at.items():
        assert np.abs(np.min(np.abs(two_laps[:, None] - whole.offset_s(seed) - times), axis=0)).max() < 1e-6


def test_a_ramp_of_a_trace_brings_its_requests_in_order_on_a_stretched_clock(words, workload_of_trace, trace_of):
    own = replay(trace_of()).rate_rps
    ramped = ramp(workload_of_trace(), words, start_rps=1, end_rps=8, duration_s=60, seed=1).requests
    held = hold(workload_of_trace(), words, rate_rps=own, duration_s=250 / own, seed=1).requests
    assert len(ramped) > 100
    assert [r.messages for r in ramped[:100]] == [r.messages for r in held[:100]]
    growth = np.log(8) / 60
    for r, h in zip(ramped[:100], held, strict=False):
        assert np.expm1(growth * r.t_int_ns / 1e9) / growth == pytest.approx(h.t_int_ns / 1e9 * own, abs=1e-6)


def test_turns_follow_the_answer_where_the_trace_says_how_long_it_took(words, workload_of_trace, trace_of):
    own = replay(trace_of()).rate_rps
    requests = hold(workload_of_trace(), words, rate_rps=own, duration_s=300, seed=1).requests
    later = [r for r in requests if r.after is not None]
    assert later
    for r in later:
        before = requests[r.after]
        assert (before.session, before.turn) == (r.session, r.turn - 1)
        assert r.think_ns == pytest.approx(18.5e9, abs=2)  # 20 s apart, the answer took 1.5


def test_without_that_they_come_at_their_recorded_times(words, tmp_path):
    file = tmp_path / "sessions.csv"
    file.write_text("Timestamp,Session ID,Request tokens,Response tokens\n0,a,5,3\n4,a,20,3\n9,b,5,3\n")
    workload = Workload(
        arrivals={"process": "trace"}, trace=TraceFile(file=str(file), format="burstgpt", seconds=10, **AMPLE)
    )
    requests = hold(workload, words, rate_rps=0.3, duration_s=10, seed=1).requests
    assert [(r.t_int_ns, r.session, r.turn, r.after) for r in requests] == [
        (0, 0, 0, None),
        (4 * 10**9, 0, 1, None),
        (9 * 10**9, 1, 0, None),
    ]


def test_a_prompt_longer_than_what_was_said_goes_on_from_it(words, tmp_path):
    file = tmp_path / "sessions.csv"
    file.write_text("Timestamp,Session ID,Request tokens,Response tokens\n0,a,5,3\n1,a,20,3\n2,a,7,2\n")
    workload = Workload(
        arrivals={"process": "trace"}, trace=TraceFile(file=str(file), format="burstgpt", seconds=3, **AMPLE)
    )
    first, second, third = hold(workload, words, rate_rps=1, duration_s=3, seed=1).requests
    assert [len(m.split()) for m in second.messages] == [5, 3, 12]
    assert second.messages[0] == first.messages[0]
    assert [len(m.split()) for m in third.messages] == [7]


def test_equal_blocks_have_equal_words_and_others_do_not(words):
    workload = Workload(arrivals={"process": "trace"}, trace=sample("mooncake.jsonl", "mooncake"))
    requests = hold(workload, words, rate_rps=replay(workload.trace).rate_rps, duration_s=3.1, seed=1).requests
    a, b, c, d = ([*r.prompt.split()] for r in requests)
    assert [len(x) for x in (a, b, c, d)] == [1100, 1300, 600, 512]
    assert a[:1024] == b[:1024]
    assert a[1024:1100] != b[1024:1100]
    assert a[:512] == c[:512] != d
    assert a[512:600] != c[512:600]


@given(scale=st.floats(0.01, 1))
@settings(max_examples=25)
def test_scaled_lengths_share_as_large_a_part_of_their_prefix(words, scale):
    spec = sample("mooncake.jsonl", "mooncake", length_scale=scale)
    workload = Workload(arrivals={"process": "trace"}, trace=spec)
    own = replay(spec).rate_rps
    a, b, *_ = (r.prompt.split() for r in hold(workload, words, rate_rps=own, duration_s=3.1, seed=1).requests)
    by_size = sorted((a, b), key=len)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*by_size, strict=False)))
    assert shared >= min(round(1024 * scale), len(by_size[0]))


def test_longer_requests_are_cut_and_counted(words):
    spec = sample("azure.csv", "azure", max_prompt_tokens=100, max_output_tokens=10)
    requests = hold(
        Workload(arrivals={"process": "trace"}, trace=spec), words, rate_rps=1, duration_s=4, seed=1
    ).requests
    assert [(r.prompt_tokens, r.output_tokens) for r in requests[:4]] == [(100, 10), (96, 9), (12, 10), (100, 3)]
    assert replay(spec).shortened == 2


def test_real_texts_are_sent_as_they_are_with_their_history(words):
    workload = Workload(api="chat", trace=sample("sharegpt.json", "sharegpt"), sessions={"think_time_s": {"mean": 2.0}})
    requests = sequence(workload, words, n=3, seed=1).requests
    said = {r.messages for r in requests}
    assert ("Answer in one word.\n\nTwo plus two?",) in said
    long = next(r for r in requests if r.turn == 1)
    assert long.messages[0] == "What is a busy period?"
    assert long.messages[2] == "And an idle one — 空闲?"


def test_real_texts_are_counted_by_the_tokenizer_and_end_before_they_are_too_long(words):
    counting = words.__class__(words.words, exact=True, count=lambda text: len(text.split()))
    spec = sample("sharegpt.json", "sharegpt", max_prompt_tokens=20)
    workload = Workload(api="chat", trace=spec)
    found = {(r.prompt_tokens, r.output_tokens) for r in sequence(workload, counting, n=3, seed=1).requests}
    assert found == {(5, 17), (7, 1)}  # the second turn would need 5 + 17 + 6 tokens


def test_a_trace_without_times_comes_as_asked_and_each_seed_begins_elsewhere(words, workload_of_trace):
    workload = workload_of_trace("poisson")
    schedules = [hold(workload, words, rate_rps=20, duration_s=30, seed=seed) for seed in range(4)]
    assert len({s.requests[0].output_tokens + s.requests[0].prompt_tokens for s in schedules}) > 1


def test_a_kolmogorov_test_tells_a_trace_from_another_process(words, workload_of_trace, trace_of):
    """Within sampling noise of its own gaps, beyond it of exponential ones (its sessions have turns 20 s apart)."""
    whole = replay(trace_of())
    times = due_s(hold(workload_of_trace(), words, rate_rps=whole.rate_rps, duration_s=whole.seconds, seed=1))
    own = np.sort([t.at_s for turns in whole.sessions for t in turns])
    assert stats.ks_2samp(np.diff(times), np.diff(own), method="asymp").statistic <= 1.36 / np.sqrt(len(own))
