"""The rules of the scheduler on small cases whose answer is worked out by hand; a step lasts one second."""

import numpy as np
import pytest
from scipy import stats

from harness.engines.simulated.core import Limits
from harness.engines.simulated.scheduler import Scheduler
from harness.engines.simulated.steps import StepLaw, acceptance, accepted, generator

LIMITS = Limits(
    max_num_seqs=4,
    max_num_batched_tokens=32,
    blocks=64,
    block_tokens=4,
    context_tokens=256,
    chunked_prefill=True,
    prefix_caching=True,
    draft_tokens=0,
)
SECOND = StepLaw(overhead_s=1.0)


def scheduler(*requests, law=SECOND, prefixes=(), **limits):
    """Each request: prompt, output, and maybe prefix and its tokens. All wait."""
    made = Scheduler(LIMITS._replace(**limits), law, 8, np.array(prefixes, np.int64))
    for number, request in enumerate(requests):
        assert made.enqueue(number, *request)
    return made


def steps(made, n):
    """What the next ``n`` steps give: {sequence: tokens} of each."""
    return [gave(made) for _ in range(n)]


def gave(made):
    step = made.step()
    assert step.duration_s == 1.0
    return dict(zip(step.sequences.tolist(), step.tokens.tolist(), strict=True))


def test_a_prompt_longer_than_the_budget_comes_in_pieces():
    assert steps(scheduler((80, 2)), 4) == [{0: 0}, {0: 0}, {0: 1}, {0: 1}]


def test_running_ones_come_before_pieces_of_prompts_and_those_before_who_waits():
    made = scheduler((4, 9))
    made.step()
    assert made.enqueue(1, 60, 3)
    assert made.enqueue(2, 4, 3)
    assert steps(made, 2) == [{0: 1, 1: 0}, {0: 1, 1: 1, 2: 0}]  # 31 of 60; the other 29 and 2 of 4
    assert steps(made, 1) == [{0: 1, 1: 1, 2: 1}]


def test_who_waits_is_served_in_order_even_if_a_later_one_would_fit():
    made = scheduler((31, 9), (30, 2), (4, 1), blocks=10, max_num_batched_tokens=64)
    assert steps(made, 9) == [{0: 1}] * 9
    assert gave(made) == {1: 1, 2: 1}


def test_no_more_run_than_there_are_seats():
    made = scheduler((2, 3), (2, 3), (2, 3), max_num_seqs=2)
    assert steps(made, 4) == [{0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1, 1: 1}, {2: 1}]


def test_without_chunked_prefill_prompts_are_whole_and_the_others_wait_for_them():
    made = scheduler((4, 9), chunked_prefill=False)
    made.step()
    assert made.enqueue(1, 30, 3)
    assert made.enqueue(2, 30, 3)
    assert steps(made, 3) == [{1: 1}, {2: 1}, {0: 1, 1: 1, 2: 1}]
    assert not made.enqueue(3, 33, 1)


@pytest.mark.parametrize(("prompt", "output"), [(200, 57), (0, 5), (5, 0), (129, 100)])
def test_what_can_never_be_served_is_rejected(prompt, output):
    made = scheduler(blocks=56)
    assert not made.enqueue(0, prompt, output)
    assert not made.has_work
    assert made.enqueue(0, 100, 124)


def test_without_a_free_block_the_last_to_come_is_preempted_and_computes_all_again():
    made = scheduler((7, 13), (7, 13), blocks=5)
    assert steps(made, 2) == [{0: 1, 1: 1}, {0: 1, 1: 1}]  # two blocks each; the fifth goes to the first
    assert gave(made) == {0: 1}
    assert made.counters.preemptions == 1
    assert made.counters.lost_tokens == 8
    assert made.counters.waiting == 1
    while made.has_work:
        last = gave(made)
    assert last == {1: 1}
    assert made.counters.blocks_used == 0
    assert made.counters.computed_tokens == 2 * (7 + 13 - 1) + made.counters.lost_tokens


def test_who_was_preempted_comes_before_all_that_wait():
    made = scheduler((7, 13), (7, 13), (2, 2), blocks=5, max_num_seqs=2)
    steps(made, 3)
    assert made.counters.waiting == 2
    while made.counters.waiting == 2:
        last = gave(made)
    assert list(last) == [1, 2]


def test_a_prefix_is_computed_once_and_found_by_all_that_share_it():
    made = scheduler((20, 2, 0, 16), prefixes=[16])
    made.step()
    assert made.enqueue(1, 20, 2, 0, 16)
    assert made.enqueue(2, 14, 2, 0, 16)  # as long as both reach
    assert gave(made) == {0: 1, 1: 1, 2: 1}
    counters = made.counters
    assert counters.prefix_hit_tokens == 16 + 12
    assert counters.computed_tokens == 20 + 1 + 4 + 2
    assert counters.blocks_used_most == 6 + 1 + 1
    assert counters.blocks_used == 4 + 1 + 1  # the first has left; the prefix is held by the two that found it


def test_a_prompt_that_is_nothing_but_prefix_still_computes_its_last_block():
    made = scheduler((16, 1, 0, 16), (16, 1, 0, 16), prefixes=[16], max_num_seqs=1)
    made.step()
    made.step()
    assert made.counters.prefix_hit_tokens == 12
    assert made.counters.computed_tokens == 16 + 4


def test_what_others_hold_already_takes_nothing_from_the_free_blocks():
    made = scheduler((20, 4, 0, 16), blocks=7, prefixes=[16])
    made.step()
    assert made.enqueue(1, 18, 2, 0, 16)
    assert gave(made) == {0: 1, 1: 1}  # seven blocks: five, then one more for each


def test_what_is_found_among_the_free_blocks_is_not_free_for_the_rest():
    made = scheduler((17, 1, 0, 16), (12, 4), blocks=8, prefixes=[16], max_num_batched_tokens=64)
    assert gave(made) == {0: 1, 1: 1}
    assert made.enqueue(2, 20, 1, 0, 16)  # four found and one more: five of the five that are free
    assert made.enqueue(3, 1, 1)
    assert gave(made) == {1: 1}  # whose fourth block comes first


def test_an_answer_may_be_found_by_the_next_turn():
    """A conversation: the second prompt begins with the first one and what was said to it."""
    made = scheduler((8, 9, 0, 16), prefixes=[32])
    steps(made, 9)
    assert made.enqueue(1, 24, 1, 0, 24)
    made.step()
    assert made.counters.prefix_hit_tokens == 16


def test_without_prefix_caching_nothing_is_found():
    made = scheduler((20, 2, 0, 16), (20, 2, 0, 16), prefixes=[16], prefix_caching=False)
    made.step()
    assert made.counters.prefix_hit_tokens == 0


def test_what_nobody_holds_is_evicted_when_its_place_is_needed_last_block_first():
    made = scheduler((17, 1, 0, 16), blocks=8, prefixes=[16], max_num_seqs=1)
    made.step()
    assert made.counters.blocks_used == 0
    assert made.enqueue(1, 17, 1)  # five blocks: the three never used, then the first one's private, then its last
    made.step()
    assert made.enqueue(2, 17, 1, 0, 16)
    made.step()
    assert made.counters.prefix_hit_tokens == 12


def test_what_is_found_again_lives_longer():
    made = scheduler((9, 1, 0, 8), (9, 1, 1, 8), (9, 1, 0, 8), blocks=8, prefixes=[8, 8], max_num_seqs=1)
    steps(made, 3)
    assert made.counters.prefix_hit_tokens == 8
    assert made.enqueue(3, 20, 1)  # pushes five out: all of prefix 1, none of prefix 0
    made.step()
    assert made.enqueue(4, 9, 1, 0, 8)
    assert made.enqueue(5, 9, 1, 1, 8)
    steps(made, 2)
    assert made.counters.prefix_hit_tokens == 8 + 8


def test_who_is_withdrawn_leaves_no_trace():
    made = scheduler((20, 50), (20, 50), (20, 50), (20, 50), (20, 50), max_num_seqs=2)
    made.step()
    made.withdraw(0)
    made.withdraw(3)
    made.withdraw(7)
    assert made.counters.waiting == 2
    for number in (1, 2, 4):
        made.withdraw(number)
    assert not made.has_work
    assert made.counters.blocks_used == 0
    assert made.enqueue(0, 4, 1)
    assert gave(made) == {0: 1}


def test_a_drafted_token_is_accepted_if_all_before_it_are():
    """Over 20,000 draws the counts of 0 … 3 accepted fit the geometric law, cut off at 3 (chi-squared)."""
    random = generator(5)
    seen = np.bincount([accepted(random, 3, 0.6) for _ in range(20_000)], minlength=4)
    expected = 20_000 * np.array([0.4, 0.6 * 0.4, 0.36 * 0.4, 0.216])
    assert stats.chisquare(seen, expected).pvalue > 1e-3
    assert stats.chisquare(seen, 20_000 * np.array([0.42, 0.58 * 0.42, 0.58**2 * 0.42, 0.58**3])).pvalue < 1e-3


def test_fewer_drafted_tokens_are_accepted_in_large_batches():
    law = StepLaw(overhead_s=1.0, acceptance=0.8, acceptance_drop=0.5, acceptance_half=10.0)
    assert [acceptance(law, batch) for batch in (0, 10, 10**9)] == pytest.approx([0.8, 0.6, 0.4])


def test_speculation_gives_exactly_what_was_asked():
    law = SECOND._replace(acceptance=1.0)
    made = scheduler((4, 10), law=law, draft_tokens=3)
    assert steps(made, 4) == [{0: 1}, {0: 4}, {0: 4}, {0: 1}]
    assert not made.has_work
    assert made.counters.drafted_tokens == made.counters.accepted_tokens == 6
