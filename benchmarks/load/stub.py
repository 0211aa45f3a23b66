"""Builds, starts and reads `stub.c`, the model server that only keeps time.

Knows nothing of load generators: whoever holds a `Stub` may send it what they like.
"""

import csv
import io
import json
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "stub.c"
BUILT = HERE / ".build" / "stub"
_TEXT_COLUMNS = ("body_fnv1a", "client_id")

IntArray = npt.NDArray[np.int64]


def build(to: Path = BUILT) -> Path:
    """Compiles the stub unless that is done already. Raises CalledProcessError."""
    if not to.exists() or to.stat().st_mtime < SOURCE.stat().st_mtime:
        to.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(to), str(SOURCE), "-lm"], check=True)
    return to


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """One array per column of the stub's record, in order of arrival; -1: it did not happen."""

    columns: dict[str, IntArray]
    body_fnv1a: list[str]
    client_id: list[str]

    def __len__(self) -> int:
        return len(self.client_id)

    def __getitem__(self, column: str) -> IntArray:
        return self.columns[column]

    def where(self, keep: npt.NDArray[np.bool_]) -> "ServerRecord":
        chosen = np.flatnonzero(keep)
        return ServerRecord(
            {name: values[keep] for name, values in self.columns.items()},
            [self.body_fnv1a[i] for i in chosen],
            [self.client_id[i] for i in chosen],
        )


def parse_record(text: str) -> ServerRecord:
    """The CSV of GET /record, sorted by the kernel's stamp of the complete request."""
    header, *rows = csv.reader(io.StringIO(text))
    by_name = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(header, ())
    columns = {
        name: np.array([int(value) if value else -1 for value in values], dtype=np.int64)
        for name, values in by_name.items()
        if name not in _TEXT_COLUMNS
    }
    order = np.argsort(columns["kernel_ns"], kind="stable")
    return ServerRecord(
        {name: values[order] for name, values in columns.items()},
        *([by_name[name][i] for i in order] for name in _TEXT_COLUMNS),
    )


class Stub:
    """A running stub, ended on leaving. ``options`` go to its command line: ttft_ms=20, pin=1, always_usage=True …"""

    def __init__(self, **options: float | bool) -> None:
        argv = [str(build())]
        for name, value in options.items():
            flag = f"--{name.replace('_', '-')}"
            argv += [flag] if value is True else [flag, str(value)]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the stub ended with status {self._process.wait()}: {' '.join(argv)}")
        self.port: int = json.loads(line)["port"]
        self.pid = self._process.pid
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def freeze(self, for_ms: int, at_request: int | None = None) -> None:
        """Now, or as soon as so many more requests have come."""
        when = "" if at_request is None else f"&at_request={at_request}"
        self._ask("POST", f"/freeze?ms={for_ms}{when}")

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self._ask("GET", "/status"))
        return status

    def record(self) -> ServerRecord:
        return parse_record(self._ask("GET", "/record"))

    def _ask(self, method: str, path: str) -> str:
        request = urllib.request.Request(self.url + path, method=method, headers={"Connection": "close"})
        with urllib.request.urlopen(request, timeout=60) as response:
            text: str = response.read().decode()
        return text
