"""What a process and all its descendants use while they run: CPU and memory, sampled.

Knows nothing of what they do.
"""

import threading
import time
from pathlib import Path

import numpy as np
import psutil

_EVERY_S = 0.2
_MEMORY_EVERY = 5  # reading PSS walks page tables


class Footprint(threading.Thread):
    """Samples until ``stop``. CPU of a process that has ended stays counted, up to its last sample."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._stopped = threading.Event()
        self._cpu_s: dict[tuple[int, float], float] = {}
        self._samples: list[tuple[int, float]] = []
        self.peak_pss_bytes = 0
        self.most_processes = 0

    def run(self) -> None:
        count = 0
        while not self._stopped.wait(_EVERY_S):
            tree = self._tree()
            self.most_processes = max(self.most_processes, len(tree))
            for process in tree:
                try:
                    used = process.cpu_times()
                    self._cpu_s[process.pid, process.create_time()] = used.user + used.system
                except psutil.Error:
                    continue  # it has ended; its last sample stands
            self._samples.append((time.monotonic_ns(), sum(self._cpu_s.values())))
            if count % _MEMORY_EVERY == 0:
                self.peak_pss_bytes = max(self.peak_pss_bytes, sum(_pss_bytes(p.pid) for p in tree))
            count += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def cpu_s_between(self, from_ns: int, to_ns: int) -> float | None:
        """Interpolated between samples; None: not sampled then."""
        if len(self._samples) < 2 or from_ns > self._samples[-1][0]:
            return None
        times, used = (np.array(column, dtype=float) for column in zip(*self._samples, strict=True))
        before, after = np.interp([from_ns, to_ns], times, used)
        return float(after - before)

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _pss_bytes(pid: int) -> int:
    """Memory, where shared pages count in shares; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
