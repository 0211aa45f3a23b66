"""What a person sees while a study runs: the two moving lines, on a clock that the test moves."""

import io
import time

import pytest
from rich.console import Console

from autotune.live import Watch
from harness.load.records import LiveCounters


@pytest.fixture
def clock(monkeypatch):
    moved = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: moved[0])
    return moved


@pytest.fixture
def watch(clock):
    del clock
    return Watch(Console(file=io.StringIO(), width=80))


def lines(watch):
    console = Console(file=io.StringIO(), width=80)
    console.print(watch.lines())
    return console.file.getvalue().splitlines()


def test_equal_parts_one_after_another_each_have_their_own_seconds(watch, clock):
    watch.begin("hold 13.50 requests/s", 12.0)
    clock[0] += 11.0
    assert lines(watch)[0].strip() == "hold 13.50 requests/s  11/12 s"
    watch.begin("hold 13.50 requests/s", 12.0)
    clock[0] += 4.0
    first, second = lines(watch)
    assert first.strip() == "hold 13.50 requests/s  4/12 s"
    assert second.strip() == "0:15"


def test_the_load_so_far_is_said_and_fits_a_narrow_terminal(watch):
    watch.begin("hold 13.50 requests/s", 12.0)
    watch.live(
        LiveCounters(
            elapsed_s=3.0,
            planned=160,
            sent=40,
            done=31,
            failed=0,
            in_flight=9,
            late=0,
            misses={"ttft": 2, "tpot": 0},
            newest_token_age_s=0.01,
        )
    )
    watch.progress(3, 20)
    first, second = lines(watch)
    assert first.strip() == "hold 13.50 requests/s  0/12 s  31 answered, 9 in flight, missed ttft 2"
    assert second.strip() == "0:00  ·  configuration 4 of 20"
    assert max(map(len, (first, second))) <= 80
