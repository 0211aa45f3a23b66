"""Who was the limit, what is said to do about it, and that every limit that is documented is one."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.audit import HOST_LIMITS, Asked, audit, void
from harness.errors import HostDisturbed, LoadGeneratorSaturated
from harness.load.records import LoadResult
from harness.measurement import HostReading

METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ASKED = Asked(offered=100, achieved=100, seconds=10.0, scheduled=True, tightest_ms=100.0)


def load(**changes):
    settled = {
        "records_path": Path("requests.parquet"),
        "t0_monotonic_ns": 0,
        "t0_wall_iso": "2026-01-01T00:00:00Z",
        "elapsed_s": 10.0,
        "stopped_early": None,
        "planned": 100,
        "sent": 100,
        "send_lateness_p50_ms": 0.1,
        "send_lateness_p99_ms": 0.4,
        "loop_lag_p99_ms": 0.2,
        "cpu_s": 1.0,
        "cpu_share": 0.1,
        "max_rss_bytes": 1,
        "connections_opened": 1,
        "stale_connections_replaced": 0,
        "locust_version": "2",
        "scheduling": "realtime",
    }
    return LoadResult(**{**settled, **changes})


LATE = load(send_lateness_p99_ms=30.0)
AT_THE_LIMIT = {limit.name: limit.limit for limit in HOST_LIMITS}
BEYOND = {
    limit.name: limit.limit + max(1, limit.limit) if limit.limit in (0, 1, 1e6) else 0.99 for limit in HOST_LIMITS
}


@pytest.mark.parametrize("name", AT_THE_LIMIT)
def test_every_reading_beyond_its_limit_voids_the_run_and_is_the_hosts_doing(name):
    fine, beyond = (audit(ASKED, load(), HostReading(**{name: v[name]})) for v in (AT_THE_LIMIT, BEYOND))
    assert (fine.void_reasons, fine.limited_by, fine.advice) == ((), None, "")
    assert len(beyond.void_reasons) == 1
    error = void(beyond)
    assert isinstance(error, HostDisturbed)
    assert beyond.void_reasons[0] in str(error)
    assert beyond.advice[1:] in str(error)


def test_a_clock_set_back_is_as_bad_as_one_set_forward():
    assert audit(ASKED, load(), HostReading(clock_step_ms=-40.0)).limited_by == "host"


def test_a_clock_that_the_kernel_gave_up_is_no_clock():
    assert audit(ASKED, load(), HostReading(clocksources=("tsc",))).void_reasons == ()
    found = audit(ASKED, load(), HostReading(clocksources=("tsc", "hpet")))
    assert found.void_reasons == ("the kernel changed its clock: tsc -> hpet",)


def test_what_the_machine_does_not_tell_voids_nothing():
    found = audit(ASKED, load(), HostReading())
    assert found.void_reasons == ()
    assert found.foreign_cpu_share is None


@pytest.mark.parametrize(
    ("seen", "advice"),
    [
        ({"send_lateness_p99_ms": 2.1, "cpu_share": 0.95}, "--workers 2"),
        ({"send_lateness_p99_ms": 2.1, "scheduling": "short slice"}, "autotune doctor"),
        ({"loop_lag_p99_ms": 2.1}, "fewer engine threads"),
        ({"cpu_share": 0.91}, "--workers 2"),
    ],
)
def test_a_late_client_on_a_quiet_machine_is_the_limit_itself(seen, advice):
    error = void(audit(ASKED, load(**seen), HostReading(foreign_cpu_share=0.02)))
    assert isinstance(error, LoadGeneratorSaturated)
    assert advice in str(error)


def test_a_late_client_on_a_disturbed_machine_is_late_because_of_that():
    found = audit(ASKED, LATE, HostReading(foreign_cpu_share=0.5, client_wait_share=0.4))
    assert found.limited_by == "host"
    assert len(found.void_reasons) == 2
    assert "it waited for a core 40% of the time" in found.void_reasons[1]
    assert found.advice == "close other programs"


def test_other_programs_that_take_nothing_from_the_engine_do_no_harm():
    """Nor does an engine whose threads wait for each other."""
    for wait, other, void_ in ((0.01, 0.5, False), (0.03, 0.5, True), (None, 0.5, True), (0.5, 0.05, False)):
        found = audit(ASKED, load(), HostReading(engine_wait_share=wait, foreign_cpu_share=other))
        assert bool(found.void_reasons) == void_, (wait, other)
    for mean_us, void_ in ((49, False), (51, True)):
        reading = HostReading(engine_wait_share=0.5, engine_wait_us=mean_us, foreign_cpu_share=0.5)
        assert bool(audit(ASKED, load(), reading).void_reasons) == void_, mean_us


def test_an_engine_that_fills_the_memory_makes_the_machine_swap_by_itself():
    swapping = HostReading(swapped_bytes_per_s=5e6, memory_stalled_share=0.3)
    assert audit(ASKED, load(), swapping, engine_memory_share=0.3).limited_by == "host"
    assert audit(ASKED, load(), swapping, engine_memory_share=None).limited_by == "host"
    assert audit(ASKED, load(), swapping, engine_memory_share=0.8).void_reasons == ()


def test_a_command_repeats_void_runs_as_a_study_does_and_then_gives_the_reason():
    from autotune.bench import _until_valid

    notes, outcomes = [], [HostDisturbed("busy"), LoadGeneratorSaturated("late"), "measured"]
    session = SimpleNamespace(
        subject=SimpleNamespace(
            scenario=SimpleNamespace(budget=SimpleNamespace(void_retries=2)),
            observer=SimpleNamespace(note=notes.append),
        )
    )

    def measure():
        outcome = outcomes.pop(0)
        if isinstance(outcome, str):
            return outcome
        raise outcome

    assert _until_valid(session, measure) == "measured"
    assert [note.strip() for note in notes] == ["void, repeated: busy", "void, repeated: late"]
    outcomes[:] = [HostDisturbed("busy")] * 3
    with pytest.raises(HostDisturbed):
        _until_valid(session, measure)
    assert not outcomes


def test_the_docs_tell_every_limit():
    page = METRICS_PAGE.read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| > ([0-9.e]+(?: %)?) \|", page, re.MULTILINE))
    limits = {name: float(text.removesuffix(" %")) / (100 if "%" in text else 1) for name, text in told.items()}
    assert limits == AT_THE_LIMIT
