"""The search beside its control arm: equal seconds, honest words."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from reports import control_arm, html, records, search_charts


@pytest.fixture(scope="module")
def study(study_folder):
    return records.read(study_folder)


def trial(number, score, seconds, *, interval=None, **changes):
    """Only what the comparison reads of a TrialResult."""
    low, high = interval or (None, None)
    return SimpleNamespace(
        trial=SimpleNamespace(
            number=number, score=score, seconds=seconds, feasible=changes.get("feasible", score is not None)
        ),
        origin=changes.get("origin", ""),
        capacity=SimpleNamespace(rate_low_rps=low, rate_high_rps=high),
    )


def told(study, search, arm):
    default = trial(0, 10.0, 99.0, origin="defaults")
    return replace(study, trials=(default, *search), control=tuple(arm))


def test_without_an_arm_nothing_is_said(study):
    assert control_arm.curves(study) is None
    assert control_arm.sentence(study) == ""
    assert search_charts.control_arm(study) is None
    assert "Against random search" not in html.render(study)


def test_both_curves_begin_at_the_defaults_and_end_together(study):
    both = control_arm.curves(
        told(study, [trial(1, 8.0, 30.0), trial(2, 20.0, 70.0)], [trial(3, 12.0, 40.0), trial(4, 30.0, 61.0)])
    )
    search, arm = both
    assert search.seconds == (0.0, 100.0, 100.0)
    assert search.scores == (10.0, 20.0, 20.0)
    assert arm.seconds == (0.0, 40.0, 100.0), "the arm's last trial ended after the search's seconds were spent"
    assert arm.scores == (10.0, 12.0, 12.0)


def test_presets_belong_to_neither(study):
    preset = trial(1, 50.0, 30.0, origin="preset fast")
    search, _ = control_arm.curves(told(study, [preset, trial(2, 20.0, 70.0)], [trial(3, 12.0, 40.0)]))
    assert search.seconds[-1] == 70.0
    assert search.scores[-1] == 20.0


def test_infeasible_scores_count_for_nothing(study):
    _, arm = control_arm.curves(told(study, [trial(1, 8.0, 90.0)], [trial(2, 99.0, 30.0, feasible=False)]))
    assert arm.scores[-1] == 10.0


@pytest.mark.parametrize(
    ("search", "arm", "words"),
    [
        ((20.0, (19.0, 21.0)), (15.0, (14.5, 15.5)), "33% more for the search"),
        ((15.0, (14.5, 15.5)), (20.0, (19.0, 21.0)), "33% more for random search"),
        ((20.0, (18.0, 22.0)), (19.0, (17.0, 21.0)), "no difference that can be told from luck"),
        ((20.0, None), (19.7, None), "no difference that can be told from luck"),
        ((20.0, None), (18.0, None), "11% more for the search"),
    ],
)
def test_who_found_more_is_told_whoever_it_was(study, search, arm, words):
    said = control_arm.sentence(
        told(study, [trial(1, search[0], 60.0, interval=search[1])], [trial(2, arm[0], 60.0, interval=arm[1])])
    )
    assert words in said
    assert said.startswith("In 60 s of trials each, the search found")
    assert "anecdote" in said


def test_a_side_that_found_nothing_feasible_is_named(study):
    nothing = told(study, [trial(1, 20.0, 60.0)], [trial(2, None, 60.0)])
    nothing = replace(nothing, trials=(trial(0, None, 9.0, origin="defaults"), *nothing.trials[1:]))
    assert "the search alone found something feasible" in control_arm.sentence(nothing)


def test_what_a_search_score_promised_is_set_against_what_was_measured(study):
    number = max(f.trial for f in study.finals)
    promised = study.trial(number).trial.score
    finals = tuple(f.model_copy(update={"score": 0.9 * promised}) for f in study.finals if f.trial == number)
    assert "(−10%)" in control_arm.shrinkage(replace(study, finals=finals))
    assert control_arm.shrinkage(replace(study, finals=())) == ""


def test_the_page_shows_the_arm(study, study_folder):
    arm = tuple(t.model_copy(update={"origin": "control arm"}) for t in study.trials[3:5])
    page = html.render(replace(study, control=arm))
    assert "Against random search" in page
    assert "by search-grade scores" in page or "told from luck" in page
