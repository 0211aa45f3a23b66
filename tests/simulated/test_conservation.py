"""Laws that hold for every schedule and every setting: nothing is lost, nothing is taken twice, nobody idles."""

import importlib
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harness.engines
from harness.engines.simulated import virtual
from harness.engines.simulated.compiled import IS_COMPILED
from harness.engines.simulated.core import (
    COMPUTED,
    FRONT,
    GENERATED,
    OUTPUT,
    PREFIX,
    PREFIX_TOKENS,
    PROMPT,
    RUNNING,
    WAITING,
    Limits,
    fits,
)
from harness.engines.simulated.paged import AFTER, BEFORE, ENTRY, FOUND, FREE, HOLDERS, TAKEN
from harness.engines.simulated.scheduler import Scheduler
from harness.engines.simulated.steps import TOKENS, StepLaw
from harness.engines.simulated.virtual import Requests, serve

PREFIXES = 3


class Bench:
    """A law that is nothing but numbers."""

    def __init__(self, limits, steps, replicas=1):
        self.limits, self.steps, self.replicas = limits, steps, replicas


@st.composite
def laws(draw, *, speculation=True, replicas=3):
    """Small machines: few blocks, few seats, so that queues, evictions and preemptions happen."""
    seats = draw(st.integers(1, 5))
    limits = Limits(
        max_num_seqs=seats,
        max_num_batched_tokens=draw(st.integers(seats, 40)),
        blocks=draw(st.integers(4, 30)),
        block_tokens=draw(st.sampled_from([1, 2, 4, 7])),
        context_tokens=draw(st.integers(10, 80)),
        chunked_prefill=draw(st.booleans()),
        prefix_caching=draw(st.booleans()),
        draft_tokens=draw(st.integers(0, 4)) if speculation else 0,
    )
    steps = StepLaw(
        overhead_s=draw(st.floats(0.01, 1)),
        token_s=draw(st.floats(0, 0.1)),
        context_s=draw(st.floats(0, 0.01)),
        pair_s=draw(st.floats(0, 0.01)),
        largest_graph=draw(st.sampled_from([0, 8])),
        launch_s=draw(st.floats(0, 0.5)),
        acceptance=draw(st.floats(0, 1)),
        acceptance_drop=0.3,
    )
    return Bench(limits, steps, draw(st.integers(1, replicas)))


@st.composite
def schedules(draw):
    n = draw(st.integers(1, 25))
    numbers = st.integers

    def column(values):
        return np.array(draw(st.lists(values, min_size=n, max_size=n)), np.int64)

    gaps = draw(st.lists(st.sampled_from([0.0, 0.0, 0.3, 1.7, 30.0]), min_size=n, max_size=n))
    return Requests(
        np.cumsum(gaps),
        column(numbers(1, 45)),
        column(numbers(1, 25)),
        column(numbers(-1, PREFIXES - 1)),
        column(numbers(0, 60)),
    )


def served_at_all(law, requests):
    return np.array(
        [fits(law.limits, p, o) for p, o in zip(requests.prompt_tokens, requests.output_tokens, strict=True)], bool
    )


@given(laws(), schedules())
def test_tokens_in_are_tokens_out_and_no_block_is_lost(law, requests):
    served = serve(law, requests)
    good = served_at_all(law, requests)
    assert np.array_equal(np.isfinite(served.done_s), good)
    assert np.array_equal(np.isfinite(served.first_token_s), good)
    kept = int((requests.prompt_tokens + requests.output_tokens - 1)[good].sum())
    refused = served.drafted_tokens - served.accepted_tokens
    assert served.computed_tokens + served.prefix_hit_tokens == kept + served.lost_tokens + refused
    assert served.kv_blocks_peak <= served.kv_blocks == law.limits.blocks
    assert served.kv_blocks_free_at_end == law.replicas * law.limits.blocks
    assert (served.first_token_s[good] > requests.arrival_s[good]).all()
    assert (served.done_s[good] >= served.first_token_s[good]).all()


@given(laws(replicas=1), schedules())
def test_every_step_keeps_to_its_limits_and_idles_only_if_nobody_can_run(law, requests):
    """Enqueues as time goes by and looks inside after every step."""
    limits = law.limits
    made = Scheduler(limits, law.steps, len(requests), np.full(PREFIXES, 60, np.int64))
    good = np.flatnonzero(served_at_all(law, requests)).tolist()
    waiting, now, out, began = list(good), 0.0, np.zeros(len(requests), np.int64), []
    for _ in range(20_000):
        while waiting and requests.arrival_s[waiting[0]] <= now:
            i = waiting.pop(0)
            columns = (requests.prompt_tokens, requests.output_tokens, requests.prefix, requests.prefix_tokens)
            assert made.enqueue(i, *(int(column[i]) for column in columns))
        if not made.has_work:
            if not waiting:
                break
            now = requests.arrival_s[waiting[0]]
            continue
        before = made.counters
        step = made.step()
        now += step.duration_s
        out[step.sequences] += step.tokens
        began += [i for i in step.sequences.tolist() if i not in began]
        assert len(set(step.sequences.tolist())) == len(step.sequences) > 0
        inside(made, before)
    assert out.tolist() == [int(requests.output_tokens[i]) if i in good else 0 for i in range(len(requests))]
    assert began == good  # first come, first served


def inside(made, before):
    """Budget and seats are kept; blocks are free or held, once; who waits could not have been in the step."""
    core, kv, limits = made._core, made._core.kv, made.limits
    assert core.load[TOKENS] <= limits.max_num_batched_tokens
    assert core.counts[RUNNING] <= limits.max_num_seqs
    running = core.running[: core.counts[RUNNING]]
    free, block = [], int(kv.blocks[-1, AFTER])
    while block < limits.blocks:
        free.append(block)
        assert kv.blocks[kv.blocks[block, AFTER], BEFORE] == block
        block = int(kv.blocks[block, AFTER])
    assert len(free) == len(set(free)) == kv.counts[FREE]
    assert (kv.blocks[free, HOLDERS] == 0).all()
    held = kv.held[:, TAKEN] + kv.held[:, FOUND]
    assert kv.blocks[:-1, HOLDERS].sum() == held.sum() == held[running].sum()
    for i in running:
        assert held[i] * limits.block_tokens >= core.sequences[i, COMPUTED]
        assert core.sequences[i, COMPUTED] < core.sequences[i, PROMPT] + core.sequences[i, OUTPUT]
        assert core.sequences[i, GENERATED] < core.sequences[i, OUTPUT]
    entries = np.flatnonzero(kv.shared >= 0)
    assert np.array_equal(kv.blocks[kv.shared[entries], ENTRY], entries)
    assert (kv.blocks[:-1, ENTRY] >= 0).sum() == len(entries)
    counters = made.counters
    if not limits.chunked_prefill or counters.preemptions > before.preemptions or not core.counts[WAITING]:
        return
    ended = len(core.given[: core.load[0]]) - core.counts[RUNNING]
    head = core.sequences[core.waiting[core.counts[FRONT]]]
    if ended == 0 and core.counts[RUNNING] < limits.max_num_seqs and core.load[TOKENS] < limits.max_num_batched_tokens:
        left = limits.max_num_batched_tokens - int(core.load[TOKENS])
        known = int(head[PROMPT] + head[GENERATED])
        caching = limits.prefix_caching and head[PREFIX] >= 0
        findable = min(int(head[PREFIX_TOKENS]), known - 1) // limits.block_tokens if caching else 0
        assert -(-min(known, left) // limits.block_tokens) > kv.counts[FREE] - findable


@given(laws(speculation=False), schedules())
def test_coasting_is_stepping(law, requests):
    """Equal to the last bit: what is not counted step by step is what steps would have been."""
    coasted = serve(law, requests)
    stepped = stepwise(law, requests)
    assert coasted.steps == stepped.steps
    assert coasted.computed_tokens == stepped.computed_tokens
    assert coasted.prefix_hit_tokens == stepped.prefix_hit_tokens
    assert np.array_equal(coasted.first_token_s, stepped.first_token_s)
    assert np.array_equal(coasted.done_s, stepped.done_s)
    assert coasted.kv_blocks_peak == stepped.kv_blocks_peak


def stepwise(law, requests):
    """`serve` as the server would do it."""
    done, first = np.full(len(requests), np.inf), np.full(len(requests), np.inf)
    totals = []
    for replica in range(law.replicas):
        made = Scheduler(law.limits, law.steps, len(requests), np.full(PREFIXES, 60, np.int64), seed=replica)
        numbers = list(range(replica, len(requests), law.replicas))
        now = 0.0
        while numbers or made.has_work:
            while numbers and requests.arrival_s[numbers[0]] <= now:
                i = numbers.pop(0)
                columns = (requests.prompt_tokens, requests.output_tokens, requests.prefix, requests.prefix_tokens)
                made.enqueue(i, *(int(column[i]) for column in columns))
            if not made.has_work:
                now = requests.arrival_s[numbers[0]] if numbers else now
                continue
            step = made.step()
            now += step.duration_s
            fresh = step.sequences[(step.tokens > 0) & np.isinf(first[step.sequences])]
            first[fresh] = now
            done[step.sequences[step.finished]] = now
        totals.append(made.counters)
    return virtual.Served(
        first,
        done,
        done,
        kv_blocks=law.limits.blocks,
        kv_blocks_peak=max(t.blocks_used_most for t in totals),
        kv_blocks_free_at_end=0,
        busy_s=0.0,
        preemptions=sum(t.preemptions for t in totals),
        lost_tokens=sum(t.lost_tokens for t in totals),
        prefix_hit_tokens=sum(t.prefix_hit_tokens for t in totals),
        computed_tokens=sum(t.computed_tokens for t in totals),
        steps=sum(t.steps for t in totals),
        drafted_tokens=sum(t.drafted_tokens for t in totals),
        accepted_tokens=sum(t.accepted_tokens for t in totals),
    )


@given(laws(), schedules(), st.integers(0, 5))
def test_equal_seeds_give_equal_answers(law, requests, seed):
    assert same(serve(law, requests, seed), serve(law, requests, seed))


def same(one, other):
    fields = [f for f in one.__dataclass_fields__ if not f.endswith("_s")]
    arrays = all(
        np.array_equal(getattr(one, f), getattr(other, f), equal_nan=True)
        for f in ("first_token_s", "done_s", "tpot_s")
    )
    return arrays and all(getattr(one, f) == getattr(other, f) for f in fields) and one.busy_s == other.busy_s


@pytest.fixture
def interpreted(monkeypatch):
    """The package again, as it is where numba is not installed."""
    monkeypatch.setattr(harness.engines, "simulated", harness.engines.simulated)
    for name in [name for name in sys.modules if name.startswith("harness.engines.simulated")]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "numba", None)
        return importlib.import_module("harness.engines.simulated.virtual")


def test_without_numba_the_answers_are_the_same(interpreted):
    if not IS_COMPILED:
        pytest.skip("numba is not installed: there is nothing to compare with")
    assert not sys.modules["harness.engines.simulated.compiled"].IS_COMPILED
    assert interpreted.serve is not serve

    @settings(database=None)
    @given(laws(), schedules())
    def equal(law, requests):
        assert same(interpreted.serve(law, requests, 3), serve(law, requests, 3))

    equal()


def test_the_search_for_a_schedule_does_find_preemptions_and_prefixes():
    """Otherwise the laws above would say little."""
    rng = np.random.default_rng(2)
    limits = Limits(4, 40, 20, 4, 80, chunked_prefill=True, prefix_caching=True, draft_tokens=0)
    n = 60
    requests = Requests(
        np.sort(rng.uniform(0, 200, n)),
        rng.integers(1, 45, n),
        rng.integers(1, 25, n),
        rng.integers(-1, PREFIXES, n),
        np.full(n, 12),
    )
    served = serve(Bench(limits, StepLaw(overhead_s=0.3)), requests)
    assert served.preemptions > 0
    assert served.prefix_hit_tokens > 0
    assert served.kv_blocks_peak == served.kv_blocks
