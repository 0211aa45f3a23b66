"""Random search where few configurations are left, or few can be planned."""

import pytest

from scenarios.space import Knob, SearchSpace
from tuners.random_tuner import DRAWS, MOST_LISTED, untried

LARGE = SearchSpace(
    "law", tuple(Knob(f"k{n}", tuple(range(64)), 0, "batching", "") for n in range(3))
)  # 262,144 configurations, listed with k0 = 0 first
SMALL = SearchSpace("law", (Knob("k0", tuple(range(2000)), 0, "batching", ""),))


def test_a_large_space_whose_first_part_is_impossible_is_searched_on():
    rare = 1 / 1024  # seldom within DRAWS, and nothing of it among the first MOST_LISTED

    def possible(config):
        return config.knobs["k0"] >= 62 and config.knobs["k1"] < 2

    assert DRAWS * rare < 0.3
    assert MOST_LISTED < 62 * 64 * 64
    found = [untried(LARGE, set(), seed, possible) for seed in range(8)]
    assert all(config is not None and possible(config) for config in found)
    assert len({config.digest for config in found}) > 4


def test_a_large_space_of_which_nothing_is_possible_ends():
    asked = []

    def never(config):
        asked.append(config)

    assert untried(LARGE, set(), 0, never) is None
    assert len(asked) == MOST_LISTED


@pytest.mark.parametrize("left", [0, 1])
def test_a_small_space_is_tried_to_the_last(left):
    every = [config.digest for config in SMALL.enumerate()]
    found = untried(SMALL, set(every[left:]), 0, lambda _: True)
    assert (found is not None) == bool(left)
