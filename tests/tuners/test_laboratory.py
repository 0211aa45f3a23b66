"""What a trial says when attempts were void, and when the model is asked: on an engine that is only pretended."""

import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import EngineCrashed, HostDisturbed
from tuners import laboratory
from tuners.evaluate import Evaluation
from tuners.laboratory import Laboratory
from tuners.results import Capacity

sys.path.insert(0, str(Path(__file__).parent))
from analytic_study import SPACE, Law, Silent, plan, scenario

VOID, CRASH, FINE = HostDisturbed("busy"), EngineCrashed("it crashed"), None
ATTEMPT_S = {VOID: 100.0, CRASH: 7.0, FINE: 30.0}


@dataclass
class Pretended:
    """Attempts that end as told, each taking its seconds of a clock that nothing else moves."""

    endings: list
    now_s: float = 1000.0
    told: list = field(default_factory=list)

    @contextmanager
    def session(self, subject, config, folder):
        del folder
        self.told.append("launch")
        running = SimpleNamespace(cold_start_s=1.0)
        yield SimpleNamespace(
            subject=subject, running=running, plan=plan(config), warm_up=lambda seed: self.told.append("warm-up")
        )
        self.told.append("stop")

    def evaluate(self, s, scenario, *, rate_rps, seed, hints, prefix=""):
        del s, scenario, rate_rps, seed, prefix
        ending = self.endings.pop(0)
        self.now_s += ATTEMPT_S[ending]
        if ending is not None:
            raise ending
        self.told.append(f"ramp at {hints.guess_rps:g}")
        found = Capacity(rate_rps=9.0, highest_passed_rps=9.0, lowest_failed_rps=None, raced=False, probes=())
        return Evaluation(9.0, -0.1, found, (), passed=True, why="as told")


@pytest.fixture
def laboratory_of(tmp_path, monkeypatch):
    """A laboratory whose attempts end as told, its reference; and what happened, in order."""

    def make(*endings):
        pretended = Pretended(list(endings))
        monkeypatch.setattr(laboratory, "session", pretended.session)
        monkeypatch.setattr(laboratory, "evaluate", pretended.evaluate)
        wanted = scenario()
        wanted = wanted.model_copy(update={"quality": wanted.quality.model_copy(update={"tasks": ()})})
        subject = SimpleNamespace(
            scenario=wanted, root=tmp_path, targets=(), plan=plan, identity=lambda _: None, observer=Silent()
        )

        def expects(history, config):
            del history
            pretended.told.append(f"model asked for {config.knobs['slots']} slots")
            return 5.0

        reference = Law(subject).reference().model_copy(update={"quality_file": None})
        return Laboratory(subject, SPACE, expects, lambda: pretended.now_s), reference, pretended.told

    return make


@pytest.fixture
def tried(laboratory_of):
    """The result of one trial whose attempts end as told; and what happened, in order."""

    def try_it(*endings):
        place, reference, told = laboratory_of(*endings)
        return place.trial(3, SPACE.complete({"slots": 8}), [], reference), told

    return try_it


@pytest.mark.parametrize("ending", [FINE, CRASH])
@pytest.mark.parametrize("voided", [0, 2])
def test_only_the_attempt_that_counts_is_paid_for(tried, ending, voided):
    result, _ = tried(*[VOID] * voided, ending)
    assert result.trial.state == ("complete" if ending is FINE else "infeasible")
    assert result.trial.seconds == ATTEMPT_S[ending]
    assert result.voided == voided


def test_a_trial_that_is_void_each_time_has_no_result(tried):
    with pytest.raises(HostDisturbed, match="void 3 times"):
        tried(VOID, VOID, VOID)


def test_the_model_is_asked_once_and_while_no_engine_runs(tried):
    _, told = tried(VOID, FINE)
    assert told == ["model asked for 8 slots", "launch", "warm-up", "launch", "warm-up", "ramp at 5", "stop"]


def test_entrants_of_a_final_begin_where_the_defaults_were_found(laboratory_of):
    """Not where the search scored them: who had luck would be looked for higher."""
    place, reference, told = laboratory_of(FINE, FINE, FINE)
    control = place.trial(0, SPACE.default(), [], reference)
    lucky = control.trial.model_copy(update={"number": 7, "score": 40.0})
    told.clear()
    runs = [place.final(0, position, trial, control) for position, trial in enumerate((lucky, control.trial))]
    assert [line for line in told if line.startswith("ramp")] == ["ramp at 9", "ramp at 9"]
    assert [(run.trial, run.score) for run in runs] == [(7, 9.0), (0, 9.0)]
