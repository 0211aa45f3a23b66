"""The GPUs that an engine is on, by NVML (extra `gpu`): energy, power, memory, clocks, and what slowed them down.

Knows no limits: audit.py says what is too much. Without NVML, or where none of the engine's processes is seen on a GPU
(another PID namespace), nothing is told.
"""

import importlib
import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

from harness.measurement import GpuReading

LOOK_EVERY_S = 1.0
SLOWED = {  # bits of the clocks' event reasons: by heat or power, not by a cap that was set
    "thermal slowdown by software": 0x20,
    "thermal slowdown by hardware": 0x40,
    "power brake": 0x80,
}
EVENTS = ("Event", "Throttle")  # as newer drivers call it, and older ones
REASONS = {**SLOWED, "power cap": 0x04, "slowdown by hardware": 0x08}


class Gpus:
    """Looked at between its construction and ``reading``. ``engine``: finds its process ids."""

    def __init__(self, engine: Callable[[], set[int]]) -> None:
        self._engine = engine
        self._nvml = _nvml()
        self._devices = self._found()
        self._energy_before_mj = [self._asked("nvmlDeviceGetTotalEnergyConsumption", d) for d in self._devices]
        self._looked_at = -LOOK_EVERY_S
        self._seen: dict[str, list[float]] = {}
        self._reasons: set[str] | None = None  # None: no look was told any, not even that there were none
        self._neighbours: set[int] = set()
        self.look()

    def look(self) -> None:
        """No more often than once in LOOK_EVERY_S: asking costs the driver something."""
        if not self._devices or time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        own = self._engine()
        power_mw, used = 0.0, 0.0
        for device in self._devices:
            power_mw += self._asked("nvmlDeviceGetPowerUsage", device) or 0
            memory, busy = (self._asked(f"nvmlDeviceGet{n}", device) for n in ("MemoryInfo", "UtilizationRates"))
            used += memory.used if memory else 0
            self._note("busy", busy and busy.gpu / 100)
            self._note("clock", self._asked("nvmlDeviceGetClockInfo", device, self._nvml.NVML_CLOCK_SM))
            masks = (self._asked(f"nvmlDeviceGetCurrentClocks{kind}Reasons", device) for kind in EVENTS)
            if (mask := next((m for m in masks if m is not None), None)) is not None:
                self._reasons = (self._reasons or set()) | {reason for reason, bit in REASONS.items() if mask & bit}
            self._neighbours |= self._pids(device) - own
        self._note("power", power_mw / 1e3 or None)
        self._note("memory", used or None)

    def reading(self) -> GpuReading | None:
        if not self._devices:
            return None
        self._looked_at = -LOOK_EVERY_S
        self.look()
        after_mj = [self._asked("nvmlDeviceGetTotalEnergyConsumption", d) for d in self._devices]
        spent_mj = [
            b - a for a, b in zip(self._energy_before_mj, after_mj, strict=True) if a is not None and b is not None
        ]
        seen = self._seen
        return GpuReading(
            gpus=len(self._devices),
            energy_j=sum(spent_mj) / 1e3 if len(spent_mj) == len(self._devices) else None,
            power_mean_w=_mean(seen.get("power")),
            memory_peak_bytes=round(max(seen["memory"])) if "memory" in seen else None,
            utilisation_mean=_mean(seen.get("busy")),
            sm_clock_mean_mhz=_mean(seen.get("clock")),
            sm_clock_min_mhz=min(seen["clock"]) if "clock" in seen else None,
            held_back_by=tuple(sorted(self._reasons or ())),
            slowed=None if self._reasons is None else bool(self._reasons & SLOWED.keys()),
            neighbours=len(self._neighbours),
        )

    def _found(self) -> list[Any]:
        if self._nvml is None:
            return []
        own = self._engine()
        count = self._asked("nvmlDeviceGetCount") or 0
        devices = (self._asked("nvmlDeviceGetHandleByIndex", index) for index in range(count))
        return [device for device in devices if device is not None and self._pids(device) & own]

    def _pids(self, device: Any) -> set[int]:
        return {process.pid for process in self._asked("nvmlDeviceGetComputeRunningProcesses", device) or ()}

    def _asked(self, function: str, *arguments: Any) -> Any:
        """None: this GPU, or this driver, does not tell."""
        assert self._nvml is not None
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError:
            return None

    def _note(self, what: str, value: float | None) -> None:
        if value is not None:
            self._seen.setdefault(what, []).append(value)


def _nvml() -> Any:
    """The library, ready; None: it is not installed, or there is no driver."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except ModuleNotFoundError:
        return None
    except nvml.NVMLError:
        return None
    return nvml


def _mean(values: list[float] | None) -> float | None:
    return fmean(values) if values else None
