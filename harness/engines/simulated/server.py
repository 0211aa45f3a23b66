"""The simulated engine's own process: flags as vLLM's, a launch that can fail, an OpenAI endpoint, /metrics.

Its answers come when the law says (law.py), by the wall clock (realtime.py). Nothing imports it. Loading weights and
compiling are modelled, and waited for only in part: COLD_START_SCALE of the modelled seconds.
"""

import asyncio
import contextlib
import hashlib
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs

from harness.engines.simulated import flags, hardware
from harness.engines.simulated.law import GIB, Law
from harness.engines.simulated.prompts import MOST_KNOWN, Blocks
from harness.engines.simulated.realtime import PreciseSelector, Replica
from harness.engines.simulated.scheduler import Scheduler
from harness.engines.simulated.wire import Answering, Asked, Connection
from harness.errors import ConfigurationImpossible
from scenarios.errors import UserError

COLD_START_SCALE = 0.005
PLACES = 2048  # requests that one replica lets wait and run at once
BACKLOG = 2048


def say(line: str) -> None:
    print(f"[simulated] {line}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Serving:
    """All replicas of the model behind one endpoint: requests go to them in turn."""

    law: Law
    served_model: str
    context_tokens: int
    cold_start_s: float
    replicas: tuple[Replica, ...]
    submitted: int = 0

    def submit(self, asked: Asked, answering: Answering) -> int:
        turn = self.submitted % len(self.replicas)
        place = self.replicas[turn].submit(asked, answering)
        self.submitted += 1
        return place * len(self.replicas) + turn

    def cancel(self, ticket: int) -> None:
        place, turn = divmod(ticket, len(self.replicas))
        self.replicas[turn].cancel(place)

    def metrics(self) -> str:
        samples = (f"{name}{{model_name={self.served_model!r}}} {value:.10g}" for name, value in self._samples())
        return "\n".join((*samples, self._info(), "")).replace("'", '"')

    def _samples(self) -> Iterator[tuple[str, float]]:
        """By the names that vLLM gives them, where it has them."""
        counts = [replica.scheduler.counters for replica in self.replicas]
        blocks = self.law.limits.blocks * len(counts)
        yield "vllm:num_requests_running", sum(c.running for c in counts)
        yield "vllm:num_requests_waiting", sum(c.waiting for c in counts)
        yield "vllm:kv_cache_usage_perc", sum(c.blocks_used for c in counts) / blocks
        yield "vllm:num_preemptions_total", sum(c.preemptions for c in counts)
        yield "vllm:prefix_cache_queries_total", sum(replica.prompt_tokens for replica in self.replicas)
        yield "vllm:prefix_cache_hits_total", sum(c.prefix_hit_tokens for c in counts)
        yield "vllm:spec_decode_num_draft_tokens_total", sum(c.drafted_tokens for c in counts)
        yield "vllm:spec_decode_num_accepted_tokens_total", sum(c.accepted_tokens for c in counts)
        yield "vllm:request_success_total", sum(replica.answered for replica in self.replicas)
        yield "simulated_steps_total", sum(c.steps for c in counts)
        yield "simulated_busy_seconds_total", sum(replica.busy_s for replica in self.replicas)
        yield "simulated_kv_blocks", blocks
        yield "simulated_cold_start_seconds", self.cold_start_s
        yield "simulated_latest_seconds", max(replica.latest_s for replica in self.replicas)
        yield "simulated_process_cpu_seconds_total", time.process_time()

    def _info(self) -> str:
        device, shape = self.law.device.name, self.law.shape.name
        return f"simulated_info{{accelerator='{device}',model='{shape}',replicas='{len(self.replicas)}'}} 1"


def main() -> int:
    release = _release(sys.argv[1:])
    given = flags.parser(release).parse_args()
    say(f"release {release}: a stated law answers here, no model and no {given.accelerator}")
    try:
        device, shape = hardware.accelerator(given.accelerator), hardware.model(given.model)
        law = Law(flags.settings(given), device, shape, given.max_model_len)
    except ConfigurationImpossible as err:
        say(f"ValueError: {err}")
        return 1
    except UserError as err:
        say(f"failed to load model or device: {err}")
        return 1
    say(law.memory.explained)
    cold_start_s = _start_cold(law)
    if not law.memory.starts:
        _say_out_of_memory(law)
        return 1
    _compile(law)
    serving = _serving(law, given.served_model_name, given.max_model_len, cold_start_s, given.seed)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(PreciseSelector())) as runner:
        return runner.run(_serve(serving, given.host, given.port))


def _release(argv: list[str]) -> str:
    """Which release's flags to read the rest by."""
    after = argv[argv.index("--release") + 1 : argv.index("--release") + 2] if "--release" in argv else []
    return after[0] if after and after[0] in flags.RELEASES else flags.NEWEST


def _start_cold(law: Law) -> float:
    """Modelled seconds of this launch. What it compiles is there for the next launch with an equal key."""
    name = hashlib.sha256(repr(law.compile_key).encode()).hexdigest()[:16]
    known = Path(platformdirs.user_cache_dir("autotune")) / "simulated" / name
    seconds = law.start_s(already_compiled=known.exists())
    how = "compiled before" if known.exists() else "compiling"
    say(
        f"loading and {how} takes {seconds:.1f} s of the simulated clock; {seconds * COLD_START_SCALE:.2f} s are waited"
    )
    time.sleep(seconds * COLD_START_SCALE)
    with contextlib.suppress(OSError):  # where nothing can be kept, every launch compiles
        known.parent.mkdir(parents=True, exist_ok=True)
        known.touch()
    return seconds


def _compile(law: Law) -> None:
    """The scheduler's machine code, where there is numba, is there before the first request is."""
    trial = Scheduler(law.limits, law.steps, 1, np.full(1, law.limits.block_tokens), known_blocks=1)
    for _ in range(2):
        trial.enqueue_prompt(0, 1, 1, [])
        trial.step()
    trial.withdraw(0)


def _say_out_of_memory(law: Law) -> None:
    """In the words of CUDA's allocator."""
    memory = law.memory
    needs = memory.activations_bytes / GIB
    free = max(0.0, law.device.memory_bytes - memory.expected_bytes) / GIB
    say(
        f"torch.OutOfMemoryError: CUDA out of memory (simulated). Tried to allocate {needs:.2f} GiB. GPU 0 has a total "
        f"capacity of {law.device.memory_bytes / GIB:.2f} GiB of which {free:.2f} GiB is free."
    )


def _serving(law: Law, name: str, context_tokens: int, cold_start_s: float, seed: int) -> Serving:
    block_tokens = law.limits.block_tokens
    rows = np.full(PLACES, context_tokens, np.int64)
    replicas = tuple(
        Replica(
            Scheduler(law.limits, law.steps, PLACES, rows, seed + number, known_blocks=MOST_KNOWN),
            Blocks(block_tokens),
            PLACES,
        )
        for number in range(law.replicas)
    )
    return Serving(law, name, context_tokens, cold_start_s, replicas)


async def _serve(serving: Serving, host: str, port: int) -> int:
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(lambda: Connection(serving), host, port, backlog=BACKLOG)
    except OSError as err:
        say(f"cannot listen on {host}:{port}: {err.strerror or err}")
        return 1
    say(f"ready on http://{host}:{port}")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
