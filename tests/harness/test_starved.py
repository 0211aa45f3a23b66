"""A load generator that is starved of its core measures nothing: the run is void, and nobody is told a latency.

Real processes: an engine on one core, the load child on another, which a hog takes from it again and again.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from harness.errors import HostDisturbed, LoadGeneratorSaturated, TrialVoid
from harness.judge import judge
from harness.load.priority import first_in_line
from harness.measurement import Measurement
from harness.observe import Target
from harness.versus import differences, reread
from tuners.evaluate import Hints, evaluate

sys.path.insert(0, str(Path(__file__).parent))
from telling import running, subject_of

pytestmark = pytest.mark.alone

TARGET = Target("ttft", 95, 40.0)  # the engine needs 20 ms
RATE_RPS = 60.0

# Before all others where that is granted, so that the load child cannot run at all while it burns.
HOG = textwrap.dedent("""
    import contextlib, os, sys, time
    os.sched_setaffinity(0, {int(sys.argv[1])})
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    over = time.monotonic() + 20
    while time.monotonic() < over:
        burnt = time.monotonic() + 0.06
        while time.monotonic() < burnt:
            pass
        time.sleep(0.04)
""")


def realtime():
    """Whether a hog of ours may run before all others."""
    with first_in_line() as granted:
        return granted == "realtime"


class Watcher:
    """Starves the load child from its first sign of life on, if told to."""

    def __init__(self, core=None):
        self.core = core
        self.hogs = []

    def begin(self, what, seconds):
        pass

    def note(self, line):
        pass

    def live(self, counters):
        if self.core is None or self.hogs:
            return
        (child,) = (p for p in psutil.Process().children() if "harness.load.locust_user" in p.cmdline())
        os.sched_setaffinity(child.pid, {self.core})
        self.hogs = [self._stranger() for _ in range(1 if realtime() else 8)]

    def _stranger(self):
        """A process that is no child of ours: its parent has ended."""
        argv = [sys.executable, "-c", "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid)"]
        with subprocess.Popen(
            [*argv, sys.executable, "-S", "-c", HOG, str(self.core)], stdout=subprocess.PIPE, start_new_session=True
        ) as parent:
            return int(parent.stdout.readline())

    def end(self):
        for pid in self.hogs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cores():
    """One core for the engine and this process, one for the load generator and the hog."""
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("needs two cores")
    engines, clients = sorted(mine)[:2]
    os.sched_setaffinity(0, {engines})
    yield clients
    os.sched_setaffinity(0, mine)


def measure(watcher, root):
    """What a tuner would be told: an Evaluation, or nothing because the run was void."""
    subject = subject_of(root, targets=(TARGET,), observer=watcher)
    try:
        with running(subject) as s:
            return evaluate(s, subject.scenario, rate_rps=RATE_RPS, seed=1, hints=Hints(RATE_RPS))
    finally:
        watcher.end()


def on_disk(root):
    return Measurement.model_validate_json((root / "engine" / "hold" / "measurement.json").read_text())


def test_a_starved_generator_is_void_and_never_a_slow_engine(tmp_path, cores):
    told = caught = None
    try:
        told = measure(Watcher(cores), tmp_path)
    except TrialVoid as err:
        caught = err
    found = on_disk(tmp_path)
    audit = found.audit
    late = audit.send_lateness_p99_ms > audit.send_lateness_limit_ms
    assert late or not realtime()
    if not late:  # a hog without privileges may not be strong enough
        assert told is not None or audit.void_reasons
        return
    assert told is None
    assert isinstance(caught, LoadGeneratorSaturated if audit.limited_by == "client" else HostDisturbed)
    (reason,) = (reason for reason in audit.void_reasons if "sent late" in reason)
    assert reason in str(caught)
    seen = reread(tmp_path / "engine" / "hold")
    assert judge(seen, alpha=0.05).outcome == "VOID"
    if realtime():
        # What would have been said without the audit, of an engine that answers everybody within 25 ms:
        unaudited = audit.model_copy(update={"void_reasons": ()})
        blind = dataclasses.replace(seen, measurement=seen.measurement.model_copy(update={"audit": unaudited}))
        assert found.metrics["ttft_p95_ms"].value > TARGET.target_ms
        assert judge(blind, alpha=0.05).outcome == "FAIL"
        assert audit.client_wait_share > 0.1


def test_left_alone_it_measures_the_engine(tmp_path, cores):
    """The guard above could be met by calling everything void; others may work on this machine, though."""
    try:
        told = measure(Watcher(), tmp_path)
    except TrialVoid as err:
        pytest.skip(f"this machine is too busy to measure on: {err}")
    assert told.runs[0].verdict.outcome != "VOID"
    assert on_disk(tmp_path).metrics["ttft_p95_ms"].value < TARGET.target_ms
    seen = reread(tmp_path / "engine" / "hold")
    assert seen.measurement.metrics == on_disk(tmp_path).metrics
    assert not any(difference.significant for difference in differences(seen, seen))
