"""Knobs, spaces and configurations."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.errors import UserError
from scenarios.space import Knob, SearchSpace, ServingConfig, digest

SPACE = SearchSpace(
    "e",
    (
        Knob("slots", (1, 2, 4), 4, "batching", ""),
        Knob("cache", (True, False), True, "memory", ""),
        Knob("draft", ("none", "ngram"), "none", "speculation", ""),
        Knob("length", (2, 4), 2, "speculation", "", when=("draft", ("ngram",))),
    ),
)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.booleans(), max_size=6), st.randoms())
def test_a_digest_ignores_the_order_of_keys(content, rng):
    items = list(content.items())
    rng.shuffle(items)
    assert digest(dict(items)) == digest(content)
    assert ServingConfig("e", dict(items)).digest == ServingConfig("e", content).digest


def test_a_digest_tells_values_and_types_apart():
    assert len({ServingConfig("e", {"k": v}).digest for v in (1, 2, "1", True)}) == 4


def test_a_configuration_survives_its_dictionary():
    config = ServingConfig("e", {"slots": 2, "cache": False}, {"A": "1"})
    assert ServingConfig.from_dict(config.to_dict()) == config


def test_inactive_knobs_are_left_out():
    assert "length" not in SPACE.default().knobs
    assert SPACE.complete({"draft": "ngram"}).knobs["length"] == 2
    assert len(list(SPACE.enumerate())) == 3 * 2 * (1 + 2)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"slot": 1}, "did you mean `slots`"),
        ({"slots": 3}, "allowed values are 1, 2, 4"),
        ({"nothing_like_it": 3}, "its knobs: slots, cache, draft, length"),
    ],
)
def test_what_is_not_offered_is_refused_with_what_is(chosen, said):
    with pytest.raises(UserError, match=said):
        SPACE.complete(chosen)


def test_text_is_parsed_to_the_choice_it_spells():
    assert SPACE["cache"].parse("False") is False
    assert SPACE["slots"].parse(" 2 ") == 2
    with pytest.raises(UserError, match="cache=maybe: allowed values are true, false"):
        SPACE["cache"].parse("maybe")


def test_narrowing_fixes_what_is_not_named_at_its_default():
    narrow = SPACE.narrowed({"slots": (1, 2)})
    assert [k.name for k in narrow.free] == ["slots"]
    assert narrow.default() == SPACE.default()
    assert SPACE.narrowed({}) == SPACE
    assert SPACE.narrowed({"draft": ("NGRAM",)})["draft"].choices == ("ngram",), "spelt as the engine spells it"
    with pytest.raises(UserError, match="slots=8"):
        SPACE.narrowed({"slots": (8,)})
    with pytest.raises(UserError, match="no knob `slotz`"):
        SPACE.narrowed({"slotz": (1,)})


def test_what_the_installed_engine_does_not_know_is_left_out_and_said():
    space = replace(SPACE, absent=(("draft", "eagle", "release 1 has no --draft eagle"), ("fuse", True, "no --fuse")))
    narrow = space.narrowed({"draft": ("none", "eagle"), "fuse": (True,)})
    assert narrow["draft"].choices == ("none",)
    assert narrow.notices == (
        "draft=eagle is left out: release 1 has no --draft eagle",
        "fuse=true is left out: no --fuse",
    )
    assert space.narrowed({"slots": (1, 2)}).notices == ()
    with pytest.raises(UserError, match="no knob `fuze`"):
        space.narrowed({"fuze": (True,)})
    assert space.narrowed({"draft": ("eagle",)})["draft"].choices == (space["draft"].default,)


def test_a_repair_is_searched_only_where_it_is_named():
    repair = Knob("eager", (False, True), False, "compute", "", repair=True)
    space = replace(SPACE, knobs=(*SPACE.knobs, repair))
    assert space.narrowed({})["eager"].choices == (False,)
    assert space.narrowed({"eager": (False, True)})["eager"].choices == (False, True)
    assert space.complete({"eager": True}).knobs["eager"] is True
