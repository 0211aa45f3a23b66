"""How runs of load end: on an engine whose answers are as late as the test wants."""

import contextlib
import sys
from pathlib import Path

import pytest

from harness import bench
from harness.bench import DRAIN_PROBES
from harness.errors import TrialVoid
from harness.instruments import Instruments
from harness.observe import Target

sys.path.insert(0, str(Path(__file__).parent))
from telling import RATE_RPS, running, subject_of

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(("target_ms", "ends"), [(1.0, ["read", *["probe"] * DRAIN_PROBES]), (400.0, ["read"])])
def test_what_a_stopped_hold_left_queued_is_waited_for_after_the_figures_are_read(
    tmp_path, monkeypatch, target_ms, ends
):
    happened = []

    def told(what, real):
        def spy(*args, **kwargs):
            happened.append(what)
            return real(*args, **kwargs)

        return spy

    monkeypatch.setattr(Instruments, "read", told("read", Instruments.read))
    monkeypatch.setattr(bench, "complete", told("probe", bench.complete))
    with contextlib.suppress(TrialVoid), running(subject_of(tmp_path, targets=[Target("ttft", 95, target_ms)])) as s:
        s.hold(RATE_RPS, 3.0, seed=1, name="hold", until_certain=True)
    assert happened == ends


@pytest.mark.parametrize("late_s", [0.0, 4.0])
def test_a_hold_that_ends_before_the_first_answer_says_what_it_does_not_know(tmp_path, late_s):
    subject = subject_of(tmp_path, targets=[Target("ttft", 95, 6000.0)])
    with contextlib.suppress(TrialVoid), running(subject, late_s) as s:
        s.hold(RATE_RPS, 3.0, seed=1, name="hold", until_certain=True)
    assert any("whether it keeps up is not known" in note for note in subject.observer.notes) == (late_s > 0)


@pytest.mark.parametrize(("late_s", "misses"), [(4.0, True), (2.0, False)])
def test_a_ramp_shorter_than_its_target_still_shows_who_misses_it(tmp_path, late_s, misses):
    """A second of requests, none of which can be late before three: their misses are seen when it is over."""
    with running(subject_of(tmp_path, targets=[Target("ttft", 95, 3000.0)]), late_s) as s:
        try:
            found = s.ramp(10.0, 80.0, seed=1).observed.missed
        except TrialVoid:
            pytest.skip("a busy machine")
    assert found.any() == misses
