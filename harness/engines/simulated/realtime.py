"""Runs the scheduler's core by the wall clock: a step's tokens go out when its modelled seconds are over.

A step begins when the one before it was due, not when it was served: lateness never adds up. Knows nothing of HTTP
(wire.py) or of what makes a step long (law.py).
"""

import asyncio
import select
import selectors
from dataclasses import dataclass
from http import HTTPStatus

from harness.engines.simulated.prompts import Blocks
from harness.engines.simulated.scheduler import Scheduler, Step
from harness.engines.simulated.wire import Answering, Asked, Refused


class PreciseSelector(selectors.EpollSelector):
    """Waits by the kernel's fine clock: epoll alone rounds a wait up to whole milliseconds."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


@dataclass(slots=True)
class _Served:
    """A request that waits or runs. ``cached_tokens``: found in the KV cache when it began; None: it has not."""

    answering: Answering
    prompt_tokens: int
    cached_tokens: int | None = None


class Replica:
    """One copy of the model. ``places``: the most requests that may wait and run at once."""

    def __init__(self, scheduler: Scheduler, blocks: Blocks, places: int) -> None:
        self.scheduler = scheduler
        self.busy_s = 0.0
        self.latest_s = 0.0  # so late were a step's tokens at worst
        self.answered = 0
        self.prompt_tokens = 0  # of the requests that have begun
        self._blocks = blocks
        self._free = list(range(places - 1, -1, -1))
        self._served: dict[int, _Served] = {}
        self._stepping = False

    def submit(self, asked: Asked, answering: Answering) -> int:
        """The place that it has. Raises Refused."""
        if not self._free:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are waiting")
        place = self._free[-1]
        prompt = asked.prompt
        if not self.scheduler.enqueue_prompt(place, len(prompt), asked.output_tokens, self._blocks.of(prompt)):
            raise Refused(HTTPStatus.BAD_REQUEST, "this configuration's KV cache or batch can never hold the request")
        self._free.pop()
        self._served[place] = _Served(answering, len(prompt))
        if not self._stepping:
            self._begin(asyncio.get_running_loop().time())
        return place

    def cancel(self, place: int) -> None:
        """Frees all that the request holds. What the step under way computes for it goes nowhere."""
        if place in self._served:
            self.scheduler.withdraw(place)
            self._leave(place)

    def _leave(self, place: int) -> None:
        del self._served[place]
        self._free.append(place)

    def _begin(self, at_s: float) -> None:
        step = self.scheduler.step()
        self._stepping = True
        self.busy_s += step.duration_s
        due_s = at_s + step.duration_s
        served = [self._served[place] for place in step.sequences.tolist()]
        for place, one in zip(step.sequences.tolist(), served, strict=True):
            if one.cached_tokens is None:
                one.cached_tokens = self.scheduler.reused_tokens(place)
                self.prompt_tokens += one.prompt_tokens
        asyncio.get_running_loop().call_at(due_s, self._end, due_s, step, served)

    def _end(self, due_s: float, step: Step, served: list[_Served]) -> None:
        """Hands out what came of the step, to those who are still there, and begins the next."""
        self.latest_s = max(self.latest_s, asyncio.get_running_loop().time() - due_s)
        given = zip(step.sequences.tolist(), served, step.tokens.tolist(), step.finished.tolist(), strict=True)
        for place, one, tokens, last in given:
            if self._served.get(place) is not one:
                continue
            if last:
                self._leave(place)
                self.answered += 1
            if tokens:
                one.answering.give(tokens, last=last, cached_tokens=one.cached_tokens or 0)
        self._stepping = False
        if self.scheduler.has_work:
            self._begin(due_s)
