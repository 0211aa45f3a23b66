"""The loop, on a laboratory that follows a known law instead of measuring: the right answer is analytic.

Real engines are in tests/e2e. Here: order of steps, resume after a death at any point, who wins.
"""

import json
import sys
from pathlib import Path

import pytest

from harness.errors import HostDisturbed
from harness.ledger import read
from scenarios.errors import UserError
from tuners.random_tuner import RandomTuner
from tuners.study import CERTIFY_SHARES

sys.path.insert(0, str(Path(__file__).parent))
from analytic_study import SPACE, Law, Silent, scenario, study


def test_the_best_that_keeps_its_accuracy_wins(tmp_path):
    winner = study(tmp_path / "run").run()
    assert winner.outcome == "tuned"
    assert winner.config["knobs"] == {"variant": "q8", "slots": 8, "crash": False}
    assert winner.gain.value == pytest.approx(24 / 8)
    assert winner.gain.low == pytest.approx(3.0)
    assert winner.certified_rate_rps == pytest.approx(CERTIFY_SHARES[1] * 24 * 1.01), (
        "the first share was undecided, the second passed"
    )
    assert winner.export["law"] == "law --variant=q8 --slots=8 --crash=False"
    assert json.loads((tmp_path / "run" / "winner.json").read_text()) == winner.model_dump(mode="json")


def test_a_death_at_any_step_is_resumed_to_the_same_answer(tmp_path):
    whole = study(tmp_path / "whole")
    expected = whole.run()
    steps = whole.laboratory.done
    assert steps > 20
    for death in range(steps):
        root = tmp_path / f"dies-after-{death}"
        with pytest.raises(KeyboardInterrupt):
            study(root, die_after=death).run()
        assert not (root / "winner.json").exists()
        resumed = study(root)
        assert resumed.run() == expected
        assert resumed.laboratory.done == steps - death, "nothing is done twice"
        assert list(read(root / "ledger.jsonl")) == list(read(tmp_path / "whole" / "ledger.jsonl"))


def test_a_torn_last_line_is_one_step_done_again(tmp_path):
    root = tmp_path / "run"
    expected = study(root).run()
    ledger = root / "ledger.jsonl"
    content = ledger.read_bytes()
    ledger.write_bytes(content[: content.rindex(b'"step"') + 20])
    assert study(root).run() == expected


def test_a_finished_study_is_only_read(tmp_path):
    expected = study(tmp_path / "run").run()
    again = study(tmp_path / "run", die_after=0)
    assert again.run() == expected


class Stubborn:
    """A tuner that has nothing to propose any more, and says how often it was asked."""

    def __init__(self):
        self.asked = 0

    def ask(self, history, possible):
        del history, possible
        self.asked += 1


class Listening(Silent):
    def __init__(self):
        self.notes, self.heard = [], []

    def note(self, line):
        self.notes.append(line)

    def trial(self, result):
        self.heard.append(result)


def test_what_is_recorded_is_not_proposed_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "run", die_after=6).run()
    resumed = study(tmp_path / "run")
    resumed.tuner, resumed.observer = Stubborn(), Listening()
    resumed.run()
    assert [r.trial.number for r in resumed.observer.heard] == [0, 1, 2, 3, 4], "none that was measured is dropped"
    assert resumed.tuner.asked == 1, "for the first that is not recorded"


def test_a_study_whose_search_ended_asks_no_tuner(tmp_path):
    asked = scenario(trials=100)  # more than the space has
    arm = RandomTuner(SPACE, 1)
    expected = study(tmp_path / "run", asked=asked, more={"control_arm": arm}).run()
    again = study(tmp_path / "run", asked=asked, die_after=0, more={"control_arm": Stubborn()})
    again.tuner = Stubborn()
    assert again.run() == expected
    assert (again.tuner.asked, again.control_arm.asked) == (0, 0)


def test_the_note_of_a_recorded_trial_tells_what_was_recorded(tmp_path):
    first, again = study(tmp_path / "run"), study(tmp_path / "run")
    first.observer, again.observer = Listening(), Listening()
    first.run()
    again.tuner = RandomTuner(SPACE, 5)
    again.run()
    told = [n.replace(", recorded", "") for n in again.observer.notes if n.startswith("trial")]
    assert told == [n for n in first.observer.notes if n.startswith("trial")]


def test_answers_that_were_too_bad_once_are_not_launched_again(tmp_path):
    arm = RandomTuner(SPACE, 1)
    study(tmp_path / "run", asked=scenario(trials=100), more={"control_arm": arm}).run()
    steps = read(tmp_path / "run" / "ledger.jsonl")
    for kind in ("trial", "control"):
        trials = [r["trial"] for s, r in steps.items() if s.startswith(f"{kind}/")]
        assert [t["knobs"]["variant"] for t in trials if t["state"] == "quality"] == ["q4"], kind
        assert len({t["config_digest"] for t in trials if t["knobs"]["variant"] == "q8"}) > 3, "others are"


def test_keep_the_defaults_when_nothing_is_better(tmp_path):
    winner = study(
        tmp_path / "run", speed={"f16": 9.0, "q8": 2.0, "q4": 1.0}, space=SPACE.narrowed({"variant": ("f16", "q8")})
    ).run()
    assert winner.outcome == "keep_defaults"
    assert winner.trial == 0
    assert winner.reason.endswith("Keep the defaults."), "nothing is open: all that was tried is worse"


class Noisy(Law):
    """In two blocks of finals, what keeps its accuracy scatters by a factor of ``spread``; the defaults do not."""

    spread = 1.3

    def final(self, block, position, trial, control):
        run = super().final(block, position, trial, control)
        noisy = trial.number and trial.knobs["variant"] != "q4"
        return run.model_copy(update={"score": run.score * (self.spread ** (block - 0.5) if noisy else 1.0)})


def noisy_study(root, variants, slots, **law):
    space = SPACE.narrowed({"variant": variants, "slots": slots})
    run = study(root, asked=scenario(finalist_blocks=2), space=space, **law)
    run.laboratory = Noisy(run.laboratory.subject, **law)
    return run


@pytest.mark.parametrize(
    ("spread", "interval", "hint"),
    [  # 24 requests/s beside 8; of two blocks and two finalists, by Student: 3 times exp(+-25.452 ln(spread) / 2)
        (1.3, "0.106 to 84.6", "; about 3 would decide (budget.finalist_blocks)"),
        (1e4, "3.75e-51 to 2.4e+51", ""),  # more than may be asked for
    ],
)
def test_the_best_gain_that_two_blocks_cannot_prove_is_told_with_how_many_would(tmp_path, spread, interval, hint):
    run = noisy_study(tmp_path / "run", ("f16", "q8"), (4, 8))
    run.laboratory.spread = spread
    winner = run.run()
    assert winner.outcome == "keep_defaults"
    assert len(winner.finalists) == 1 + 2
    best = next(f.trial for f in winner.finalists if (f.knobs["variant"], f.knobs["slots"]) == ("q8", 8))
    assert winner.reason.endswith(
        f"on held-out traffic. Keep the defaults. Trial {best:03d} gave 3.00 times as much, but 2 blocks leave that "
        f"open (97.5% interval {interval}){hint}."
    )


def test_a_gain_that_costs_accuracy_is_not_called_open(tmp_path):
    """q4 is the fastest, and proven so; it loses at the full tasks. What is open is q8."""
    winner = noisy_study(tmp_path / "run", ("f16", "q8", "q4"), (4,), screen_catches=False).run()
    assert winner.outcome == "keep_defaults"
    lost = next(f for f in winner.finalists if f.quality_passed is False)
    assert (lost.knobs["variant"], lost.gain.low > 1) == ("q4", True)
    assert "while keeping its accuracy. Keep the defaults. Trial" in winner.reason
    assert "gave 1.50 times as much, but 2 blocks leave that open" in winner.reason


def test_a_finalist_that_only_the_full_tasks_expose_is_passed_over(tmp_path):
    run = study(tmp_path / "run", screen_catches=False, asked=scenario(trials=20))
    winner = run.run()
    assert winner.config["knobs"]["variant"] != "q4"
    judged = [t for t in run.laboratory.told if t.startswith("quality")]
    assert judged
    lost = [f.trial for f in winner.finalists if f.quality_passed is False]
    assert lost
    assert all(f.knobs["variant"] == "q4" for f in winner.finalists if f.trial in lost)


def test_no_feasible_configuration_names_the_nearest_miss(tmp_path):
    class Slow(Law):
        def trial(self, number, config, earlier, reference):
            result = super().trial(number, config, earlier, reference)
            over = {"slo": 0.5 + 0.1 * number}
            broken = result.trial.model_copy(update={"constraints": over, "score": 0.0, "state": "complete"})
            return result.model_copy(update={"trial": broken})

    run = study(tmp_path / "run")
    run.laboratory = Slow(run.laboratory.subject)
    winner = run.run()
    assert winner.outcome == "none_feasible"
    assert "trial 000 came nearest: it missed slo by 50%" in winner.nearest_miss


def test_when_every_other_trial_fails_the_defaults_are_kept(tmp_path):
    class Fragile(Law):
        def trial(self, number, config, earlier, reference):
            if number == 0:
                return super().trial(number, config, earlier, reference)
            return super().trial(number, config.with_knobs(crash=True), earlier, reference)

    run = study(tmp_path / "run", asked=scenario(trials=3))
    run.laboratory = Fragile(run.laboratory.subject)
    winner = run.run()
    assert winner.outcome == "keep_defaults"
    assert winner.score == 8.0


def test_defaults_that_fail_are_not_kept_when_the_finalists_fail_too(tmp_path):
    class Fading(Law):
        def trial(self, number, config, earlier, reference):
            result = super().trial(number, config, earlier, reference)
            if number == 0:
                dead = result.trial.model_copy(update={"score": 0.0, "constraints": {"slo": 0.4}})
                return result.model_copy(update={"trial": dead})
            return result

        def final(self, block, position, trial, control):
            return super().final(block, position, trial, control).model_copy(update={"score": 0.0})

    run = study(tmp_path / "run")
    run.laboratory = Fading(run.laboratory.subject)
    assert run.run().outcome == "none_feasible"


def test_a_void_step_is_never_recorded(tmp_path):
    class Busy(Law):
        def trial(self, number, config, earlier, reference):
            if number == 3:
                raise HostDisturbed("busy")
            return super().trial(number, config, earlier, reference)

    run = study(tmp_path / "run")
    run.laboratory = Busy(run.laboratory.subject)
    with pytest.raises(HostDisturbed):
        run.run()
    assert "trial/003" not in read(tmp_path / "run" / "ledger.jsonl")
    assert study(tmp_path / "run").run() == study(tmp_path / "other").run()


def test_impossible_configurations_are_neither_launched_nor_paid_for(tmp_path):
    run = study(tmp_path / "run", asked=scenario(trials=20))
    run.run()
    steps = read(tmp_path / "run" / "ledger.jsonl")
    tried = [steps[s]["trial"]["knobs"]["slots"] for s in steps if s.startswith("trial/")]
    assert 16 not in tried
    assert len(tried) == 21


def test_the_wall_clock_budget_counts_what_the_ledger_says(tmp_path):
    study(tmp_path / "run", asked=scenario(wall_clock_s=35)).run()
    steps = [s for s in read(tmp_path / "run" / "ledger.jsonl") if s.startswith("trial/")]
    assert len(steps) == 1 + 4, "the control is outside the budget; the trial that crosses the limit is finished"


def test_a_folder_of_another_scenario_is_refused(tmp_path):
    study(tmp_path / "run").run()
    with pytest.raises(UserError, match="a study of another scenario"):
        study(tmp_path / "run", asked=scenario(trials=3)).run()
