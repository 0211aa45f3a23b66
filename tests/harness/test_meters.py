"""The meters read this machine's own kernel; what this machine cannot show is read from files like the kernel's."""

import os
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from harness.measurement import HostReading
from harness.meters import HostMeters, Kernel, is_here

pytestmark = pytest.mark.alone

BURN = "import time; end = time.monotonic() + 30\nwhile time.monotonic() < end: pass"


@pytest.fixture
def kernel(tmp_path):
    """An empty kernel: it tells nothing. ``write`` adds a file."""

    class Files(Kernel):
        def write(self, path, text):
            file = (self.proc if path.startswith("proc/") else self.sys).parent / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))

    return Files(tmp_path / "proc", tmp_path / "sys")


def test_what_is_not_told_is_none(kernel, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = HostMeters(list, kernel).reading()
    told = {"clock_step_ms", "suspended_ms"}  # system calls, not files
    assert found.model_dump(exclude=told) == HostReading().model_dump(exclude=told)
    assert abs(found.clock_step_ms) < 0.5
    assert abs(found.suspended_ms) < 0.5


def test_this_machine_tells_its_cpu_time_and_clock():
    meters = HostMeters(list)
    time.sleep(0.2)
    found = meters.reading()
    assert 0 <= found.steal_share <= 1
    assert 0 <= found.foreign_cpu_share <= 1
    assert len(found.clocksources) == 1


def test_cpu_time_of_our_children_is_ours_and_that_of_strangers_is_not():
    """Their parents are beside us: one burner is our child, the other has been left by its own parent."""
    cores = psutil.cpu_count()
    orphaning = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BURN!r}]); sys.exit()"
    shares = {}
    for name, program in (("ours", BURN), ("a stranger's", orphaning)):
        with subprocess.Popen([sys.executable, "-S", "-c", program], start_new_session=True) as child:
            try:
                time.sleep(0.3)
                meters = HostMeters(list)
                time.sleep(1.5)
                shares[name] = meters.reading().foreign_cpu_share
            finally:
                os.killpg(child.pid, 9)
    assert shares["a stranger's"] > shares["ours"] - 0.2 / cores  # others may work on this machine too
    assert shares["a stranger's"] > 0.4 / cores


def test_an_engine_here_that_is_not_ours_makes_others_untellable():
    meters = HostMeters(None)
    time.sleep(0.2)
    found = meters.reading()
    assert found.foreign_cpu_share is None
    assert found.steal_share is not None


@pytest.mark.parametrize(("url", "here"), [("http://127.0.0.1:8000", True), ("http://localhost:1/v1", True)])
def test_the_loopback_is_here(url, here):
    assert is_here(url) is here


def test_another_address_is_elsewhere():
    assert not is_here("http://192.0.2.1:8000/v1")
    own = [a.address for addresses in psutil.net_if_addrs().values() for a in addresses if a.family.name == "AF_INET"]
    assert all(is_here(f"http://{address}:80") for address in own)


def test_the_time_that_engine_and_load_generator_wait_for_a_core():
    """Two busy processes on one core: each waits half of the time. One is the engine, both have come later."""
    core = {min(os.sched_getaffinity(0))}
    meters = HostMeters(list)
    started = [subprocess.Popen([sys.executable, "-S", "-c", BURN]) for _ in range(2)]
    try:
        for process in started:
            os.sched_setaffinity(process.pid, core)
        time.sleep(0.2)
        engines = HostMeters(lambda: [psutil.Process(started[0].pid)])
        meters.look()
        time.sleep(1.0)
        meters.look()
        assert 0.2 < meters.reading().client_wait_share < 1.0
        engine = engines.reading()
        assert 0.2 < engine.engine_wait_share < 1.0
        assert engine.engine_wait_us > 100
    finally:
        for process in started:
            process.kill()
            process.wait()


GROWING = {
    # files before, files after, what is read then
    "pressure": (
        {"proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000\n"},
        {"proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=51000\n"},
        ("cpu_stalled_share", 0.05),
    ),
    "memory pressure": (
        {"proc/pressure/memory": "some avg10=0 total=9\nfull avg10=0 total=0\n"},
        {"proc/pressure/memory": "some avg10=0 total=9\nfull avg10=0 total=50000\n"},
        ("memory_stalled_share", 0.05),
    ),
    "quota, version 2": (
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.stat": "usage_usec 5\nthrottled_usec 0\n"},
        {"sys/fs/cgroup/a/cpu.stat": "usage_usec 9\nthrottled_usec 50000\n"},
        ("throttled_share", 0.05),
    ),
    "quota, version 1": (
        {"proc/self/cgroup": "3:cpu,cpuacct:/\n", "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "throttled_time 0\n"},
        {"sys/fs/cgroup/cpu,cpuacct/cpu.stat": "throttled_time 50000000\n"},
        ("throttled_share", 0.05),
    ),
    "heat": (
        {
            f"sys/devices/system/cpu/cpu{i}/thermal_throttle/{what}_throttle_total_time_ms": "7\n"
            for i in range(2)
            for what in ("core", "package")
        },
        {"sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_total_time_ms": "57\n"},
        ("thermal_throttled_share", 0.05),
    ),
    "swap": (
        {"proc/vmstat": "pgpgin 1\npswpin 10\npswpout 0\n"},
        {"proc/vmstat": "pgpgin 9\npswpin 30\npswpout 5\n"},
        ("swapped_bytes_per_s", 25 * os.sysconf("SC_PAGE_SIZE")),
    ),
    "steal": (
        {"proc/stat": "cpu  10 0 10 100 0 0 0 0 0 0\ncpu0 10 0 10 100 0 0 0 0 0 0\n"},
        {"proc/stat": "cpu  50 0 50 200 5 0 0 5 0 0\ncpu0 50 0 50 200 5 0 0 5 0 0\n"},
        ("steal_share", 5 / 190),
    ),
}


@pytest.mark.parametrize("case", GROWING)
def test_counters_that_grow_become_shares_of_the_time(case, kernel, monkeypatch):
    before, after, (name, expected) = GROWING[case]
    now = iter((10_000_000_000, 11_000_000_000))
    monkeypatch.setattr("harness.meters._offset_ns", lambda _clock: 0)
    monkeypatch.setattr("harness.meters._gpus", lambda _engine: (None, None))
    monkeypatch.setattr("harness.meters.limits", lambda: type("Limits", (), {"cores": 1}))
    monkeypatch.setattr("harness.meters.time.monotonic_ns", lambda: next(now))
    for path, text in before.items():
        kernel.write(path, text)
    meters = HostMeters(list, kernel)
    for path, text in after.items():
        kernel.write(path, text)
    assert getattr(meters.reading(), name) == pytest.approx(expected)


def test_a_clock_that_the_kernel_gives_up_is_seen(kernel):
    source = "sys/devices/system/clocksource/clocksource0/current_clocksource"
    kernel.write(source, "tsc\n")
    meters = HostMeters(list, kernel)
    kernel.write(source, "hpet\n")
    assert meters.reading().clocksources == ("tsc", "hpet")


def test_a_wall_clock_that_is_set_is_seen(monkeypatch):
    real = time.clock_gettime_ns
    meters = HostMeters(list)
    step = {time.CLOCK_REALTIME: -40_000_000}
    monkeypatch.setattr("harness.meters.time.clock_gettime_ns", lambda clock: real(clock) + step.get(clock, 0))
    found = meters.reading()
    assert found.clock_step_ms == pytest.approx(-40, abs=0.5)
    assert abs(found.suspended_ms) < 0.5


NVIDIA_SMI = """#!/bin/sh
case "$1" in
*compute-apps*) printf 'GPU-a, {own}\\nGPU-a, {other}\\nGPU-b, 77\\n' ;;
*{group}*) printf 'GPU-a, Not Active, {heat}, Not Active\\nGPU-b, Active, Active, Active\\n' ;;
*) echo 'Field is not a valid field to query.'; exit 2 ;;
esac
"""


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ({"own": 4242, "other": 99, "heat": "Not Active"}, (1, False)),
        ({"own": 4242, "other": 4242, "heat": "Not Active"}, (0, False)),
        ({"own": 4242, "other": 4242, "heat": "Active"}, (0, True)),
        ({"own": 4242, "other": 4242, "heat": "Active", "group": "clocks_throttle_reasons"}, (0, True)),
        ({"own": 99, "other": 99, "heat": "Active"}, (None, None)),  # the engine is on no GPU
    ],
)
def test_neighbours_on_the_engines_gpu(says, expected, tmp_path, monkeypatch):
    """nvidia-smi's words, where there is no GPU to ask."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(NVIDIA_SMI.format(**{"group": "clocks_event_reasons", **says}))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    engine = [type("Process", (), {"pid": 4242})]
    monkeypatch.setattr("harness.meters._scheduled", lambda _proc, _pids: None)
    found = HostMeters(lambda: engine).reading()
    assert (found.gpu_neighbours, found.gpu_slowed) == expected


def test_reading_costs_little():
    began = time.process_time()
    HostMeters(list).reading()
    assert time.process_time() - began < 0.25
