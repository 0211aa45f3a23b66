"""What is measured besides the search: presets, earlier studies' best, and the arm it is compared with."""

import shutil
import sys
from pathlib import Path

import pytest

from harness.engines import base
from harness.ledger import read
from scenarios.errors import UserError
from scenarios.space import Knob, SearchSpace
from tuners.random_tuner import RandomTuner
from tuners.results import StudyStart, Transferred, TrialResult
from tuners.transfer import MOST, transferred

sys.path.insert(0, str(Path(__file__).parent))
from analytic_study import SPACE, Law, scenario, study


def results(root, kind):
    steps = read(root / "ledger.jsonl")
    return [TrialResult.model_validate(r) for s, r in steps.items() if s.startswith(f"{kind}/")]


def seconds(found):
    return sum(r.trial.seconds for r in found)


# -- presets ---------------------------------------------------------------------------------------------


PRESETS = {
    "throughput": SPACE.complete({"slots": 8}),
    "as shipped": SPACE.default(),
    "too large": SPACE.complete({"slots": 16}),
    "small": SPACE.complete({"variant": "q8"}),
}


def test_presets_are_measured_after_the_defaults_and_outside_the_budget(tmp_path):
    study(tmp_path / "run", asked=scenario(trials=5), more={"presets": PRESETS}).run()

    found = results(tmp_path / "run", "trial")
    assert [r.origin for r in found[:3]] == ["defaults", "preset throughput", "preset small"]
    assert len(found) == 3 + 5
    assert {r.origin for r in found[3:]} == {""}


def test_presets_cost_no_wall_clock_of_the_budget(tmp_path):
    study(tmp_path / "run", asked=scenario(wall_clock_s=35), more={"presets": PRESETS}).run()

    assert len(results(tmp_path / "run", "trial")) == 3 + 4


def dies_then_resumes(root, died_with, resumed_with, *, after, **how):
    """The results of a study that was killed, and went on with other presets than it began with."""
    with pytest.raises(KeyboardInterrupt):
        study(root, more={"presets": died_with}, die_after=after, **how).run()
    study(root, more={"presets": resumed_with}, **how).run()
    return results(root, "trial")


@pytest.mark.parametrize("budget", [{"trials": 5}, {"wall_clock_s": 45}])
@pytest.mark.parametrize(("before", "after"), [(PRESETS, {}), ({}, PRESETS)])
def test_a_resumed_budget_counts_the_controls_that_were_measured(tmp_path, budget, before, after):
    found = dies_then_resumes(tmp_path / "run", before, after, after=7, asked=scenario(**budget))

    controls = 3 if before else 1
    assert [r.is_control for r in found] == [True] * controls + [False] * 5


def test_the_limit_of_the_arm_counts_the_controls_that_were_measured(tmp_path):
    root, asked = tmp_path / "run", scenario(trials=4)
    arm = RandomTuner(SPACE, 1)
    with pytest.raises(KeyboardInterrupt):
        study(root, asked=asked, more={"presets": PRESETS, "control_arm": arm}, die_after=8).run()
    study(root, asked=asked, more={"control_arm": arm}).run()
    assert seconds(results(root, "control")) == 40.0


def test_a_death_between_the_presets_is_resumed_to_all_of_them(tmp_path):
    found = dies_then_resumes(tmp_path / "run", PRESETS, PRESETS, after=3, asked=scenario(trials=2))
    assert [r.origin for r in found] == ["defaults", "preset throughput", "preset small", "", ""]


def test_an_engine_need_not_declare_presets():
    assert base.presets(object()) == {}


# -- the control arm -------------------------------------------------------------------------------------


def with_arm(root, **law):
    return study(root, asked=scenario(trials=6), more={"control_arm": RandomTuner(SPACE, 1)}, **law)


def test_the_arm_gets_the_seconds_of_the_search_and_its_own_steps(tmp_path):
    winner = with_arm(tmp_path / "run").run()

    searched, arm = results(tmp_path / "run", "trial"), results(tmp_path / "run", "control")
    assert seconds(searched[1:]) <= seconds(arm) < seconds(searched[1:]) + max(r.trial.seconds for r in arm)
    assert [r.trial.number for r in arm] == list(range(7, 7 + len(arm)))
    assert {r.origin for r in arm} == {"control arm"}
    assert winner == study(tmp_path / "without", asked=scenario(trials=6)).run(), "the arm is told, and decides nothing"


def test_the_arm_sees_the_defaults_and_itself_alone(tmp_path):
    class Watching(Law):
        seen: list = []

        def trial(self, number, config, earlier, reference):
            self.seen.append((number, [r.trial.number for r in earlier]))
            return super().trial(number, config, earlier, reference)

    run = with_arm(tmp_path / "run")
    run.laboratory = Watching(run.laboratory.subject)
    run.run()

    arm = [(number, earlier) for number, earlier in Watching.seen if number >= 7]
    assert arm
    assert all(earlier == [0, *range(7, number)] for number, earlier in arm)


def test_a_death_in_the_arm_is_resumed_to_the_same_answer(tmp_path):
    whole = with_arm(tmp_path / "whole")
    expected = whole.run()
    for death in range(7, 14):
        root = tmp_path / f"dies-after-{death}"
        with pytest.raises(KeyboardInterrupt):
            with_arm(root, die_after=death).run()
        assert with_arm(root).run() == expected
        assert list(read(root / "ledger.jsonl")) == list(read(tmp_path / "whole" / "ledger.jsonl"))


def test_an_arm_whose_trials_take_no_time_ends(tmp_path):
    class Instant(Law):
        def trial(self, number, config, earlier, reference):
            result = super().trial(number, config, earlier, reference)
            took = 10.0 if number <= 2 else 0.0
            return result.model_copy(update={"trial": result.trial.model_copy(update={"seconds": took})})

    run = study(tmp_path / "run", asked=scenario(trials=2), more={"control_arm": RandomTuner(SPACE, 1)})
    run.laboratory = Instant(run.laboratory.subject)
    run.run()
    assert len(results(tmp_path / "run", "control")) == 8


# -- transfer --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """An earlier study, made once."""
    root = tmp_path_factory.mktemp("kept") / "earlier"
    study(root, asked=scenario(trials=20)).run()
    return root


@pytest.fixture
def earlier(kept, tmp_path):
    """A copy of it, to be changed or thrown away."""
    return shutil.copytree(kept, tmp_path / "earlier")


def start_of(folder) -> StudyStart:
    return StudyStart.model_validate(read(folder / "ledger.jsonl")["study"])


def with_transfer(root, folders, space=SPACE):
    def found(present):
        return transferred(folders, space, present)

    return study(root, space=space, asked=scenario(trials=5), more={"transfer": found})


def test_the_best_of_an_earlier_study_are_tried_first(earlier, tmp_path):
    with_transfer(tmp_path / "run", [earlier]).run()

    found = results(tmp_path / "run", "trial")
    assert [r.origin for r in found] == ["defaults", *["transfer"] * MOST, "", ""]
    assert found[1].trial.knobs == {"variant": "q8", "slots": 8, "crash": False}, "the best there is"


def test_an_earlier_study_that_is_not_there_is_found_before_anything_is_measured(tmp_path):
    run = with_transfer(tmp_path / "run", [tmp_path / "nowhere"])
    with pytest.raises(UserError, match="does not exist"):
        run.run()
    assert run.laboratory.told == []


def test_a_resumed_study_needs_no_old_folder(earlier, tmp_path):
    expected = with_transfer(tmp_path / "whole", [earlier]).run()
    run = with_transfer(tmp_path / "run", [earlier])
    run.laboratory.die_after = 2
    with pytest.raises(KeyboardInterrupt):
        run.run()
    shutil.rmtree(earlier)
    assert with_transfer(tmp_path / "run", [earlier]).run() == expected


def test_knobs_and_values_that_the_present_space_lacks_are_dropped(earlier):
    smaller = SearchSpace(
        "law", (Knob("slots", (1, 2, 4), 4, "batching", ""), Knob("variant", ("f16", "q8"), "f16", "precision", ""))
    )
    found = transferred([earlier], smaller, start_of(earlier))
    assert found.knobs[0] == {"variant": "q8", "slots": 4}


def test_every_earlier_study_is_heard_and_no_configuration_comes_twice(earlier, tmp_path):
    study(tmp_path / "other", asked=scenario(trials=20), speed={"f16": 9.0, "q8": 2.0, "q4": 1.0}).run()
    found = transferred([earlier, tmp_path / "other", earlier], SPACE, start_of(earlier))
    assert found.knobs[0]["variant"] == "q8"
    assert found.knobs[1]["variant"] == "f16"
    assert len(found.knobs) == MOST
    assert len({str(k) for k in found.knobs}) == MOST


def test_a_study_of_another_engine_is_refused_and_other_differences_are_told(earlier):
    elsewhere = start_of(earlier)
    elsewhere.scenario["engine"]["name"] = "vllm"
    with pytest.raises(UserError, match="is a study of llamacpp"):
        transferred([earlier], SPACE, elsewhere)
    present = start_of(earlier).model_copy(update={"engine_version": "law 2"})
    assert transferred([earlier], SPACE, present).notes == ("earlier: another version of the engine",)


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("engine", "accelerators", 1, ()),
        ("engine", "accelerators", 2, ("earlier: another machine",)),
        ("engine", "version", "1", ("earlier: another engine.version in the scenario",)),
        ("slo", "ttft", {"percentile": 95.0, "target_ms": 50.0, "times_unloaded": None}, ("earlier: other targets",)),
        ("slo", "alpha", 0.01, ()),
        (None, "objective", "latency", ("earlier: another objective",)),
    ],
)
def test_each_difference_to_an_earlier_study_is_told(earlier, section, key, value, told):
    ledger = earlier / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"accelerator":null', '"accelerator":"h100"'))
    present = start_of(earlier)
    assert present.scenario["engine"]["accelerator"] == "h100"
    (present.scenario[section] if section else present.scenario)[key] = value
    assert transferred([earlier], SPACE, present).notes == told


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        transferred([tmp_path], SPACE, None)


def test_what_transfer_found_is_a_record():
    found = Transferred(knobs=({"slots": 8},), sources=("trial 3 of old",))
    assert Transferred.model_validate_json(found.model_dump_json()) == found
