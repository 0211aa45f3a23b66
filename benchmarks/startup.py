"""How long `autotune --help` takes, against a bare interpreter. Target: under 300 ms.

Prints medians in ms and their ratio; exits 1 above the target.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

TARGET_MS = 300.0
RUNS = 15


def median_ms(argv: list[str]) -> float:
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run(argv, check=True, capture_output=True)
        taken.append((time.perf_counter() - started) * 1e3)
    return statistics.median(taken)


def main() -> int:
    bare = median_ms([sys.executable, "-c", "pass"])
    shown = median_ms([str(Path(sys.executable).with_name("autotune")), "--help"])
    print(f"python -c pass   {bare:7.1f} ms")
    ratio = shown / bare
    print(f"autotune --help  {shown:7.1f} ms   {ratio:.1f} times the bare interpreter, target {TARGET_MS:.0f} ms")
    return int(shown > TARGET_MS)


if __name__ == "__main__":
    sys.exit(main())
