"""Sessions, classes and shared prefixes: what a conversation holds, and that rates and shares are those asked."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scenarios.lengths import draw_lengths, mean_length
from scenarios.traffic import Lengths, Pauses, Workload
from scenarios.words import Words
from scenarios.workload import hold, ramp, sequence

seeds = st.integers(0, 2**32 - 1)
UNIFORM = {"distribution": "uniform", "min": 3, "max": 9}
TALK = {"turns": {"distribution": "uniform", "min": 1, "max": 5}, "think_time_s": {"mean": 2.0}}
sessions = st.builds(
    lambda most, pause: {"turns": {"distribution": "uniform", "min": 1, "max": most}, "think_time_s": pause},
    st.integers(1, 6),
    st.one_of(
        st.builds(lambda m: {"mean": m}, st.floats(0, 3)),
        st.builds(lambda m: {"distribution": "exponential", "mean": m}, st.floats(0.1, 3)),
        st.builds(
            lambda m, cv: {"distribution": "lognormal", "mean": m, "cv": cv}, st.floats(0.1, 3), st.floats(0.2, 2)
        ),
    ),
)
prefixes = st.builds(
    lambda tokens, pool, reuse: {"tokens": tokens, "pool": pool, "reuse": reuse},
    st.integers(1, 6),
    st.integers(1, 4),
    st.floats(0, 1),
)


def traffic(**changes):
    return {"prompt_tokens": UNIFORM, "output_tokens": UNIFORM, **changes}


plain = st.builds(lambda s, p: traffic(sessions=s, shared_prefix=p), st.one_of(st.none(), sessions), prefixes)
workloads = st.one_of(
    plain.map(Workload.model_validate),
    st.lists(st.tuples(plain, st.floats(0.1, 5)), min_size=1, max_size=3).map(
        lambda parts: Workload.model_validate(
            {"classes": [{"name": f"c{i}", "share": share, **part} for i, (part, share) in enumerate(parts)]}
        )
    ),
)


@given(workloads, st.floats(0.5, 20), seeds)
@settings(max_examples=40)
def test_same_seed_same_bytes(words, workload, rate_rps, seed):
    first, second = (hold(workload, words, rate_rps=rate_rps, duration_s=4, seed=seed) for _ in range(2))
    assert first == second
    assert first.digest == second.digest


@given(workloads, st.floats(0.5, 20), seeds, st.floats(1, 4))
@settings(max_examples=40)
def test_a_longer_hold_begins_with_the_shorter_one(words, workload, rate_rps, seed, short_s):
    short = hold(workload, words, rate_rps=rate_rps, duration_s=short_s, seed=seed).requests
    long = hold(workload, words, rate_rps=rate_rps, duration_s=6, seed=seed).requests
    assert long[: len(short)] == short


@given(workloads, st.floats(0.5, 20), st.floats(0.5, 20), seeds)
@settings(max_examples=40)
def test_at_any_rate_conversations_have_the_same_texts_and_pauses(words, workload, rate_a, rate_b, seed):
    """Those that begin within both schedules: the first of a class at one rate is the first of it at another."""
    held = [hold(workload, words, rate_rps=r, duration_s=30 / r, seed=seed).requests for r in (rate_a, rate_b)]
    openings = [[(r.traffic_class, r.messages) for r in requests if r.turn == 0] for requests in held]
    assert openings[0] == openings[1]


@given(workloads, st.floats(0.5, 20), seeds)
@settings(max_examples=40)
def test_a_turn_is_the_whole_history_and_a_question(words, workload, rate_rps, seed):
    requests = hold(workload, words, rate_rps=rate_rps, duration_s=5, seed=seed).requests
    last = {}
    for r in requests:
        assert len(r.messages) == 2 * r.turn + 1
        assert [len(m.split()) for m in r.messages][1::2] == [
            len(m.split()) for m in r.messages[1::2] if 3 <= len(m.split()) <= 9
        ]
        assert r.prompt.count(" ") == r.prompt_tokens
        assert r.prompt_tokens + r.output_tokens <= workload.longest_tokens
        if r.turn == 0 or r.session not in last:
            assert (r.after, r.think_ns) == (None, 0)
        else:
            before = requests[r.after]
            assert before is last[r.session]
            assert r.messages[: len(before.messages)] == before.messages
            assert len(r.messages[-2].split()) == before.output_tokens
            assert r.t_int_ns - before.t_int_ns == pytest.approx(r.think_ns, abs=2)
        last[r.session] = r
    times = [r.t_int_ns for r in requests]
    assert times == sorted(times)
    assert [r.index for r in requests] == list(range(len(requests)))


@given(workloads, seeds)
@settings(max_examples=25)
def test_a_sequence_has_the_conversations_in_order(words, workload, seed):
    requests = sequence(workload, words, n=25, seed=seed).requests
    assert len(requests) == 25
    assert all(r.after is None and r.t_int_ns == 0 for r in requests)
    for session, turns in itertools.groupby(requests, key=lambda r: r.session):
        if session is not None:
            assert [r.turn for r in turns] == list(range(len([r for r in requests if r.session == session])))


def test_the_rate_is_of_requests_from_the_first_second_on():
    """400 seeds: turns of earlier conversations make up for those that have not begun yet. 4.5 standard errors."""
    workload = Workload.model_validate(
        traffic(sessions={"turns": {"distribution": "uniform", "min": 1, "max": 5}, "think_time_s": {"mean": 3.0}})
    )
    words = Words(("a", "b"), exact=True)
    counts = np.array(
        [
            np.histogram(
                [r.t_int_ns / 1e9 for r in hold(workload, words, rate_rps=4, duration_s=8, seed=s).requests], 4, (0, 8)
            )[0]
            for s in range(400)
        ]
    )
    error = counts.std(axis=0) / np.sqrt(len(counts))
    assert np.all(np.abs(counts.mean(axis=0) - 8) < 4.5 * error)


def test_a_ramp_of_sessions_begins_at_its_start_rate():
    workload = Workload.model_validate(traffic(sessions=TALK))
    words = Words(("a", "b"), exact=True)
    early = [
        sum(r.t_int_ns < 2e9 for r in ramp(workload, words, start_rps=4, end_rps=32, duration_s=20, seed=s).requests)
        for s in range(300)
    ]
    growth = np.log(8) / 20
    # Later turns are of sessions that began 2, 4, … s earlier, when the rate was start_rps: below the integral.
    assert np.mean(early) + 4 * np.std(early) / np.sqrt(300) >= 4 * 2
    assert np.mean(early) - 4 * np.std(early) / np.sqrt(300) <= 4 * np.expm1(growth * 2) / growth


MIX = {
    "classes": [
        {"name": "chat", "share": 3, **traffic(sessions=TALK)},
        {"name": "batch", "share": 1, **traffic(prompt_tokens={"mean": 20.0})},
    ]
}


def test_each_class_has_its_share_of_the_requests():
    """Over 200 seeds, within 4.5 standard errors of 3 : 1, though only starts are drawn."""
    workload = Workload.model_validate(MIX)
    words = Words(("a", "b"), exact=True)
    shares = []
    for seed in range(200):
        requests = hold(workload, words, rate_rps=10, duration_s=20, seed=seed).requests
        shares.append(sum(r.traffic_class == "chat" for r in requests) - 0.75 * len(requests))
    assert abs(np.mean(shares)) < 4.5 * np.std(shares) / np.sqrt(len(shares))


def test_another_class_changes_no_text_of_the_first(words):
    alone = Workload.model_validate({"classes": MIX["classes"][:1]})
    both = Workload.model_validate(MIX)
    only, mixed = (
        [r.messages for r in sequence(w, words, n=200, seed=5).requests if r.traffic_class == "chat"]
        for w in (alone, both)
    )
    assert mixed == only[: len(mixed)]


def test_longer_answers_change_no_question(words):
    short, long = (
        sequence(Workload.model_validate(traffic(sessions=TALK, output_tokens={"mean": n})), words, n=60, seed=5)
        for n in (3.0, 8.0)
    )
    assert [r.messages[::2] for r in short.requests] == [r.messages[::2] for r in long.requests]


def test_evenly_the_classes_take_turns(words):
    requests = sequence(Workload.model_validate(MIX), words, n=60, seed=5, evenly=True).requests
    starts = [r.traffic_class for r in requests if r.turn == 0]
    assert starts[:6] == ["chat", "batch"] * 3


def test_a_share_of_prompts_begins_with_one_of_the_pool(words):
    def opened(**prefix):
        workload = Workload.model_validate(traffic(shared_prefix={"tokens": 7, **prefix}))
        return [tuple(r.prompt.split()[:7]) for r in sequence(workload, words, n=2000, seed=1).requests]

    heads = opened(pool=4, reuse=0.6)
    counts = sorted((heads.count(h) for h in set(heads) if heads.count(h) > 1), reverse=True)
    assert len(counts) == 4
    assert stats.binomtest(sum(counts), 2000, 0.6).pvalue > 1e-4
    assert stats.chisquare(counts).pvalue > 1e-4
    assert len(set(opened(pool=4, reuse=0.0))) == 2000
    more = opened(pool=4, reuse=0.9)
    assert all(b == a for a, b in zip(heads, more, strict=True) if heads.count(a) > 1)


def test_the_old_key_is_a_pool_of_one(words):
    old, new = (
        sequence(Workload.model_validate(traffic(**keys)), words, n=20, seed=1)
        for keys in ({"shared_prefix_tokens": 5}, {"shared_prefix": {"tokens": 5}})
    )
    assert old.digest == new.digest


def test_the_tokens_of_a_template_are_part_of_the_length(words):
    chat = Words(words.words, exact=True, first_extra_tokens=4, turn_extra_tokens=2)
    workload = Workload.model_validate(
        {
            "api": "chat",
            "prompt_tokens": {"mean": 10.0},
            "output_tokens": {"mean": 3.0},
            "shared_prefix_tokens": 5,
            "sessions": {"turns": {"mean": 3.0}},
        }
    )
    first, second, third = sequence(workload, chat, n=3, seed=1).requests
    assert [len(m.split()) for m in third.messages] == [5 + 6, 3, 8, 3, 8]
    assert [r.prompt_tokens for r in (first, second, third)] == [15, 28, 41]


def test_a_prompt_shorter_than_its_template_still_has_a_word_and_says_its_length(words):
    chat = Words(words.words, exact=True, first_extra_tokens=30)
    workload = Workload.model_validate({"prompt_tokens": {"mean": 10.0}, "output_tokens": {"mean": 3.0}})
    (only,) = sequence(workload, chat, n=1, seed=1).requests
    assert (len(only.prompt.split()), only.prompt_tokens) == (1, 31)


@given(
    st.one_of(
        st.builds(lambda m: Lengths(mean=m), st.floats(1, 30)),
        st.builds(lambda a, b: Lengths(distribution="uniform", min=a, max=a + b), st.integers(1, 9), st.integers(0, 9)),
        st.builds(
            lambda d, m, cv, cut: Lengths(distribution=d, mean=m, cv=cv, max=int(m) + 1 + cut),
            st.sampled_from(["normal", "lognormal"]),
            st.floats(1, 20),
            st.floats(0.1, 2),
            st.integers(0, 60),
        ),
        st.builds(
            lambda v: Lengths(distribution="empirical", values=v, min=2), st.lists(st.integers(1, 30), min_size=1)
        ),
    )
)
@settings(max_examples=60)
def test_the_mean_of_a_distribution_is_that_of_its_draws(lengths):
    drawn = np.array(draw_lengths(lengths, np.random.default_rng(1), 20_000))
    rare = 8 * (lengths.longest - lengths.min + 1e-9) / len(drawn)  # what is too rare to have been drawn
    assert abs(drawn.mean() - mean_length(lengths)) <= 5.5 * drawn.std() / np.sqrt(len(drawn)) + rare


def test_empirical_lengths_have_the_frequencies_of_their_values():
    drawn = draw_lengths(Lengths(distribution="empirical", values=(1, 1, 5)), np.random.default_rng(1), 3000)
    assert set(drawn) == {1, 5}
    assert stats.binomtest(drawn.count(1), 3000, 2 / 3).pvalue > 1e-4


@pytest.mark.parametrize(
    "pauses", [Pauses(distribution="exponential", mean=2.0), Pauses(distribution="lognormal", mean=2.0, cv=0.5)]
)
def test_pauses_have_their_mean_and_end(pauses):
    workload = Workload.model_validate(
        traffic(sessions={"turns": {"mean": 2.0}, "think_time_s": pauses.model_dump()}, prompt_tokens={"mean": 1.0})
    )
    requests = hold(workload, Words(("a",), exact=True), rate_rps=20, duration_s=200, seed=1).requests
    thought = np.array([r.think_ns / 1e9 for r in requests if r.after is not None])
    assert thought.mean() == pytest.approx(2.0, rel=0.08)
    assert thought.max() <= pauses.longest


def test_conversations_of_many_turns_come_at_the_times_of_the_process(words):
    """Kolmogorov-Smirnov of the starts' gaps at 5 %, 120 seeds: within the binomial 99.9 % bound."""
    workload = Workload.model_validate(traffic(sessions=TALK))
    rejected = 0
    for seed in range(120):
        requests = hold(workload, words, rate_rps=9, duration_s=30, seed=seed).requests
        starts = np.array([r.t_int_ns / 1e9 for r in requests if r.turn == 0])
        rejected += stats.kstest(np.diff([0, *starts]) * 3, "expon").pvalue < 0.05
    assert rejected <= stats.binom.ppf(0.999, 120, 0.05)
