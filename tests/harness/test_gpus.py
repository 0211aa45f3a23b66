"""GPUs by NVML: what is asked of the library, and what is made of its answers.

There is a GPU in few machines that run these tests. So the library's functions answer from a script here, at its border
and nowhere else; that they exist is asked of the real library, and one test is of a real GPU.
"""

import os
import time
import types

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from harness import gpus
from harness.gpus import Gpus
from harness.host import fingerprint
from harness.measurement import HostReading

pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: pip install 'autotune-serving[gpu]'")
MB = 1 << 20


class Nvml:
    """Two GPUs, of which the engine (process 7) is on the second. Each ``script`` entry is one look's answer."""

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_SM = pynvml.NVML_CLOCK_SM

    def __init__(self, **script):
        self.script = {
            "nvmlDeviceGetTotalEnergyConsumption": [1_000_000, 1_090_000],
            "nvmlDeviceGetPowerUsage": [300_000, 340_000, 380_000],
            "nvmlDeviceGetMemoryInfo": [types.SimpleNamespace(used=n * MB) for n in (500, 700, 600)],
            "nvmlDeviceGetUtilizationRates": [types.SimpleNamespace(gpu=n) for n in (80, 90, 100)],
            "nvmlDeviceGetClockInfo": [1980, 1700, 1980],
            "nvmlDeviceGetCurrentClocksEventReasons": [0],
            "processes": [(7,)],
            **script,
        }

    def __getattr__(self, name):
        assert hasattr(pynvml, name), "the real library has no such function"
        known = {
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetComputeRunningProcesses": self._processes,
        }
        return known.get(name, lambda *_: self._next(name))

    def _processes(self, device):
        pids = self._next("processes") if device == 1 else (99,)
        return [types.SimpleNamespace(pid=pid) for pid in pids]

    def _next(self, name):
        answers = self.script[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def reading(monkeypatch):
    def after_three_looks(**script):
        monkeypatch.setattr(gpus, "_nvml", lambda: Nvml(**script))
        monkeypatch.setattr(gpus, "LOOK_EVERY_S", 0.0)
        seen = Gpus(lambda: {7, 8})
        seen.look()
        return seen.reading()

    return after_three_looks


def test_energy_is_a_difference_and_the_rest_is_looked_at(reading):
    seen = reading()
    assert seen.gpus == 1
    assert (seen.energy_j, seen.power_mean_w) == (90.0, 340.0)
    assert seen.per_token(450).energy_per_output_token_j == 0.2
    assert seen.per_token(0).energy_per_output_token_j is None
    assert seen.memory_peak_bytes == 700 * MB
    assert seen.utilisation_mean == pytest.approx(0.9)
    assert (seen.sm_clock_mean_mhz, seen.sm_clock_min_mhz) == (pytest.approx(1886.67, abs=0.01), 1700)
    assert (seen.held_back_by, seen.slowed, seen.neighbours) == ((), False, 0)


def test_a_power_cap_is_told_and_heat_is_a_slowdown(reading):
    capped = reading(nvmlDeviceGetCurrentClocksEventReasons=[0, pynvml.nvmlClocksEventReasonSwPowerCap, 0])
    assert (capped.held_back_by, capped.slowed) == (("power cap",), False)
    for bit in (
        pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        pynvml.nvmlClocksEventReasonHwThermalSlowdown,
        pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    ):
        assert reading(nvmlDeviceGetCurrentClocksEventReasons=[0, bit, 0]).slowed, "in the middle alone"


def test_the_names_of_the_reasons_are_the_library_s_bits():
    assert {
        "thermal slowdown by software": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        "thermal slowdown by hardware": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
        "power brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
        "power cap": pynvml.nvmlClocksEventReasonSwPowerCap,
        "slowdown by hardware": pynvml.nvmlClocksEventReasonHwSlowdown,
    } == gpus.REASONS


def test_a_neighbour_that_came_and_went_is_counted(reading):
    assert reading(processes=[(7,), (7,), (7, 4321), (7, 8)]).neighbours == 1


def test_what_a_gpu_does_not_tell_is_none(reading):
    unsupported = [pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)]
    seen = reading(
        nvmlDeviceGetTotalEnergyConsumption=unsupported,
        nvmlDeviceGetPowerUsage=unsupported,
        nvmlDeviceGetMemoryInfo=unsupported,
        nvmlDeviceGetUtilizationRates=unsupported,
        nvmlDeviceGetClockInfo=unsupported,
        nvmlDeviceGetCurrentClocksEventReasons=unsupported,
        nvmlDeviceGetCurrentClocksThrottleReasons=unsupported,
    ).per_token(100)
    told = seen.model_dump(exclude={"gpus", "held_back_by", "neighbours"})
    assert set(told.values()) == {None}
    assert seen.beside(HostReading()).gpu_slowed is None


def test_an_older_driver_calls_the_reasons_otherwise(reading):
    absent = [pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)]
    seen = reading(
        nvmlDeviceGetCurrentClocksEventReasons=absent,
        nvmlDeviceGetCurrentClocksThrottleReasons=[pynvml.nvmlClocksThrottleReasonHwThermalSlowdown],
    )
    assert seen.slowed


def test_an_engine_that_is_on_no_gpu_has_no_reading(reading):
    assert reading(processes=[(99,)]) is None


def test_what_was_seen_in_the_middle_counts_as_the_machine_s_reading(reading):
    heat = pynvml.nvmlClocksEventReasonHwThermalSlowdown
    seen = reading(nvmlDeviceGetCurrentClocksEventReasons=[0, heat, 0], processes=[(7,), (7,), (7, 4321), (7,)])
    host = HostReading(gpu_slowed=False, gpu_neighbours=0, steal_share=0.01)
    assert seen.beside(host) == HostReading(gpu_slowed=True, gpu_neighbours=1, steal_share=0.01)
    cool = reading()
    assert cool.beside(HostReading(gpu_slowed=True, gpu_neighbours=3)).gpu_neighbours == 3
    assert cool.beside(HostReading(gpu_slowed=True)).gpu_slowed is True
    assert cool.beside(HostReading()) == HostReading(gpu_slowed=False, gpu_neighbours=0)


def test_without_a_driver_nothing_is_told():
    if _has_gpu():
        pytest.skip("this machine has one")
    assert Gpus(lambda: {os.getpid()}).reading() is None


@pytest.mark.gpu
def test_a_real_gpu_spends_energy():
    if not _has_gpu():
        pytest.skip("no NVIDIA driver here")
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    used = {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device)}
    if not used:
        pytest.skip("nothing runs on the GPU: start an engine on it")
    seen = Gpus(lambda: used)
    time.sleep(2)
    reading = seen.reading()
    assert reading.energy_j > 0
    assert reading.power_mean_w > 0
    assert reading.memory_peak_bytes > 0
    assert reading.sm_clock_min_mhz > 0


def _has_gpu():
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return pynvml.nvmlDeviceGetCount() > 0


def test_doctor_says_how_to_read_a_gpu_that_is_there(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOTUNE_MODELS", str(tmp_path))
    found = fingerprint().model_copy(update={"gpus": ("NVIDIA H100 80GB HBM3",)})
    monkeypatch.setattr("harness.host.fingerprint", lambda: found)
    for library, told in (("absent_pynvml", True), ("pynvml", False)):
        monkeypatch.setattr("autotune.doctor.NVML", library)
        said = CliRunner().invoke(app, ["doctor"], catch_exceptions=False).output
        assert ("autotune-serving[gpu]" in said) is told
