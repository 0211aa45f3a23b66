"""The laws every tuner keeps: `tests/contract/tuner_suite.py` for all, and what is TPE's own."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import plugins
from scenarios.space import Knob, SearchSpace, ServingConfig
from tuners.base import Trial

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
import tuner_suite
from tuner_suite import SPACE


@pytest.mark.parametrize("name", plugins.names("tuners"))
class TestEveryTuner(tuner_suite.TunerSuite):
    @pytest.fixture
    def make(self, name):
        return plugins.load("tuners", name)


def law(config: ServingConfig) -> float:
    return {"F16": 1.0, "Q8_0": 1.5, "Q4_0": 2.0}[config.knobs["variant"]] * min(config.knobs["slots"], 8)


def search(tuner, space, trials, score=law, quality=lambda c: 0.0):
    history = []
    for number in range(trials):
        config = space.default() if number == 0 else tuner.ask(history)
        if config is None:
            break
        history.append(
            Trial(
                number=number,
                knobs=dict(config.knobs),
                config_digest=config.digest,
                state="complete",
                score=score(config),
                constraints={"quality": quality(config)},
                seconds=1.0,
            )
        )
    return history


def test_tpe_learns_from_a_constraint_that_it_was_told():
    """Q4_0 scores best: TPE runs after it, unless it was told that Q4_0 breaks a constraint."""

    def share(violation):
        late = []
        for seed in range(6):
            tuner = plugins.load("tuners", "tpe")(SPACE, seed)
            history = search(tuner, SPACE, 18, quality=lambda c: violation if c.knobs["variant"] == "Q4_0" else -0.2)
            late += [t.knobs["variant"] == "Q4_0" for t in history[8:]]
        return sum(late) / len(late)

    assert share(0.2) < 0.75 * share(-0.2)


def test_tpe_is_nearer_the_best_than_random_on_average():
    def mean_late_score(name):
        scores = []
        for seed in range(6):
            scores += [t.score for t in search(plugins.load("tuners", name)(SPACE, seed), SPACE, 25)[12:]]
        return sum(scores) / len(scores)

    assert mean_late_score("tpe") > mean_late_score("random") * 1.1


def test_a_control_outside_the_narrowed_choices_does_not_disturb_the_search():
    space = SPACE.narrowed({"slots": (8, 16)})
    assert space.default().knobs["slots"] == 4
    history = search(plugins.load("tuners", "tpe")(space, 0), space, 10)
    assert {t.knobs["slots"] for t in history[1:]} == {8, 16}
    assert len(history) == 3, "control and the two configurations there are"


@pytest.mark.parametrize("name", plugins.names("tuners"))
@settings(max_examples=10)
@given(st.integers(0, 2**31), st.integers(1, 9))
def test_replaying_a_history_gives_the_same_next_proposal(name, seed, length):
    make = plugins.load("tuners", name)
    history = search(make(SPACE, seed), SPACE, length)
    again = [Trial.model_validate_json(t.model_dump_json()) for t in history]
    assert make(SPACE, seed).ask(history) == make(SPACE, seed).ask(again)


def test_a_space_of_one_configuration_is_exhausted_by_the_control():
    space = SearchSpace("x", (Knob("a", (1,), 1, "compute", ""),))
    for name in plugins.names("tuners"):
        assert len(search(plugins.load("tuners", name)(space, 0), space, 5, score=lambda _: 1.0)) == 1


def test_cma_survives_trials_that_it_did_not_draw():
    """Its own draws are concentrated; those of a uniform search look like a landscape gone mad."""
    history = search(plugins.load("tuners", "random")(SPACE, 3), SPACE, 60, score=lambda c: float(len(c.digest) % 7))
    again = [t.model_copy(update={"number": n}) for n, t in enumerate(history * 20)]
    assert plugins.load("tuners", "cma")(SPACE, 0).ask(again[:-1]) is not None
