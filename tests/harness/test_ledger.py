"""Append, kill, resume."""

import json
import os
import resource
import subprocess
import sys
import textwrap

import pytest

from harness.errors import RunFolderUnusable
from harness.ledger import Ledger, read
from scenarios.errors import UserError


def test_a_step_is_worked_out_once_and_read_back_afterwards(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        assert ledger.once("a", lambda: {"x": (1, 2)}) == {"x": [1, 2]}
        assert ledger.once("a", pytest.fail) == {"x": [1, 2]}
    with Ledger(path) as again:
        assert "a" in again
        assert again.once("a", pytest.fail) == {"x": [1, 2]}
        again.once("b", dict)
    assert list(read(path)) == ["a", "b"]


def test_a_half_written_last_line_is_dropped_and_the_step_done_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.once("a", lambda: {"n": 1})
    whole = path.read_bytes()
    with Ledger(path) as ledger:
        ledger.once("b", lambda: {"n": 2})
    both = path.read_bytes()
    for cut in range(len(whole) + 1, len(both)):
        path.write_bytes(both[:cut])
        assert list(read(path)) == ["a"]
    with Ledger(path) as ledger:
        assert ledger.once("b", lambda: {"n": 3}) == {"n": 3}
    assert read(path) == {"a": {"n": 1}, "b": {"n": 3}}


def test_a_damaged_line_in_the_middle_is_refused_not_skipped(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.once("a", dict)
        ledger.once("b", dict)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0][:5] + b"\n" + lines[1])
    with pytest.raises(UserError, match="damaged entry"):
        read(path)


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path), pytest.raises(UserError, match="in use by another autotune process"):
        Ledger(path)


def test_not_a_number_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger, pytest.raises(ValueError, match="not JSON compliant"):
        ledger.once("a", lambda: {"x": float("nan")})
    assert read(path) == {}


def test_a_full_disk_loses_nothing_that_was_recorded(tmp_path):
    """A file-size limit stands in for the disk: the kernel cuts the write short in the same way."""
    path = tmp_path / "ledger.jsonl"
    program = textwrap.dedent(
        f"""
        import resource, signal
        from pathlib import Path
        from harness.errors import RunFolderUnusable
        from harness.ledger import Ledger
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        with Ledger(Path({str(path)!r})) as ledger:
            ledger.once("small", lambda: {{"x": 1}})
            try:
                ledger.once("large", lambda: {{"x": "y" * 1000}})
            except RunFolderUnusable as err:
                print(err)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert "--resume" in done.stdout
    assert list(read(path)) == ["small"]
    assert path.read_bytes().endswith(b"\n")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    if os.geteuid() == 0:
        with pytest.raises(RunFolderUnusable, match="cannot write"):
            Ledger(tmp_path / "missing" / "ledger.jsonl")
    else:
        tmp_path.chmod(0o500)
        with pytest.raises(RunFolderUnusable, match="no permission"):
            Ledger(tmp_path / "ledger.jsonl")


def test_entries_carry_their_order_and_time(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, clock=lambda: 12.3456) as ledger:
        ledger.once("a", dict)
        ledger.once("b", dict)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e["seq"], e["at_unix_s"], e["step"]) for e in entries] == [(0, 12.346, "a"), (1, 12.346, "b")]
