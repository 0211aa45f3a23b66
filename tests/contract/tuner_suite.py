"""What every tuner must keep. A plug-in's author subclasses `TunerSuite` and gives a `make` fixture.

class TestMine(TunerSuite):
    @pytest.fixture
    def make(self):
        return MyTuner
"""

from scenarios.space import Knob, SearchSpace
from tuners.base import Trial

SPACE = SearchSpace(
    "suite",
    (
        Knob("variant", ("F16", "Q8_0", "Q4_0"), "F16", "precision", "precision of the weights"),
        Knob("slots", (1, 2, 4, 8, 16, 32), 4, "batching", "sequences decoded together"),
        Knob("speculation", ("none", "ngram"), "none", "speculation", "draft method"),
        Knob("draft_tokens", (2, 4, 8), 4, "speculation", "draft length", when=("speculation", ("ngram",))),
    ),
)
SMALL = SPACE.narrowed({"slots": (2, 4, 8)})  # 36 configurations, to be tried to the last


def tried(config, number, *, score=1.0, state="complete", constraints=None):
    return Trial(
        number=number,
        knobs=dict(config.knobs),
        config_digest=config.digest,
        state=state,
        score=score,
        constraints={"slo": 0.0} if constraints is None else constraints,
        seconds=1.0,
    )


class TunerSuite:
    def test_same_history_same_seed_same_proposal(self, make):
        history = [tried(SPACE.default(), 0)]
        for number in range(1, 8):
            first, second = make(SPACE, 7).ask(history), make(SPACE, 7).ask(history)
            assert first == second
            history.append(tried(first, number, score=float(number)))

    def test_every_configuration_is_proposed_once_and_then_none(self, make):
        tuner, history = make(SMALL, 1), []
        while (config := tuner.ask(history)) is not None:
            assert config.digest not in {t.config_digest for t in history}
            history.append(tried(config, len(history)))
            assert len(history) <= SMALL.size()
        assert {t.config_digest for t in history} == {c.digest for c in SMALL.enumerate()}

    def test_conditional_knobs_are_there_exactly_when_their_condition_holds(self, make):
        tuner, history = make(SPACE, 3), []
        for number in range(20):
            config = tuner.ask(history)
            assert ("draft_tokens" in config.knobs) == (config.knobs["speculation"] == "ngram")
            history.append(tried(config, number))

    def test_failed_and_scoreless_trials_are_digested(self, make):
        tuner = make(SPACE, 5)
        history = [tried(SPACE.default(), 0)]
        for number in range(1, 10):
            config = tuner.ask(history)
            state = "infeasible" if number % 2 else "quality"
            history.append(tried(config, number, score=None, state=state, constraints={"engine": 1.0}))
        assert tuner.ask(history) is not None

    def test_ties_and_huge_scores_are_digested(self, make):
        tuner, history = make(SPACE, 6), []
        for number in range(12):
            history.append(tried(tuner.ask(history), number, score=1e12 if number % 3 else 0.0))
        assert tuner.ask(history) is not None

    def test_scores_that_are_no_numbers_are_digested(self, make):
        tuner, history = make(SPACE, 8), []
        for number in range(10):
            score = (float("nan"), float("inf"), 3.0, 0.0, -1.0)[number % 5]
            history.append(tried(tuner.ask(history), number, score=score))
        assert tuner.ask(history) is not None

    def test_violations_that_are_no_numbers_are_broken_promises(self, make):
        tuner, history = make(SPACE, 10), []
        for number in range(10):
            violation = (float("nan"), -0.5)[number % 2]
            history.append(tried(tuner.ask(history), number, constraints={"slo": violation}))
        assert [t.feasible for t in history] == [False, True] * 5
        assert tuner.ask(history) is not None

    def test_what_cannot_be_planned_is_never_proposed_and_the_rest_is(self, make):
        def possible(config):
            return config.knobs["slots"] <= 4 or config.knobs["variant"] == "Q4_0"

        tuner, history = make(SMALL, 9), []
        while (config := tuner.ask(history, possible)) is not None:
            assert possible(config)
            history.append(tried(config, len(history)))
        assert {t.config_digest for t in history} == {c.digest for c in SMALL.enumerate() if possible(c)}

    def test_where_nothing_can_be_planned_nothing_is_proposed(self, make):
        assert make(SPACE, 10).ask([tried(SPACE.default(), 0)], lambda _: False) is None
