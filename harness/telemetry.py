"""What the engine's processes use of this machine while they are under load.

Knows nothing of the load, nor of what disturbs a run (meters.py).
"""

import contextlib
import time

import psutil

from harness.measurement import Telemetry
from harness.supervise import Running


class EngineTree:
    """CPU and memory of the engine's processes between its construction and ``telemetry``."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._started = time.monotonic()
        self._cpu_before = self._cpu_s()
        self._rss_peak = 0
        self.look()

    def look(self) -> None:
        resident = 0
        for process in self._running.tree():
            with contextlib.suppress(psutil.Error):
                resident += process.memory_info().rss
        self._rss_peak = max(self._rss_peak, resident)

    def telemetry(self, engine_metrics: dict[str, float]) -> Telemetry:
        if not self._running.tree():
            return Telemetry(engine_metrics=engine_metrics)
        self.look()
        share = (self._cpu_s() - self._cpu_before) / max(1e-9, time.monotonic() - self._started)
        return Telemetry(rss_peak_bytes=self._rss_peak, cpu_share=share, engine_metrics=engine_metrics)

    def _cpu_s(self) -> float:
        spent = 0.0
        for process in self._running.tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                spent += times.user + times.system
        return spent
