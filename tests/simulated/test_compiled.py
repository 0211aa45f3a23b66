"""Where machine code is kept, and that it is not needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.engines.simulated import steps
from harness.engines.simulated.compiled import IS_COMPILED, MACHINE_CODE

ASK = """
from harness.engines.simulated import steps
print(steps.graph_size(9))
"""


def served(cache):
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    return done.stdout.strip()


@pytest.mark.skipif(not IS_COMPILED, reason="numba is not installed")
def test_machine_code_is_kept_under_the_digest_of_the_sources(tmp_path):
    assert served(tmp_path) == "16"
    kept = {path.name.split("-")[0] for path in (tmp_path / "autotune/simulated" / MACHINE_CODE.name).rglob("*.nbi")}
    assert kept == {"steps.graph_size"}


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    closed = tmp_path / "a file"
    closed.write_text("")
    assert served(closed) == "16"
    assert not list(Path(steps.__file__).parent.rglob("*.nbi"))  # where nobody would see that a callee has changed
