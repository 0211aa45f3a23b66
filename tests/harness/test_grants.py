"""What `autotune doctor` says of this machine, and of machines that grant less."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from typer.testing import CliRunner

from harness.grants import grants, wake_up_p99_ms

STINGY = {
    "proc/sys/net/ipv4/ip_local_port_range": "60000\t60999\n",
    "proc/self/timerslack_ns": "1000000\n",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
    "sys/fs/cgroup/cpu.max": "150000 100000\n",
}
GENEROUS = {
    "proc/sys/net/ipv4/ip_local_port_range": "15000\t64999\n",
    "proc/self/timerslack_ns": "50000\n",
    "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    "sys/fs/cgroup/cpu.max": "max 100000\n",
}
FROM_FILES = ("ephemeral ports", "timer slack", "clock", "pressure (PSI)", "frequency governor", "CPU quota")


def on(files, tmp_path):
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return {grant.name: grant for grant in grants(tmp_path / "proc", tmp_path / "sys") if grant.name in FROM_FILES}


def test_what_lacks_is_said_with_what_grants_it(tmp_path):
    found = on(STINGY, tmp_path)
    assert set(found) == set(FROM_FILES)
    assert [grant.name for grant in found.values() if grant.ok is not False or not grant.how] == []
    assert found["ephemeral ports"].found == "1,000"
    assert found["timer slack"].found == "1000 µs"
    assert found["CPU quota"].found == "limited: 150000 100000"


def test_what_is_granted_needs_no_advice(tmp_path):
    assert [(grant.ok, grant.how) for grant in on(GENEROUS, tmp_path).values()] == [(True, "")] * len(FROM_FILES)


def test_what_is_not_told_is_neither(tmp_path):
    found = on({}, tmp_path)
    assert {grant.ok for name, grant in found.items() if name != "pressure (PSI)"} == {None}


def test_an_old_cgroup_tells_its_quota_too(tmp_path):
    assert on({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, tmp_path)["CPU quota"].ok is True
    assert on({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n"}, tmp_path)["CPU quota"].ok is False


def test_real_time_is_granted_or_told_how():
    """As whoever runs the tests, and as somebody without privileges where that can be tried."""
    program = textwrap.dedent("""
        import os, sys
        from harness.grants import grants
        if sys.argv[1:]:
            os.setuid(65534)
        first = next(grants())
        print(first.name, first.ok, bool(first.how), "rtprio" in first.how, sep="|")
    """)
    for unprivileged in ([], ["unprivileged"]) if os.geteuid() == 0 else ([],):
        argv = [sys.executable, "-c", program, *unprivileged]
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
        assert said in ("real-time scheduling|True|False|False", "real-time scheduling|False|True|True")
        assert not unprivileged or "|False|" in said


def test_a_wake_up_is_late_but_not_early():
    assert 0 < wake_up_p99_ms(wake_ups=50) < 1000


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_doctor_tells_all_of_it(flags):
    from autotune.cli import app

    result = CliRunner(env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}).invoke(app, ["doctor", *flags])
    assert result.exit_code == 0, result.output
    names = [grant.name for grant in grants()]
    if flags:
        assert [grant["name"] for grant in json.loads(result.output)["grants"]] == names
    else:
        assert all(name in result.output for name in names)
