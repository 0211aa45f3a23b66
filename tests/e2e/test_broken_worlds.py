"""What goes wrong at 3 a.m.: each ends in one clear message, the right exit code, and nothing left over."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from command_line import engines, finish, start, wait_for, wait_until_gone

pytestmark = [pytest.mark.e2e, pytest.mark.engine]


def bench_under_load(scenario, home):
    """A bench whose hold is running, and its engine's process."""
    process = start("bench", scenario, "--rate", 4, "--seconds", 60, "--run", home / "b", cwd=home)
    wait_for(home / "b" / "engine" / "hold", process)
    time.sleep(2)
    (engine,) = [
        p for p in engines() if "llamacpp_server.py" in " ".join(p.cmdline()) and "guard.py" not in str(p.cmdline())
    ]
    return process, engine


def test_an_engine_that_dies_under_load(plain_scenario, tmp_path):
    process, engine = bench_under_load(plain_scenario(), tmp_path)
    engine.kill()
    done = finish(process, 30)
    assert done.returncode == 3
    assert "llamacpp" in done.stderr
    assert "killed by signal 9" in done.stderr
    assert wait_until_gone() == []


def test_an_engine_that_hangs_under_load(plain_scenario, tmp_path):
    process, engine = bench_under_load(plain_scenario(", hang_timeout_s: 3"), tmp_path)
    engine.send_signal(signal.SIGSTOP)
    done = finish(process, 40)
    assert done.returncode == 3
    assert "gave no token for 3 s with requests in flight" in done.stderr
    assert wait_until_gone() == []


def test_a_port_that_is_taken(plain_scenario, tmp_path, autotune):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = autotune("bench", plain_scenario(f", port: {port}"), "--run", tmp_path / "b", cwd=tmp_path)
    assert done.returncode == 3
    assert "port taken" in done.stderr
    assert wait_until_gone() == []


@pytest.mark.parametrize(("spoil", "said"), [("truncate", "truncated"), ("remove", "no such file")])
def test_a_model_file_that_is_not_whole_or_not_there(model, tmp_path, autotune, spoil, said):
    weights = tmp_path / "model.gguf"
    if spoil == "truncate":
        weights.write_bytes(model.variants["q4_0"].read_bytes()[:20_000_000])
    scenario = tmp_path / "own.yaml"
    scenario.write_text(
        "name: own\nmodel: {path: model.gguf, context_tokens: 128}\nworkload:\n"
        "  prompt_tokens: {mean: 8}\n  output_tokens: {mean: 8}\nslo: {ttft: {target_ms: 500}}\n"
    )
    done = autotune("bench", scenario, "--rate", 1, "--run", tmp_path / "b", cwd=tmp_path)
    assert done.returncode == 2
    assert "model.gguf" in done.stderr
    assert said in done.stderr.lower()
    assert not (tmp_path / "b").exists()


def test_a_full_disk_in_the_run_folder(scenario, tmp_path):
    """A file system of 100 KB, as root may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", small]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        done = finish(start("tune", scenario, "--run", small / "run", "--no-track", cwd=tmp_path), 120)
        assert done.returncode == 3
        assert "disk is full" in done.stderr
        assert "--resume" in done.stderr
        assert wait_until_gone() == []
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.fixture
def stranger(tmp_path):
    """Somebody's server: it answers, not as a stream."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = Path(__file__).parents[1] / "harness" / "scripted_engine.py"
    server = subprocess.Popen([sys.executable, "-S", script, "ok", str(port)])
    yield port
    server.kill()
    server.wait()


def test_a_key_never_reaches_a_file_or_the_screen(stranger, tmp_path, autotune):
    scenario = tmp_path / "attached.yaml"
    scenario.write_text(
        "name: theirs\nmodel: {served_as: m, context_tokens: 128}\n"
        f"engine: {{name: attached, base_url: 'http://127.0.0.1:{stranger}/v1', api_key_env: THE_KEY}}\n"
        "workload:\n  prompt_tokens: {mean: 8}\n  output_tokens: {mean: 8}\nslo: {ttft: {target_ms: 500}}\n"
    )
    done = autotune(
        "bench", scenario, "--rate", 9, "--seconds", 3, "--run", tmp_path / "b", cwd=tmp_path, THE_KEY="s3cr3t-k3y"
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "b").rglob("requests.parquet"))
    written = [p for p in (tmp_path / "b").rglob("*") if p.is_file() and b"s3cr3t-k3y" in p.read_bytes()]
    assert written == []
    assert "s3cr3t" not in done.stdout + done.stderr
    assert os.environ.get("THE_KEY") is None
