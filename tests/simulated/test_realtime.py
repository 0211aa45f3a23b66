"""What runs by the wall clock is what runs in virtual time: on a clock of our own, to the nanosecond."""

import asyncio
import heapq
import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.engines.simulated import hardware
from harness.engines.simulated.law import Law, Settings
from harness.engines.simulated.prompts import Blocks, templated, words
from harness.engines.simulated.realtime import Replica
from harness.engines.simulated.replay import requests_of
from harness.engines.simulated.scheduler import Scheduler
from harness.engines.simulated.virtual import serve
from harness.engines.simulated.wire import Asked
from scenarios.traffic import Workload
from scenarios.words import Words, candidates
from scenarios.workload import hold

CONTEXT = 4096
VOCABULARY = Words(candidates(), exact=True)


class Clock:
    """An event loop's clock that jumps from one appointment to the next, each kept ``late_s`` too late."""

    def __init__(self, late_s=0.0):
        self.now, self.late_s = 0.0, late_s
        self._appointments = []
        self._ties = itertools.count()

    def time(self):
        return self.now

    def call_at(self, when, what, *arguments):
        heapq.heappush(self._appointments, (when, next(self._ties), what, arguments))

    def run(self):
        while self._appointments:
            when, _, what, arguments = heapq.heappop(self._appointments)
            self.now = max(self.now, when + self.late_s)
            what(*arguments)


class Stamped:
    def __init__(self, clock):
        self.clock, self.first_s, self.done_s, self.tokens, self.cached = clock, None, None, 0, None

    def give(self, tokens, *, last, cached_tokens):
        self.first_s = self.clock.now if self.first_s is None else self.first_s
        self.done_s = self.clock.now if last else None
        self.tokens += tokens
        self.cached = cached_tokens


def replica(law, places=512):
    rows = np.full(places, CONTEXT)
    scheduler = Scheduler(law.limits, law.steps, places, rows, known_blocks=200_000)
    return Replica(scheduler, Blocks(law.limits.block_tokens), places)


def law_of(name="h100", shape="8b", **knobs):
    return Law(Settings(**knobs), hardware.accelerator(name), hardware.model(shape), CONTEXT)


def submitted(clock, one, schedule, at=None, *, api="completions"):
    stamps = []
    for r in schedule.requests:
        stamps.append(Stamped(clock))
        tokens = templated([{"role": "user", "content": r.prompt}]) if api == "chat" else words(r.prompt)
        asked = Asked(tokens, r.output_tokens, chat=False, stream=True, with_usage=True)
        clock.call_at(at if at is not None else r.t_int_ns / 1e9, one.submit, asked, stamps[-1])
    return stamps


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    return made


def schedule_of(n=150, rate_rps=12.0, seed=5, **traffic):
    workload = Workload.model_validate(
        {
            "prompt_tokens": {"distribution": "lognormal", "mean": 700, "cv": 0.8, "max": 2500},
            "output_tokens": {"distribution": "lognormal", "mean": 40, "cv": 0.8, "max": 200},
            **traffic,
        }
    )
    return hold(workload, VOCABULARY, rate_rps=rate_rps, duration_s=n / rate_rps, seed=seed), workload


@pytest.mark.parametrize(
    ("knobs", "traffic"),
    [
        ({}, {}),
        ({"max_num_seqs": 4, "max_num_batched_tokens": 512}, {}),
        ({"max_num_batched_tokens": 4096, "enable_chunked_prefill": False}, {}),
        ({"block_size": 32}, {"shared_prefix": {"tokens": 512, "pool": 3, "reuse": 1.0}}),
        ({"block_size": 32}, {"api": "chat", "shared_prefix": {"tokens": 511, "pool": 3, "reuse": 1.0}}),
        ({"gpu_memory_utilization": 0.2, "max_num_seqs": 64, "max_num_batched_tokens": 2048}, {}),
    ],
    ids=["defaults", "a queue", "whole prompts", "shared prefixes", "a chat", "preemption"],
)
def test_the_wall_clock_gives_what_virtual_time_gives(clock, knobs, traffic):
    law = law_of(**knobs)
    schedule, workload = schedule_of(**traffic)
    one = replica(law)
    stamps = submitted(clock, one, schedule, api=workload.api)
    clock.run()
    expected = serve(law, requests_of(schedule, workload))
    np.testing.assert_allclose([s.first_s for s in stamps], expected.first_token_s, atol=1e-9)
    np.testing.assert_allclose([s.done_s for s in stamps], expected.done_s, atol=1e-9)
    assert [s.tokens for s in stamps] == [r.output_tokens for r in schedule.requests]
    counters = one.scheduler.counters
    assert (counters.preemptions, counters.prefix_hit_tokens) == (expected.preemptions, expected.prefix_hit_tokens)
    if knobs.get("gpu_memory_utilization"):
        assert counters.preemptions > 0
    if traffic:
        assert sum(s.cached for s in stamps) == counters.prefix_hit_tokens > 0


def test_lateness_does_not_add_up(clock):
    """Each step's end is served 2 ms late; the last token of two hundred steps is 2 ms late, too."""
    law = law_of()
    schedule, workload = schedule_of(n=1, rate_rps=0.5, output_tokens={"distribution": "fixed", "mean": 200})
    stamps = submitted(clock, replica(law), schedule)
    clock.late_s = 0.002
    clock.run()
    expected = serve(law, requests_of(schedule, workload))
    assert stamps
    for stamp, done_s in zip(stamps, expected.done_s, strict=True):
        assert 0.0019 < stamp.done_s - done_s < 0.0041  # it was sent late, too


@given(st.lists(st.tuples(st.integers(0, 149), st.floats(0, 14)), max_size=60))
@settings(max_examples=25, deadline=None)
def test_those_who_go_leave_nothing_behind(gone):
    """Whenever they go, waiting or running: all blocks are free at the end, all others have all their tokens."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(asyncio, "get_running_loop", lambda: clock)
        one = replica(law_of(max_num_seqs=8))
        schedule, _ = schedule_of()
        stamps, places = [], {}

        def submit(number, request):
            asked = Asked(words(request.prompt), request.output_tokens, chat=False, stream=True, with_usage=False)
            places[number] = one.submit(asked, stamps[number])

        def cancel(number):
            if number in places and stamps[number].done_s is None:
                one.cancel(places.pop(number))
                left.add(number)

        left = set()
        for number, r in enumerate(schedule.requests):
            stamps.append(Stamped(clock))
            clock.call_at(r.t_int_ns / 1e9, submit, number, r)
        for number, at_s in gone:
            if number < len(schedule.requests):
                clock.call_at(at_s, cancel, number)
        clock.run()
        counters = one.scheduler.counters
        assert (counters.running, counters.waiting, counters.blocks_used) == (0, 0, 0)
        for number, r in enumerate(schedule.requests):
            if number not in left:
                assert stamps[number].tokens == r.output_tokens


def test_nothing_is_computed_for_those_who_have_gone(clock):
    """A thousand tokens were asked for; whoever asked goes after a tenth of a second."""
    one = replica(law_of())
    asked = Asked(["word"] * 100, 1000, chat=False, stream=True, with_usage=False)
    place = one.submit(asked, Stamped(clock))
    clock.call_at(0.1, one.cancel, place)
    clock.run()
    assert one.scheduler.counters.steps < 30
    assert one.busy_s < 0.15


class TestBlocks:
    def test_equal_beginnings_have_equal_numbers_and_only_they(self):
        blocks = Blocks(4)
        a, b = (
            blocks.of(["a", "b", "c", "d", "e", "f", "g", "h", "i"]),
            blocks.of(["a", "b", "c", "d", "e", "f", "g", "x"]),
        )
        assert len(a) == len(b) == 2
        assert a[0] == b[0]
        assert a[1] != b[1]
        assert blocks.of(["e", "f", "g", "h"])[0] not in a, "the same words behind others are another block"

    @given(st.lists(st.lists(st.sampled_from("ab"), max_size=12), max_size=12))
    def test_a_block_is_its_whole_past(self, prompts):
        blocks, seen = Blocks(3), defaultdict(set)
        for prompt in prompts:
            for i, number in enumerate(blocks.of(prompt)):
                seen[number].add(tuple(prompt[: 3 * (i + 1)]))
        assert all(len(pasts) == 1 for pasts in seen.values())
        assert sorted(seen) == list(range(len(seen))), "numbers are dense"

    def test_when_all_numbers_are_given_out_nothing_new_is_shared(self, monkeypatch):
        from harness.engines.simulated import prompts

        monkeypatch.setattr(prompts, "MOST_KNOWN", 3)
        blocks = Blocks(1)
        assert blocks.of(["a", "b"]) == [0, 1]
        assert blocks.of(["a", "c", "d", "e"]) == [0, 2]
        assert blocks.of(["x"]) == []
        assert blocks.of(["a", "b"]) == [0, 1]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=7))
def test_a_conversation_that_goes_on_begins_with_what_it_was(lengths):
    said = [{"role": ("user", "assistant")[i % 2], "content": " w" * n} for i, n in enumerate(lengths)]
    for turns in range(1, len(said) + 1, 2):
        before = templated(said[:turns])
        assert templated(said[: turns + 2])[: len(before)] == before
        assert len(before) == sum(lengths[:turns]) + 4 * turns + 3
