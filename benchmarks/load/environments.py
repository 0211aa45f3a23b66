"""Installs each peer into an environment of its own, and says what was installed or why it could not be.

Knows nothing of how a peer is run.
"""

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

from peers import ENVIRONMENTS, Peer

import harness.load.driver

_LIMIT_S = 1200


class PeerUnavailable(Exception):
    """It cannot be installed here; the message says why."""


def ensure(peer: Peer) -> str:
    """Its version, installed first where needed. Raises PeerUnavailable."""
    version = installed(peer)
    if version is None:
        _install(peer)
        version = installed(peer)
    if version is None:
        raise PeerUnavailable(f"{peer.requirements[0]}: installed, but not found in its environment")
    return version


def installed(peer: Peer) -> str | None:
    """Its version; None: it is not installed."""
    if not peer.requirements:
        return _own_version()
    if not peer.python.exists():
        return None
    name = re.split(r"[=<>]", peer.requirements[0])[0]
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    asked = subprocess.run([str(peer.python), "-c", code], capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else None


def _own_version() -> str:
    """With a digest of the load generator's source: what another version measured is measured again."""
    sources = sorted(Path(harness.load.driver.__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]
    return f"{importlib.metadata.version('autotune-serving')}+{digest}"


def _install(peer: Peer) -> None:
    folder = ENVIRONMENTS / peer.name
    python = _interpreter(peer.oldest_python)
    print(f"installing {peer.name} …", flush=True)
    pip = [str(peer.python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    steps = [[python, "-m", "venv", "--clear", str(folder)], [*pip, "install", *peer.requirements]]
    if peer.unwanted:
        steps.append([*pip, "uninstall", "--yes", *peer.unwanted])
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        except subprocess.TimeoutExpired as err:
            raise PeerUnavailable(f"{peer.name}: the installation took more than {_LIMIT_S} s") from err
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            raise PeerUnavailable(f"{peer.name}: {' '.join(errors[-2:])[:400]}")


def _interpreter(oldest: tuple[int, int]) -> str:
    """This one where it is new enough, else the first on PATH or of pyenv that is. Raises PeerUnavailable."""
    if sys.version_info >= oldest:
        return sys.executable
    pyenv = Path.home() / ".pyenv" / "versions"
    for minor in range(oldest[1], oldest[1] + 4):
        name = f"python{oldest[0]}.{minor}"
        candidates = [shutil.which(name), *(str(p) for p in pyenv.glob(f"{oldest[0]}.{minor}*/bin/{name}"))]
        for candidate in candidates:
            if candidate and subprocess.run([candidate, "-V"], capture_output=True, check=False).returncode == 0:
                return candidate
    raise PeerUnavailable(f"needs Python {oldest[0]}.{oldest[1]} or newer; none is installed")
