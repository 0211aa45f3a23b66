"""The command line as people run it, and what it must not leave behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

MARK, TOKEN = "AUTOTUNE_TEST_SESSION", uuid.uuid4().hex  # inherited by everything that a test starts
AUTOTUNE = [str(Path(sys.executable).with_name("autotune"))]


def start(*argv, cwd, **env) -> subprocess.Popen:
    return subprocess.Popen(
        [*AUTOTUNE, *map(str, argv)],
        cwd=cwd,
        env={**os.environ, MARK: TOKEN, "NO_COLOR": "1", "COLUMNS": "80", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout_s: float = 150) -> subprocess.CompletedProcess:
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # its engine must not run on beside the next test
        out, err = process.communicate(timeout=60)
        raise AssertionError(f"not done after {timeout_s:.0f} s; said last: {err[-2000:]}") from None
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.02)


def engines() -> list[psutil.Process]:
    """Every engine, guard and load child that these tests started."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.environ().get(MARK) != TOKEN:
                continue
            if "llamacpp_server.py" in line or "harness.load.locust_user" in line or "guard.py" in line:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until_gone(seconds: float = 15) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while engines() and time.monotonic() < deadline:
        time.sleep(0.1)
    return engines()
