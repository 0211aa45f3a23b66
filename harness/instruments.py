"""Everything that is read beside a run of load: the machine, the engine's processes and GPUs, its own figures.

Knows nothing of the load, nor of what the readings mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import pyarrow.parquet as pq

from harness.engines.base import Engine, ServerNames
from harness.gpus import Gpus
from harness.measurement import HostReading, ServerView, Telemetry
from harness.meters import HostMeters, is_here
from harness.observe import output_tokens
from harness.server_view import Sampler, server_view
from harness.supervise import Running
from harness.telemetry import EngineTree


@dataclass(frozen=True, slots=True)
class Readings:
    host: HostReading
    telemetry: Telemetry
    server: ServerView | None


class Instruments:
    """Running from ``with`` to ``read``; ``look`` is called again and again while the load goes on."""

    def __init__(self, engine: Engine, running: Running) -> None:
        self._names: ServerNames | None = getattr(engine, "server_names", None)
        self._ask: Callable[[], Mapping[str, float]] = lambda: engine.metrics(running.endpoint)
        self._host = HostMeters(_engine_here(running))
        self._tree = EngineTree(running)
        self._gpus = Gpus(lambda: {process.pid for process in running.tree()})
        self._before = self._ask()
        self._sampler = Sampler(self._ask)

    def __enter__(self) -> Self:
        if self._names is not None:
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampler.stop()

    def look(self) -> None:
        self._tree.look()
        self._host.look()
        self._gpus.look()

    def read(self, records_path: Path, *, stream: bool) -> Readings:
        """``records_path``: of every request of the run."""
        gpu, host = self._gpus.reading(), self._host.reading()  # the host's takes a moment, and GPUs count on
        after, records = self._ask(), pq.read_table(records_path)
        if gpu is not None:
            host = gpu.beside(host)
            gpu = gpu.per_token(float(output_tokens(records).sum()))
        if not self._before:  # what it did since it began is not what it did in this run
            after = {}
        grown = {k: v - self._before.get(k, 0.0) for k, v in after.items() if k.endswith("_total")}
        server = None
        if self._names is not None and after:
            server = server_view(self._names, self._before, after, list(self._sampler.seen), records, stream=stream)
        return Readings(host, self._tree.telemetry(grown).model_copy(update={"gpu": gpu}), server)


def _engine_here(running: Running) -> Callable[[], list[psutil.Process]] | None:
    """What finds the engine's processes on this machine; None: it runs here, but not under us."""
    if running.process is not None:
        return running.tree
    return None if is_here(running.endpoint.root_url) else list
