"""Starts an engine, waits until it really answers, and makes sure it is gone afterwards.

Knows nothing of load, targets or of any particular engine: words in a log that only one engine uses are
asked of that engine (`Engine.classify`).
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from harness import guard
from harness.engines.base import Endpoint, Engine, FindsOut, LaunchPlan, root_of
from harness.errors import (
    EngineCrashed,
    EngineHung,
    EngineOutOfMemory,
    EngineStartError,
    FailureClass,
    TrialInfeasible,
)
from harness.ledger import unusable
from scenarios.spec import EngineSpec

STOP_GRACE_S = 5.0
HEALTH_LIMIT_S = 5.0  # SGLang generates a token, and takes more than a second, before it says that it is healthy
LAST_WORDS_S = 1.0  # in which an engine that fails at its first prompt may end and say why
_PROBE_EVERY_S = 0.05

# Words that mean the same in every engine's log. First match wins.
_WORDS: tuple[tuple[FailureClass, str], ...] = (
    ("port_taken", r"address already in use|couldn't bind|bind.*(in use|failed)|port \d+ is (already )?in use"),
    ("out_of_memory", r"out of memory|cannot allocate memory|failed to allocate|bad_alloc|MemoryError"),
    ("bad_flag", r"unrecognized arguments|unknown argument|invalid argument|error: argument|no such option"),
    ("bad_model", r"no such file|failed to load model|invalid magic|corrupt|not found in model|tensor.*out of.*bounds"),
    ("unsupported", r"not supported|unsupported|requires (avx|amx|cuda)"),
)
_DECISIVE = re.compile(
    r"error|fail|fatal|cannot|couldn't|could not|unable|exception|abort|out of memory|invalid|unknown|unsupported",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Running:
    """An engine that answers."""

    plan: LaunchPlan
    endpoint: Endpoint
    cold_start_s: float
    log_path: Path
    process: subprocess.Popen[bytes] | None = None  # the guard; None: attached
    engine: Engine | None = field(default=None, repr=False)
    notices: tuple[str, ...] = ()  # what the server lacks, for people

    def check(self) -> None:
        """Raises EngineCrashed or EngineOutOfMemory when the process has ended."""
        if self.process is not None and self.process.poll() is not None:
            assert self.engine is not None
            raise _ended(self.engine, self.log_path, self.process.returncode)

    def tree(self) -> list[psutil.Process]:
        """The engine's processes, without the guard; empty when attached or ended."""
        if self.process is None:
            return []
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def hung(self, seconds: float) -> EngineHung:
        return EngineHung(
            f"{self.plan.config.engine} gave no token for {seconds:.0f} s with requests in flight",
            log_lines=_decisive_lines(self.log_path),
        )


@contextlib.contextmanager
def launch(engine: Engine, spec: EngineSpec, plan: LaunchPlan, log_path: Path) -> Iterator[Running]:
    """The engine of ``plan``, ready: health says so and one real completion came back.

    Raises EngineStartError or EngineOutOfMemory with the decisive lines of the log. On leaving, in
    whatever way, the process tree has ended.
    """
    if plan.argv is None:
        yield _attach(engine, spec, plan, log_path)
        return
    if spec.port is not None:
        _refuse_a_stranger(spec.port, plan.health_path)
    port = spec.port or _free_port()
    argv = [part.format(port=port) if "{port}" in part else part for part in plan.argv]
    started = time.monotonic()
    read_fd, write_fd = os.pipe()
    try:
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(read_fd), str(STOP_GRACE_S), *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **plan.env},
                pass_fds=(read_fd,),
                start_new_session=True,
            )
    except OSError as err:
        os.close(write_fd)
        raise unusable(log_path, err) from err
    finally:
        os.close(read_fd)
    try:
        root = f"http://127.0.0.1:{port}"
        base_url = plan.base_url.format(port=port)
        endpoint = Endpoint(root, base_url, plan.served_model, request_extras=plan.request_extras)
        running = Running(plan, endpoint, 0.0, log_path, process, engine)
        _wait_until_ready(engine, running, started + spec.start_timeout_s)
        running.cold_start_s = time.monotonic() - started
        yield running
    finally:
        os.close(write_fd)
        try:
            process.wait(STOP_GRACE_S + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _attach(engine: Engine, spec: EngineSpec, plan: LaunchPlan, log_path: Path) -> Running:
    endpoint = Endpoint(root_of(plan.base_url), plan.base_url, plan.served_model, spec.api_key_env, plan.request_extras)
    started = time.monotonic()
    notices: tuple[str, ...] = ()
    try:
        if isinstance(engine, FindsOut):
            endpoint, notices = engine.probe(endpoint)
        complete(endpoint, timeout_s=spec.start_timeout_s)
    except httpx.HTTPStatusError as err:
        said = err.response.text[:200]
        raise EngineStartError(f"{plan.base_url} answers HTTP {err.response.status_code}: {said}") from err
    except httpx.HTTPError as err:
        raise EngineStartError(
            f"{plan.base_url} does not answer ({err}); is the server running, and the address right?"
        ) from err
    return Running(plan, endpoint, time.monotonic() - started, log_path, engine=engine, notices=notices)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _refuse_a_stranger(port: int, health_path: str) -> None:
    """A server that is healthy there already would be taken for the engine. Raises EngineStartError."""
    health = f"http://127.0.0.1:{port}{health_path}"
    with contextlib.suppress(httpx.HTTPError):
        if httpx.get(health, timeout=HEALTH_LIMIT_S, trust_env=False).status_code == httpx.codes.OK:
            raise EngineStartError(f"engine.port: {port} is taken: another server answers there", failure="port_taken")


def _wait_until_ready(engine: Engine, running: Running, deadline: float) -> None:
    health = running.endpoint.root_url + running.plan.health_path
    with httpx.Client(timeout=HEALTH_LIMIT_S, trust_env=False) as client:
        while True:
            if running.process is not None and running.process.poll() is not None:
                raise _did_not_start(engine, running)
            if time.monotonic() > deadline:
                raise _too_late(engine, running)
            with contextlib.suppress(httpx.HTTPError):
                if client.get(health).status_code == httpx.codes.OK:
                    break
            time.sleep(_PROBE_EVERY_S)
    try:
        complete(running.endpoint, timeout_s=max(1.0, deadline - time.monotonic()))
    except httpx.TimeoutException as err:
        raise _too_late(engine, running) from err
    except httpx.HTTPError as err:
        if running.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(LAST_WORDS_S)
        raise _did_not_start(engine, running, f"healthy, but it cannot complete a prompt: {err}") from err


def complete(endpoint: Endpoint, *, timeout_s: float) -> None:
    """One token, asked for like anybody would. Raises httpx.HTTPError."""
    key = os.environ.get(endpoint.api_key_env or "")
    chat = endpoint.route == "/chat/completions"
    said: dict[str, object] = {"messages": [{"role": "user", "content": "Hello"}]} if chat else {"prompt": "Hello"}
    response = httpx.post(
        f"{endpoint.base_url}{endpoint.route}",
        json={"model": endpoint.served_model, **said, "max_tokens": 1, "temperature": 0},
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=timeout_s,
        trust_env=False,
    )
    response.raise_for_status()


def _ended(engine: Engine, log_path: Path, exit_code: int) -> TrialInfeasible:
    """What became of an engine that had answered before."""
    lines, how = _decisive_lines(log_path), _exit(exit_code)
    if _reason(engine, log_path, exit_code) == "out_of_memory":
        return EngineOutOfMemory(f"{engine.name} ran out of memory under load ({how})", log_lines=lines)
    return EngineCrashed(f"{engine.name} ended while it was being measured ({how})", log_lines=lines)


def _did_not_start(engine: Engine, running: Running, otherwise: str = "") -> TrialInfeasible:
    """What became of an engine that has not answered yet. ``otherwise``: what is wrong where it has not ended."""
    exit_code = running.process.returncode if running.process is not None else None
    how = otherwise if exit_code is None else _exit(exit_code)
    lines, failure = _decisive_lines(running.log_path), _reason(engine, running.log_path, exit_code) or "start_failed"
    if failure == "out_of_memory":
        return EngineOutOfMemory(f"{engine.name} did not start: out of memory ({how})", log_lines=lines)
    return EngineStartError(
        f"{engine.name} did not start: {failure.replace('_', ' ')} ({how})", failure=failure, log_lines=lines
    )


def _too_late(engine: Engine, running: Running) -> EngineStartError:
    return EngineStartError(
        f"{engine.name} was not ready in time (engine.start_timeout_s)",
        failure="start_timeout",
        log_lines=_decisive_lines(running.log_path),
    )


def _reason(engine: Engine, log_path: Path, exit_code: int | None) -> FailureClass | None:
    """From the log's words and the exit status."""
    text = log_path.read_text("utf-8", "replace")
    return engine.classify(text, exit_code) or classify(text, exit_code)


def _exit(exit_code: int) -> str:
    return f"killed by signal {exit_code - 128}" if exit_code > 128 else f"exit status {exit_code}"


def classify(log: str, exit_code: int | None) -> FailureClass | None:
    """The failure class by words common to all engines; SIGKILL from outside is taken for the OOM killer."""
    for kind, words in _WORDS:
        if re.search(words, log, re.IGNORECASE):
            return kind
    return "out_of_memory" if exit_code == 128 + 9 else None


# A named exception says more than the frames around it, and than those that were raised because of it.
_NAMED = re.compile(r"\b\w*(Error|Exception): \S")
_ELSEWHERE = re.compile(r"root cause|WARNING")


def _decisive_lines(log_path: Path, most: int = 6) -> tuple[str, ...]:
    if not log_path.exists():
        return ()  # attached: its log is somebody else's
    lines = [line.rstrip()[:300] for line in log_path.read_text("utf-8", "replace").splitlines() if line.strip()]
    telling = [line for line in lines if _DECISIVE.search(line)]
    named = [line for line in telling if _NAMED.search(line) and not _ELSEWHERE.search(line)]
    return tuple((named or telling or lines)[-most:])
