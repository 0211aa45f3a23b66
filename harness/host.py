"""The fingerprint of this machine.

Knows nothing of engines, nor of what goes on while we measure (meters.py); versions of our own
packages are part of the fingerprint.
"""

import hashlib
import importlib.metadata
import platform
import re
import shutil
import socket
import subprocess
from pathlib import Path

import psutil

from harness.engines.base import HostLimits
from harness.measurement import Host

BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
PACKAGES = ("autotune-serving", "gevent", "gguf", "locust", "numpy", "optuna", "pyarrow", "scipy", "xllamacpp")


def limits() -> HostLimits:
    """Cores this process may use, and memory: the cgroup's limit where there is one."""
    cores = len(psutil.Process().cpu_affinity() or [0])
    memory = psutil.virtual_memory().total
    for path, scale in (("/sys/fs/cgroup/cpu.max", None), ("/sys/fs/cgroup/memory.max", 1)):
        text = Path(path).read_text().split() if Path(path).exists() else ["max"]
        if text[0] == "max":
            continue
        if scale is None:
            cores = max(1, min(cores, int(int(text[0]) / int(text[1]))))
        else:
            memory = min(memory, int(text[0]))
    return HostLimits(cores, memory, gpu_memory_bytes(), computes_bfloat16(processor_flags()))


def computes_bfloat16(flags: frozenset[str]) -> bool:
    """A kernel that tells no flags is not taken to lack it."""
    return not flags or bool(flags & BFLOAT16)


def processor_flags(cpuinfo: str = "/proc/cpuinfo") -> frozenset[str]:
    """What the first processor has, by the kernel's names (x86: flags, Arm: Features); empty where it does not tell."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _read(cpuinfo) or "", re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def gpu_memory_bytes() -> tuple[int, ...]:
    """Of each GPU that nvidia-smi tells of; empty without it."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return ()
    query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if said.returncode != 0:
        return ()
    return tuple(int(line) << 20 for line in said.stdout.split() if line.isdigit())


def fingerprint() -> Host:
    own = limits()
    return Host(
        hostname_hash=hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        cpu=_cpu_name(),
        cores=own.cores,
        memory_bytes=own.memory_bytes,
        gpus=_gpus(),
        kernel=platform.release(),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        python=platform.python_version(),
        autotune_version=importlib.metadata.version("autotune-serving"),
        packages={name: _version(name) for name in PACKAGES if _version(name)},
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    """Name, memory and driver of each GPU, as nvidia-smi tells; empty without it."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return tuple(line.strip() for line in said.stdout.splitlines() if line.strip()) if said.returncode == 0 else ()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
